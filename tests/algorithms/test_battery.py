"""What every algorithm keeps: a new one is one line in `learners.LEARNERS`."""

import math
import re
from dataclasses import MISSING, fields

import pytest
import torch
from learners import (
    LEARNERS,
    Witness,
    decision_transformer,
    grpo,
    iql,
    mean_return,
    odt,
    odt_td3,
    parameters,
    ppo,
    q_guided,
    same_state,
    supervised,
)
from pointmass import PointMass, TinyPolicy

from dtune.algorithms.grpo import GRPOConfig
from dtune.algorithms.iql import IQLConfig
from dtune.algorithms.odt import ODTConfig
from dtune.algorithms.odt_td3 import ODTTD3Config
from dtune.algorithms.ppo import PPOConfig
from dtune.algorithms.pretrained import PretrainedConfig
from dtune.algorithms.q_guided import QGuidedConfig
from dtune.algorithms.supervised import SupervisedConfig
from dtune.algorithms.td3 import CriticConfig
from dtune.algorithms.update import UpdateConfig
from dtune.envs.collect import collect_episodes
from dtune.errors import ConfigError, DataError, DtuneError, SimulatorError
from dtune.experiments import checkpoint
from dtune.experiments.loading import load_dataset
from dtune.experiments.loop import Schedule
from dtune.experiments.presets import FinetuneConfig, PretrainConfig
from dtune.models.policy import at_context

every = pytest.mark.parametrize("name", LEARNERS)
both_contexts = pytest.mark.parametrize(
    ("name", "context_length"),
    [(name, length) for name in LEARNERS for length in ((1, 5) if LEARNERS[name].remembers else (1,))],
)


@both_contexts
def test_iterates(name, context_length):
    algorithm = LEARNERS[name](context_length)
    before = parameters(algorithm.policy)
    first = algorithm.iterate(PointMass())
    middle = parameters(algorithm.policy)
    second = algorithm.iterate(PointMass())
    assert algorithm.policy.context_length == context_length
    assert not middle.equal(before)
    assert not parameters(algorithm.policy).equal(middle)
    assert first.keys() == second.keys()
    assert all(isinstance(value, int | float) and math.isfinite(value) for value in (*first.values(), *second.values()))
    assert {key.split("/")[0] for key in first} <= {"train", "rollout", "count"}
    kept = {"train/entropy", "train/entropy_coef", "train/grad_norm", "train/learning_rate"}
    assert kept <= first.keys() if LEARNERS[name].constrained else "train/entropy_coef" not in first
    assert second["count/gradient_steps"] > first["count/gradient_steps"] > 0


@both_contexts
def test_the_same_seed_gives_the_same_bits(name, context_length):
    states, rows = [], []
    for undisturbed in (0, 1):
        torch.manual_seed(undisturbed)  # the global generator must not matter
        algorithm, simulator = LEARNERS[name](context_length, seed=3), PointMass(box=1.3)
        rows.append([algorithm.iterate(simulator) for _ in range(3)])
        states.append(algorithm.state_dict())
    assert same_state(*states)
    assert rows[0] == rows[1]


@every
def test_another_seed_gives_others(name):
    drawn = []
    for seed in (0, 1):
        algorithm = LEARNERS[name]()  # the same network
        algorithm.generator.manual_seed(seed)
        algorithm.iterate(PointMass())
        drawn.append(parameters(algorithm.policy))
    assert not drawn[0].equal(drawn[1])


@pytest.mark.parametrize(
    ("name", "context_length", "optimizer"),
    [
        (name, *options)
        for name in LEARNERS
        for options in ([(1, "adamw"), (5, "adamw"), (1, "lamb")] if LEARNERS[name].remembers else [(1, "adam")])
    ],
)
def test_a_saved_run_goes_on_as_if_never_interrupted(name, context_length, optimizer, tmp_path):
    def make(seed):
        return LEARNERS[name](context_length, seed=seed, **LEARNERS[name].with_optimizer(optimizer))

    undisturbed, simulator = make(0), PointMass(box=1.3)
    for iteration in range(5):  # the reference is copied after the fourth: it lags behind the policy at the cut
        if iteration == 2:
            path = checkpoint.save(tmp_path, iteration, {"algorithm": undisturbed.state_dict()})
        expected = undisturbed.iterate(simulator)
    continued, simulator = make(7), PointMass(box=1.3)
    continued.iterate(simulator)  # whatever it was before, and drew before
    continued.load_state_dict(checkpoint.load(path)["algorithm"])
    for _ in range(3):
        got = continued.iterate(simulator)
    assert got == expected
    assert same_state(continued.state_dict(), undisturbed.state_dict())


@every
def test_a_run_can_go_back_to_its_very_start(name, tmp_path):
    algorithm = LEARNERS[name]()
    path = checkpoint.save(tmp_path, 0, {"algorithm": algorithm.state_dict()})
    first = algorithm.iterate(PointMass())
    algorithm.iterate(PointMass())
    algorithm.load_state_dict(checkpoint.load(path)["algorithm"])
    assert algorithm.iterate(PointMass()) == first


@both_contexts
def test_learns_to_walk_to_the_origin(name, context_length):
    algorithm, simulator = LEARNERS[name](context_length, seed=1), PointMass()
    assert mean_return(algorithm.policy) < -15
    for _ in range(LEARNERS[name].iterations):
        algorithm.iterate(simulator)
    assert mean_return(algorithm.policy) > -6


@every
@pytest.mark.parametrize("faults", [{}, {1: 4, 40: 19}], ids=["sound", "faulty"])
def test_counts_every_step_the_world_took(name, faults):
    algorithm = LEARNERS[name](**LEARNERS[name].many_walks)
    simulator = Witness(box=1.2, faults=faults)
    for _ in range(2):
        row = algorithm.iterate(simulator)
    sampled = algorithm.config.subtrajectory_length if name.startswith("grpo") else 0
    expected = {
        "count/env_steps_trajectories": sum(int(walk.steps.sum()) for walk in simulator.collected),
        "count/env_steps_subtrajectories": sum(int(walk.steps[:sampled].sum()) for walk in simulator.grown),
        "count/env_steps_lookahead": sum(int(walk.steps[sampled:].sum()) for walk in simulator.grown),
        "count/env_steps": sum(simulator.stepped),
    }
    assert {key: row[key] for key in expected} == expected
    assert (row["count/env_steps"] > 0) == bool(LEARNERS[name].many_walks)


@every
def test_leaves_the_policy_without_dropout(name):
    algorithm = LEARNERS[name]()
    algorithm.iterate(PointMass())
    assert not algorithm.policy.training


@pytest.mark.parametrize("make", [supervised, odt, odt_td3, q_guided, iql], ids=lambda make: make.__name__)
@pytest.mark.parametrize(("observed", "acted"), [(3, 2), (2, 1)])
def test_refuses_data_of_other_sizes(make, observed, acted, monkeypatch):
    columns = {"observations": torch.zeros(8, observed), "actions": torch.zeros(8, acted), "rewards": torch.ones(8)}
    ends = {"terminals": torch.arange(8) == 7, "timeouts": torch.zeros(8, dtype=torch.bool)}
    monkeypatch.setattr("learners.walks_home", lambda: load_dataset({**columns, **ends}))
    changes = {} if make is iql else {"policy": decision_transformer}
    with pytest.raises(DataError, match=rf"observations of {observed} and actions of {acted} numbers where 2 and 2"):
        make(**changes)


def test_refuses_a_world_in_which_one_cannot_go_back():
    world = PointMass()
    with pytest.raises(SimulatorError, match=r"has no snapshot and restore.*or use PPO-DT or Q-guided GRPO-DT"):
        LEARNERS["grpo"]().iterate(OneWay(world))
    with pytest.raises(SimulatorError, match="has no snapshot and restore"):
        collect_episodes(LEARNERS["grpo"]().policy, OneWay(world), 2, -3.0, torch.Generator(), snapshots=True)
    assert LEARNERS["ppo"]().iterate(OneWay(world))


class OneWay:
    """A simulator that can only go forwards."""

    def __init__(self, world: PointMass):
        self.observation_dim, self.action_dim, self.horizon = world.observation_dim, world.action_dim, world.horizon
        self.reset, self.step, self.keep = world.reset, world.step, world.keep


class Strict(TinyPolicy):
    """Takes the protocol at its word: no window is longer than the context it was told of."""

    def forward(self, context):
        assert context.mask.shape[1] <= self.context_length
        return super().forward(context)


@pytest.mark.parametrize("context_length", [1, 3])
@pytest.mark.parametrize("make", [grpo, ppo, q_guided, odt, odt_td3, supervised], ids=lambda make: make.__name__)
def test_windows_are_never_longer_than_the_policy_was_told(make, context_length):
    longer = {odt: {"update": {"context_length": 6}}, odt_td3: {"update": {"context_length": 6}}}
    algorithm = make(context_length, policy=Strict, **longer.get(make, {}))
    for _ in range(2):
        algorithm.iterate(PointMass())
        assert algorithm.policy.context_length == context_length


class BreaksOnce(Witness):
    """Its first episode breaks, late."""

    def reset(self, count, generator):
        self.faults = {} if self.walks else {0: 180}
        return super().reset(count, generator)


@pytest.mark.parametrize("make", [grpo, ppo, q_guided, odt, odt_td3, iql], ids=lambda make: make.__name__)
def test_one_broken_episode_is_not_the_end(make):
    alone = {} if make is iql else {"episodes_per_iteration": 1}
    algorithm, simulator = make(**alone), BreaksOnce(horizon=200)
    row = algorithm.iterate(simulator)
    assert row["rollout/faulty"] == 1
    assert row["count/env_steps_trajectories"] >= 181


def test_a_policy_is_told_its_own_context_again_whatever_happens():
    policy, told = TinyPolicy(3, seed=0), []

    def interrupted():
        with at_context(policy, 7):
            told.append(policy.context_length)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert (told, policy.context_length) == ([7], 3)


NUMBERS = [
    (GRPOConfig, "collection_interval", 0),
    (GRPOConfig, "group_size", 1),
    (GRPOConfig, "lookahead_length", -1),
    (GRPOConfig, "return_margin", -0.5),
    (GRPOConfig, "return_margin", math.nan),
    (GRPOConfig, "gamma", 0.0),
    (GRPOConfig, "gamma", 1.01),
    (GRPOConfig, "gamma", math.nan),
    (GRPOConfig, "context_length", 0),
    (GRPOConfig, "episodes_per_iteration", 0),
    (GRPOConfig, "replay_capacity", 0),
    (GRPOConfig, "reset_trajectories", 0),
    (GRPOConfig, "reset_points", 0),
    (GRPOConfig, "subtrajectory_length", 0),
    (GRPOConfig, "subtrajectory_capacity", 0),
    (GRPOConfig, "batch_size", 0),
    (GRPOConfig, "passes", 0),
    (GRPOConfig, "reset_selection", "actve"),
    (GRPOConfig, "reset_context", "none"),
    (GRPOConfig, "lookahead_dtype", "float16"),
    (GRPOConfig, "advantage_scale", "all"),
    (GRPOConfig, "baseline", "median"),
    (GRPOConfig, "lookahead_noise", -0.5),
    (GRPOConfig, "lookahead_noise", math.inf),
    (PPOConfig, "context_length", 0),
    (PPOConfig, "episodes_per_iteration", -2),
    (PPOConfig, "replay_capacity", 0),
    (PPOConfig, "window_length", 0),
    (PPOConfig, "updates_per_iteration", 0),
    (PPOConfig, "batch_size", 1),
    (PPOConfig, "gamma", 0.0),
    (PPOConfig, "gamma", math.nan),
    (PPOConfig, "gae_lambda", 1.1),
    (PPOConfig, "gae_lambda", -0.1),
    (PPOConfig, "value_learning_rate", 0.0),
    (PPOConfig, "value_learning_rate", math.nan),
    (PPOConfig, "value_width", 0),
    (PPOConfig, "value_scale", -1.0),
    (ODTConfig, "context_length", 0),
    (ODTConfig, "episodes_per_iteration", 0),
    (ODTConfig, "min_steps", -1),
    (ODTConfig, "replay_capacity", 0),
    (ODTConfig, "pretraining_updates", -1),
    (PretrainedConfig, "context_length", 0),
    (IQLConfig, "expectile", 0.0),
    (IQLConfig, "expectile", 1.0),
    (IQLConfig, "expectile", math.nan),
    (IQLConfig, "inverse_temperature", -1.0),
    (IQLConfig, "gamma", 1.01),
    (IQLConfig, "polyak", 0.0),
    (IQLConfig, "polyak", math.nan),
    (IQLConfig, "learning_rate", 0.0),
    (IQLConfig, "learning_rate", math.nan),
    (IQLConfig, "batch_size", 0),
    (IQLConfig, "width", 0),
    (IQLConfig, "replay_capacity", 0),
    (IQLConfig, "pretraining_updates", -1),
    (IQLConfig, "updates_per_offline_iteration", 0),
    (IQLConfig, "episodes_at_once", 0),
    (IQLConfig, "updates_per_step", -1),
    (IQLConfig, "min_steps", 0),
    (IQLConfig, "reward_scaling", "some"),
    (IQLConfig, "reward_shift", math.nan),
    (QGuidedConfig, "context_length", 0),
    (QGuidedConfig, "episodes_per_iteration", 0),
    (QGuidedConfig, "replay_capacity", 0),
    (QGuidedConfig, "state_trajectories", 0),
    (QGuidedConfig, "states", 0),
    (QGuidedConfig, "action_capacity", 0),
    (QGuidedConfig, "batch_size", 0),
    (QGuidedConfig, "passes", 0),
    (QGuidedConfig, "critic_updates", 0),
    (QGuidedConfig, "critic_batch_size", 0),
    (QGuidedConfig, "critic_replay_capacity", 0),
    (QGuidedConfig, "group_size", 1),
    (QGuidedConfig, "return_margin", -0.5),
    (QGuidedConfig, "return_margin", math.nan),
    (QGuidedConfig, "state_selection", "actve"),
    (QGuidedConfig, "value", "mean"),
    (QGuidedConfig, "advantage_scale", "all"),
    (QGuidedConfig, "critic_returns_to_go", "achieved"),
    (ODTTD3Config, "context_length", 0),
    (ODTTD3Config, "episodes_per_iteration", 0),
    (ODTTD3Config, "replay_capacity", 0),
    (ODTTD3Config, "min_steps", -1),
    (ODTTD3Config, "pretraining_updates", -1),
    (ODTTD3Config, "exploration_noise", -0.1),
    (ODTTD3Config, "rl_coef", math.nan),
    (ODTTD3Config, "supervised_coef", -1.0),
    (CriticConfig, "width", 0),
    (CriticConfig, "learning_rate", math.nan),
    (CriticConfig, "weight_decay", -0.01),
    (CriticConfig, "gamma", 1.01),
    (CriticConfig, "gamma", math.nan),
    (CriticConfig, "polyak", 0.0),
    (CriticConfig, "polyak", 1.5),
    (CriticConfig, "policy_interval", 0),
    (CriticConfig, "smoothing_std", -0.2),
    (CriticConfig, "smoothing_limit", math.nan),
    (CriticConfig, "reward_scale", 0.0),
    (CriticConfig, "reward_shift", math.inf),
    (CriticConfig, "offline_updates", -1),
    (SupervisedConfig, "context_length", 0),
    (SupervisedConfig, "batch_size", 0),
    (SupervisedConfig, "updates_per_iteration", 0),
    (SupervisedConfig, "learning_rate", 0.0),
    (SupervisedConfig, "learning_rate", math.nan),
    (SupervisedConfig, "grad_norm_clip", -0.5),
    (SupervisedConfig, "entropy_coef", 0.0),
    (SupervisedConfig, "entropy_coef_learning_rate", -1e-4),
    (SupervisedConfig, "warmup_updates", -1),
    (SupervisedConfig, "weight_decay", -1e-4),
    (SupervisedConfig, "optimizer", "lmb"),
    (SupervisedConfig, "return_expectile", 1.0),
    (UpdateConfig, "learning_rate", 0.0),
    (UpdateConfig, "learning_rate", -5e-5),
    (UpdateConfig, "learning_rate", math.nan),
    (UpdateConfig, "clip_range", 0.0),
    (UpdateConfig, "clip_range", 1.0),
    (UpdateConfig, "clip_range_high", 0.0),
    (UpdateConfig, "clip_range_high", math.nan),
    (UpdateConfig, "grad_norm_clip", 0.0),
    (UpdateConfig, "entropy_coef", 0.0),
    (UpdateConfig, "entropy_coef_learning_rate", -1e-4),
    (UpdateConfig, "kl_coef", -1e-3),
    (UpdateConfig, "weight_decay", -1e-4),
    (UpdateConfig, "decay_updates", -1),
    (UpdateConfig, "final_learning_rate", -1e-5),
    (UpdateConfig, "reference_sync_interval", 0),
    (UpdateConfig, "ratio", "sequnce"),
    (UpdateConfig, "optimizer", "adam"),
]


@pytest.mark.parametrize(
    ("config", "name", "value"), NUMBERS, ids=[f"{c.__name__}-{name}={value}" for c, name, value in NUMBERS]
)
def test_refuses_settings_that_make_no_sense(config, name, value):
    needed = {} if config in (CriticConfig, SupervisedConfig, UpdateConfig) else {"return_to_go": 1.0}
    sensible = config(**needed)
    object.__setattr__(sensible, name, value)  # the tests' type checker would refuse some values before us
    with pytest.raises(ConfigError) as refusal:
        sensible.__post_init__()
    sentence = str(refusal.value)
    assert name in sentence
    assert str(value) in sentence
    assert len(sentence.split()) >= 6
    assert isinstance(refusal.value, DtuneError)


CONFIGS = sorted({config for config, _, _ in NUMBERS}, key=lambda config: config.__name__)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("config", [*CONFIGS, Schedule, FinetuneConfig, PretrainConfig])
def test_no_setting_may_be_nan_or_infinite(config, value):
    given = {field.name: value for field in fields(config) if re.search(r"\bfloat\b", str(field.type))}
    assert given or config is PretrainedConfig
    for name in given:
        sensible = object.__new__(config)
        for field in fields(config):
            default = field.default if field.default is not MISSING else 1
            object.__setattr__(sensible, field.name, default if field.default_factory is MISSING else None)
        object.__setattr__(sensible, name, value)
        with pytest.raises(ConfigError, match=rf"{name} must be a finite number, got {value}"):
            sensible.__post_init__()


@pytest.mark.parametrize("config", [GRPOConfig, QGuidedConfig])
def test_mirrored_members_come_in_pairs(config):
    with pytest.raises(ConfigError, match=r"group_size must be even, got 5"):
        config(return_to_go=1.0, group_size=5, mirrored=True)
