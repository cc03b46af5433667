"""Scale `small`: what departs from the page so that a CPU learns in minutes.

Each function takes the page's config and changes it. The numbers were found on hopper-random, those for data that are
not random on stand-ins for hopper-medium and walker2d-medium-replay; other datasets get the same ones, bounded by the
page's where their horizon or their rewards are small. The methods that the paper compares with have theirs in
`baselines` and `guided`.
"""

from dataclasses import replace

from dtune.algorithms.grpo import GRPOConfig
from dtune.algorithms.odt import ODTConfig
from dtune.algorithms.ppo import PPOConfig
from dtune.algorithms.supervised import SupervisedConfig
from dtune.experiments import baselines
from dtune.experiments.tables import ModelConfig

MODEL = ModelConfig(layers=2, width=64)

ITERATIONS = {"grpo": 400, "ppo": 500, "q_guided": 400, "odt": 230, "odt_td3": 120, "iql": 230, "dt": 0}
"""Of each method: six to ten minutes of an idle core on hopper-random. DT is judged as it is."""

EVALUATE_EVERY = {"grpo": 40}
"""Iterations between evaluations and checkpoints, where not 20."""

THREADS = {"grpo": 2}
"""CPU threads for the physics, where not 1: the second core is idle once PPO-DT beside it is done."""


def pretraining_iterations(updates: int, random: bool) -> int:
    """Of 50 gradient steps, where the page takes `updates`: few where data are random, with nothing to imitate.

    The hand and the maze, with eight times a Hopper's on the page, have twice as many here.
    """
    return 8 if random else 40 if updates <= 10_000 else 80


def pretraining(config: SupervisedConfig, random: bool) -> SupervisedConfig:
    """AdamW, and far fewer gradient steps of smaller batches; what is not random is not imitated to its bounds.

    A quarter of the actions recorded in the maze and of the pen are at their bounds. Imitated as they are, they make
    policies whose mean actions reach the goal and of which no walk that is drawn does.
    """
    return replace(
        config, optimizer="adamw", learning_rate=1e-3, warmup_updates=100, batch_size=64, updates_per_iteration=50,
        action_limit=1.0 if random else 0.97,
    )  # fmt: skip


def odt(config: ODTConfig, random: bool) -> ODTConfig:
    """Goes on from the small pretraining."""
    return baselines.small_odt(config, pretraining(config.update, random))


def grpo(config: GRPOConfig, iterations: int, random: bool) -> GRPOConfig:
    """Fewer and fresher members, ratios an action, a learning rate that falls over `iterations`.

    A policy that is good already is moved more slowly and kept less random; one that begins with nothing comes to that
    in the end.
    """
    rate, stretch = (4e-4, 1.0) if random else (1.3e-4, 1.4)
    update = replace(
        config.update, optimizer="adamw", learning_rate=rate, final_learning_rate=rate / 10,
        decay_updates=round(16 * stretch * iterations),
        ratio="token", clip_range=0.2, entropy_coef=0.03 if random else 0.003,
        entropy_coef_learning_rate=4e-4 if random else 1e-4,
    )  # fmt: skip
    return replace(
        config, episodes_per_iteration=4, collection_interval=4, replay_capacity=16, reset_points=1, group_size=4,
        subtrajectory_length=min(10, config.subtrajectory_length), mirrored=True,
        lookahead_length=min(250, config.lookahead_length), lookahead_noise=0.5, return_margin=0.0,
        advantage_scale="batch", subtrajectory_capacity=256, batch_size=32, passes=2, update=update,
    )  # fmt: skip


def ppo(config: PPOConfig, iterations: int, random: bool) -> PPOConfig:
    """More gradient steps, a faster learning rate that falls over `iterations`, values in hundreds of reward units.

    A policy that is good already is moved more slowly.
    """
    rate = 3e-4 if random else 1e-4
    update = replace(
        config.update, optimizer="adamw", learning_rate=rate, final_learning_rate=rate / 10,
        decay_updates=20 * iterations, entropy_coef=0.015,
    )  # fmt: skip
    return replace(config, updates_per_iteration=20, value_scale=min(100.0, config.return_to_go), update=update)
