"""What the paper ran, in the shape of its Tables 5, 6 and 7: hold this file beside the page.

Every number of the paper occurs here once. Scale `paper` is the page; scale `small` learns in minutes on a CPU,
and each of its departures is listed in `SMALL_*` below.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import tyro

from dtune.algorithms.grpo import GRPOConfig
from dtune.algorithms.iql import IQLConfig
from dtune.algorithms.odt import ODTConfig
from dtune.algorithms.odt_td3 import ODTTD3Config
from dtune.algorithms.ppo import PPOConfig
from dtune.algorithms.pretrained import PretrainedConfig
from dtune.algorithms.q_guided import QGuidedConfig
from dtune.algorithms.supervised import SupervisedConfig
from dtune.algorithms.update import UpdateConfig
from dtune.errors import ConfigError
from dtune.experiments import baselines, guided

Scale = Literal["paper", "small"]
Architecture = Literal["dt", "reinformer"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Size of the network (Table 5; a Reinformer's is its authors')."""

    layers: int = 4
    """Transformer blocks."""
    heads: int = 4
    """Attention heads a block; must divide `width`."""
    width: int = 512
    """Embedding dimension."""
    dropout: float = 0.1
    """Share dropped in pretraining; finetuning drops nothing."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """A pretraining run."""

    dataset: tyro.conf.Fixed[str]
    """Name of the dataset."""
    seed: int = 0
    """Of the one generator everything random is drawn from."""
    iterations: int = 20
    """Iterations of `algorithm.updates_per_iteration` gradient steps."""
    random_episodes: int = 1000
    """Episodes recorded where the dataset is a random one and no file is given."""
    architecture: tyro.conf.Fixed[Architecture] = "dt"
    """Decision transformer or Reinformer (Fig. 4a)."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Size of the network."""
    algorithm: SupervisedConfig = field(default_factory=SupervisedConfig)
    """How it is fitted."""
    return_to_go: float = 7200.0
    """Return asked for when the result is evaluated, in environment reward units."""
    evaluation_episodes: int = 20
    """Episodes the result is evaluated on, with mean actions."""
    threads: int = 1
    """CPU threads for the physics. Results do not depend on it."""
    network_threads: int = 1
    """CPU threads for the network. Small networks are slower with more than one."""

    def __post_init__(self) -> None:
        _check_counts(self, "random_episodes", "evaluation_episodes", "threads", "network_threads")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """A finetuning run."""

    dataset: tyro.conf.Fixed[str]
    """Name of the dataset the policy was pretrained on; it decides the task."""
    seed: int = 0
    """Of the one generator everything random is drawn from."""
    iterations: int = 500
    """Iterations of the algorithm, T."""
    algorithm: GRPOConfig | PPOConfig | QGuidedConfig | ODTConfig | ODTTD3Config | IQLConfig | PretrainedConfig
    """Which method, and its hyperparameters."""
    evaluate_every: int = 10
    """Iterations between evaluations; the last iteration is always evaluated."""
    evaluation_episodes: int = 20
    """Episodes an evaluation, with mean actions, asking for the algorithm's `return_to_go`."""
    checkpoint_every: int = 10
    """Iterations between checkpoints; the most that a power cut loses."""
    threads: int = 1
    """CPU threads for the physics. Results do not depend on it."""
    network_threads: int = 1
    """CPU threads for the network. Small networks are slower with more than one."""

    def __post_init__(self) -> None:
        names = ("evaluate_every", "evaluation_episodes", "checkpoint_every", "threads", "network_threads")
        _check_counts(self, *names)


def _check_counts(config: PretrainConfig | FinetuneConfig, *names: str) -> None:
    """Refuses counts below 1, a negative number of iterations, and seeds the generator does not take."""
    for name, least in (("iterations", 0), *((name, 1) for name in names)):
        if getattr(config, name) < least:
            raise ConfigError(f"{name} must be at least {least}, got {getattr(config, name)}")
    if not 0 <= config.seed < 2**63:
        raise ConfigError(f"seed must be in [0, 2^63), got {config.seed}")


# --- Table 6: GRPO-DT ------------------------------------------------------------------------------------------


def _grpo(
    n_batch: int, c_offline: int, c_online: int, g_online: int, L_traj: int, L_eval: int, gamma: float,
    epsilon: float, delta_r: float, lr_policy: float, kappa_initial: float,
) -> tuple[int, GRPOConfig]:  # fmt: skip
    """A row of Table 6; Table 5 and App. B.1 are the defaults of the two classes."""
    update = UpdateConfig(learning_rate=lr_policy, clip_range=epsilon, entropy_coef=kappa_initial)
    return c_offline, GRPOConfig(
        batch_size=n_batch, context_length=c_online, return_to_go=float(g_online), subtrajectory_length=L_traj,
        lookahead_length=L_eval, gamma=gamma, return_margin=delta_r, update=update,
    )  # fmt: skip


# fmt: off
TABLE_6 = {
    #                               n_batch c_off c_on g_online L_traj L_eval    γ    ε  Δ_r    lr     κ
    "hopper-medium-v2":          _grpo(256, 20, 1,  7200, 15, 400, 0.995, 0.2, 2.0, 5e-5, 0.20),
    "hopper-medium-replay-v2":   _grpo(256, 20, 1,  7200, 15, 400, 0.995, 0.2, 2.0, 5e-5, 0.20),
    "hopper-random-v2":          _grpo(256, 20, 1,  7200, 15, 400, 0.995, 0.2, 2.0, 5e-5, 0.20),
    "walker2d-medium-v2":        _grpo(256, 20, 1, 10000, 15, 400, 0.995, 0.3, 2.0, 5e-5, 0.04),
    "walker2d-medium-replay-v2": _grpo(256, 20, 1, 10000, 15, 400, 0.995, 0.3, 2.0, 5e-5, 0.04),
    "walker2d-random-v2":        _grpo(256, 20, 1, 10000, 15, 400, 0.995, 0.3, 2.0, 5e-5, 0.20),
    "ant-medium-v2":             _grpo(256, 20, 1, 12000, 15, 200, 0.995, 0.3, 2.0, 5e-5, 0.04),
    "ant-medium-replay-v2":      _grpo(256, 20, 1, 12000, 15, 200, 0.995, 0.3, 2.0, 5e-5, 0.04),
    "ant-random-v2":             _grpo(256, 20, 1, 12000, 15, 200, 0.995, 0.3, 2.0, 5e-5, 0.20),
}
# fmt: on


# --- Table 7: PPO-DT -------------------------------------------------------------------------------------------


def _ppo(
    n_batch: int, c_offline: int, c_online: int, g_online: int, K_ppo: int, lr_policy: float, lr_value: float,
    kappa_initial: float,
) -> tuple[int, PPOConfig]:  # fmt: skip
    """A row of Table 7; its caption and Table 5 are the defaults of the two classes."""
    update = UpdateConfig(ratio="token", learning_rate=lr_policy, clip_range=0.2, entropy_coef=kappa_initial)
    return c_offline, PPOConfig(
        batch_size=n_batch, context_length=c_online, return_to_go=float(g_online), episodes_per_iteration=K_ppo,
        replay_capacity=4 * K_ppo, value_learning_rate=lr_value, update=update,
    )  # fmt: skip


# fmt: off
TABLE_7 = {
    #                              n_batch c_off c_on g_online K_ppo   lr  lr_value  κ
    "hopper-medium-v2":          _ppo(256, 20, 1,  7200, 8, 5e-5, 1e-3, 0.02),
    "hopper-medium-replay-v2":   _ppo(256, 20, 1,  7200, 8, 5e-5, 1e-3, 0.02),
    "hopper-random-v2":          _ppo(256, 20, 1,  7200, 8, 5e-5, 1e-3, 0.04),
    "walker2d-medium-v2":        _ppo(256, 20, 1, 10000, 8, 5e-5, 1e-3, 0.02),
    "walker2d-medium-replay-v2": _ppo(256, 20, 1, 10000, 8, 5e-5, 1e-3, 0.02),
    "walker2d-random-v2":        _ppo(256, 20, 1, 10000, 8, 5e-5, 1e-3, 0.20),
    "ant-medium-v2":             _ppo(256, 20, 1, 12000, 8, 5e-5, 1e-3, 0.02),
    "ant-medium-replay-v2":      _ppo(256, 20, 1, 12000, 8, 5e-5, 1e-3, 0.02),
    "ant-random-v2":             _ppo(256, 20, 1, 12000, 8, 5e-5, 1e-3, 0.02),
}
# fmt: on


# --- Pretraining: Table 5, with the learning rates and lengths of Yan et al. (2024), Table 9 ----------------------

_PRETRAINING = {"hopper": (1e-4, 5_000), "walker2d": (1e-3, 10_000), "ant": (1e-3, 5_000)}
"""Learning rate and gradient steps, by the first word of the dataset's name."""

_RANDOM_EPISODES = {"hopper": 44_000, "walker2d": 46_000, "ant": 5_500}
"""Episodes of random actions that make about the million steps of D4RL's random datasets."""

# --- Fig. 4a: Reinformer (Zhuang et al., 2024), with its authors' sizes and pretraining ------------------------------

REINFORMER_MODEL = ModelConfig(layers=4, heads=8, width=256)
REINFORMER_CONTEXT = 5
REINFORMER_PRETRAINING = SupervisedConfig(
    context_length=REINFORMER_CONTEXT, learning_rate=1e-4, warmup_updates=5_000, grad_norm_clip=0.25
)

# --- Scale `small`: what departs from the page so that a CPU learns in minutes ------------------------------------

SMALL_MODEL = ModelConfig(layers=2, width=64)


def _small_pretraining(config: SupervisedConfig) -> SupervisedConfig:
    return replace(
        config, optimizer="adamw", learning_rate=1e-3, warmup_updates=100, batch_size=64, updates_per_iteration=50
    )


SMALL_PRETRAINING_ITERATIONS = 8


def _small_odt(config: ODTConfig) -> ODTConfig:
    before = _small_pretraining(config.update)
    return baselines.small_odt(config, before, SMALL_PRETRAINING_ITERATIONS * before.updates_per_iteration)


def _small_grpo(config: GRPOConfig, iterations: int) -> GRPOConfig:
    update = replace(
        config.update, optimizer="adamw", learning_rate=4e-4, final_learning_rate=4e-5, decay_updates=16 * iterations,
        ratio="token", clip_range=0.2, entropy_coef=0.03,
    )  # fmt: skip
    return replace(
        config, episodes_per_iteration=4, replay_capacity=16, reset_points=1, group_size=4, subtrajectory_length=10,
        mirrored=True, lookahead_length=250, lookahead_noise=0.5, return_margin=0.0, subtrajectory_capacity=256,
        batch_size=32, passes=2, update=update,
    )  # fmt: skip


def _small_ppo(config: PPOConfig, iterations: int) -> PPOConfig:
    update = replace(
        config.update, optimizer="adamw", learning_rate=3e-4, decay_updates=20 * iterations,
        entropy_coef=0.015,
    )  # fmt: skip
    return replace(config, updates_per_iteration=20, value_scale=100.0, update=update)


@dataclass(frozen=True, kw_only=True)
class Method:
    """The presets of a method."""

    paper: Callable[[str], Any]
    """Gives its config for a dataset."""
    small: Callable[[Any, int], Any]
    """Makes of that the config of so many iterations at scale `small`."""
    iterations: int = 500
    """At scale `paper`."""
    small_iterations: int
    """At scale `small`."""
    small_threads: int = 1
    """For the physics, at scale `small`."""
    small_evaluate_every: int = 20
    """Iterations between evaluations and checkpoints, at scale `small`."""


METHODS = {
    "grpo": Method(  # two threads: the second core is idle once PPO-DT beside it is done
        paper=lambda dataset: TABLE_6[dataset][1], small=_small_grpo, small_iterations=560, small_threads=2,
        small_evaluate_every=40,
    ),
    "ppo": Method(paper=lambda dataset: TABLE_7[dataset][1], small=_small_ppo, small_iterations=500),
    "q_guided": Method(
        paper=lambda dataset: guided.q_guided(dataset, TABLE_6[dataset][1]),
        small=guided.small_q_guided,
        small_iterations=250,
    ),
    "odt": Method(paper=baselines.odt, small=lambda config, _: _small_odt(config), small_iterations=150),
    "odt_td3": Method(
        paper=guided.odt_td3, small=lambda config, _: guided.small_odt_td3(config, _small_odt), small_iterations=100
    ),
    "iql": Method(paper=baselines.iql, small=lambda config, _: baselines.small_iql(config), small_iterations=80),
    "dt": Method(paper=baselines.pretrained, small=lambda config, _: config, iterations=0, small_iterations=0),
}


def pretraining(dataset: str, scale: Scale, seed: int = 0, architecture: Architecture = "dt") -> PretrainConfig:
    """The pretraining run of a dataset.

    Raises:
        ConfigError: if there is no preset for it.
    """
    c_offline, grpo = _row(TABLE_6, dataset)
    task = dataset.split("-")[0]
    rate, updates = _PRETRAINING[task]
    reinformer = architecture == "reinformer"
    algorithm = SupervisedConfig(context_length=c_offline, learning_rate=rate)
    if reinformer:
        algorithm, updates = REINFORMER_PRETRAINING, 50_000
    config = PretrainConfig(
        dataset=dataset,
        seed=seed,
        iterations=updates // algorithm.updates_per_iteration,
        random_episodes=_RANDOM_EPISODES[task] if scale == "paper" else 1000,
        architecture=architecture,
        model=REINFORMER_MODEL if reinformer else ModelConfig(),
        algorithm=algorithm,
        return_to_go=grpo.return_to_go,
    )
    if scale == "paper":
        return config
    return replace(
        config, model=SMALL_MODEL, algorithm=_small_pretraining(algorithm), iterations=SMALL_PRETRAINING_ITERATIONS
    )


def finetuning(method: str, dataset: str, scale: Scale, architecture: Architecture = "dt") -> FinetuneConfig:
    """The finetuning run of a method on a dataset; a Reinformer keeps its own context, and nothing else differs.

    Raises:
        ConfigError: if there is no such method, or no preset for the dataset.
    """
    if method not in METHODS:
        raise ConfigError(f"there is no method {method!r}: choose one of {', '.join(METHODS)}")
    _row(TABLE_6, dataset)
    chosen = METHODS[method]
    config = chosen.paper(dataset)
    if architecture == "reinformer" and "context_length" in vars(config):
        config = replace(config, context_length=REINFORMER_CONTEXT)
    if scale == "paper":
        return FinetuneConfig(dataset=dataset, algorithm=config, iterations=chosen.iterations)
    return FinetuneConfig(
        dataset=dataset,
        algorithm=chosen.small(config, chosen.small_iterations),
        iterations=chosen.small_iterations,
        evaluate_every=chosen.small_evaluate_every,
        checkpoint_every=chosen.small_evaluate_every,
        threads=chosen.small_threads,
    )


def _row(table: dict, dataset: str) -> tuple:
    if dataset not in table:
        raise ConfigError(f"there is no preset for {dataset!r}: choose one of {', '.join(table)}")
    return table[dataset]
