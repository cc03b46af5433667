"""The presets against the paper's Tables 5, 6 and 7, typed here a second time."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from shared import shared

from dtune.algorithms.grpo import GRPO, GRPOConfig
from dtune.algorithms.ppo import PPO, PPOConfig
from dtune.algorithms.supervised import SupervisedConfig
from dtune.algorithms.update import UpdateConfig
from dtune.envs.tasks import DATASETS, task_info
from dtune.errors import ConfigError
from dtune.experiments import small
from dtune.experiments.presets import (
    METHODS,
    TABLE_6,
    TABLE_7,
    FinetuneConfig,
    ModelConfig,
    PretrainConfig,
    finetuning,
    pretraining,
)
from dtune.models.critics import ValueNetwork
from dtune.models.decision_transformer import DecisionTransformer, DecisionTransformerConfig
from dtune.models.lamb import Lamb

COLUMNS_6 = [
    "n_batch", "c_offline", "c_online", "g_online", "L_traj", "L_eval",
    "gamma", "epsilon", "delta_r", "lr_policy", "kappa_initial",
]  # fmt: skip
ROWS_6 = {
    "hopper-medium-v2": [256, 20, 1, 7200, 15, 400, 0.995, 0.2, 2.0, 5e-05, 0.2],
    "hopper-medium-replay-v2": [256, 20, 1, 7200, 15, 400, 0.995, 0.2, 2.0, 5e-05, 0.2],
    "hopper-random-v2": [256, 20, 1, 7200, 15, 400, 0.995, 0.2, 2.0, 5e-05, 0.2],
    "walker2d-medium-v2": [256, 20, 1, 10000, 15, 400, 0.995, 0.3, 2.0, 5e-05, 0.04],
    "walker2d-medium-replay-v2": [256, 20, 1, 10000, 15, 400, 0.995, 0.3, 2.0, 5e-05, 0.04],
    "walker2d-random-v2": [256, 20, 1, 10000, 15, 400, 0.995, 0.3, 2.0, 5e-05, 0.2],
    "ant-medium-v2": [256, 20, 1, 12000, 15, 200, 0.995, 0.3, 2.0, 5e-05, 0.04],
    "ant-medium-replay-v2": [256, 20, 1, 12000, 15, 200, 0.995, 0.3, 2.0, 5e-05, 0.04],
    "ant-random-v2": [256, 20, 1, 12000, 15, 200, 0.995, 0.3, 2.0, 5e-05, 0.2],
    "door-cloned-v1": [512, 5, 1, 3000, 10, 100, 0.99, 0.3, 0.5, 3e-05, 0.1],
    "door-human-v1": [512, 5, 1, 3000, 10, 100, 0.99, 0.3, 0.4, 3e-05, 0.04],
    "pen-cloned-v1": [512, 5, 1, 6000, 3, 30, 0.99, 0.3, 0, 3e-05, 0.02],
    "pen-human-v1": [512, 5, 1, 6000, 3, 30, 0.99, 0.3, 0, 3e-05, 0.02],
    "hammer-cloned-v1": [512, 5, 5, 4000, 10, 100, 0.99, 0.3, 0, 3e-05, 0.05],
    "hammer-human-v1": [512, 5, 5, 4000, 10, 100, 0.99, 0.3, 0.8, 3e-05, 0.05],
    "antmaze-umaze-v2": [256, 5, 1, 2, 10, 200, 1.0, 0.2, 0, 5e-05, 0.05],
    "antmaze-umaze-diverse-v2": [256, 1, 5, 2, 10, 200, 1.0, 0.2, 0, 5e-05, 0.05],
}
COLUMNS_7 = [
    "n_batch", "c_offline", "c_online", "g_online", "K_ppo", "lr_policy",
    "lr_value", "kappa_initial", "epsilon", "gamma", "gae_lambda",
]  # fmt: skip
ROWS_7 = {
    "hopper-medium-v2": [256, 20, 1, 7200, 8, 5e-05, 0.001, 0.02, 0.2, 0.99, 0.95],
    "hopper-medium-replay-v2": [256, 20, 1, 7200, 8, 5e-05, 0.001, 0.02, 0.2, 0.99, 0.95],
    "hopper-random-v2": [256, 20, 1, 7200, 8, 5e-05, 0.001, 0.04, 0.2, 0.99, 0.95],
    "walker2d-medium-v2": [256, 20, 1, 10000, 8, 5e-05, 0.001, 0.02, 0.2, 0.99, 0.95],
    "walker2d-medium-replay-v2": [256, 20, 1, 10000, 8, 5e-05, 0.001, 0.02, 0.2, 0.99, 0.95],
    "walker2d-random-v2": [256, 20, 1, 10000, 8, 5e-05, 0.001, 0.2, 0.2, 0.99, 0.95],
    "ant-medium-v2": [256, 20, 1, 12000, 8, 5e-05, 0.001, 0.02, 0.2, 0.99, 0.95],
    "ant-medium-replay-v2": [256, 20, 1, 12000, 8, 5e-05, 0.001, 0.02, 0.2, 0.99, 0.95],
    "ant-random-v2": [256, 20, 1, 12000, 8, 5e-05, 0.001, 0.02, 0.2, 0.99, 0.95],
    "door-cloned-v1": [512, 5, 1, 3000, 16, 3e-05, 0.0002, 0.002, 0.2, 0.99, 0.95],
    "door-human-v1": [512, 5, 1, 3000, 16, 3e-05, 0.0002, 0.002, 0.2, 0.99, 0.95],
    "pen-cloned-v1": [512, 5, 1, 6000, 8, 3e-05, 0.0002, 0.04, 0.2, 0.99, 0.95],
    "pen-human-v1": [512, 5, 1, 6000, 8, 3e-05, 0.0002, 0.04, 0.2, 0.99, 0.95],
    "hammer-cloned-v1": [512, 5, 5, 4000, 16, 3e-05, 0.0002, 0.005, 0.2, 0.99, 0.95],
    "hammer-human-v1": [512, 5, 5, 4000, 16, 3e-05, 0.0002, 0.005, 0.2, 0.99, 0.95],
    "antmaze-umaze-v2": [256, 5, 1, 2, 8, 5e-05, 0.001, 0.02, 0.2, 0.99, 0.95],
    "antmaze-umaze-diverse-v2": [256, 1, 5, 2, 8, 5e-05, 0.001, 0.02, 0.2, 0.99, 0.95],
}
NAMES = list(ROWS_6)
ADROIT, MAZE = ("door", "pen", "hammer"), ("antmaze",)


def block(dataset: str) -> str:
    """Which block of Table 1 a dataset is of: what Table 5 and App. B.1 give for it alone."""
    return dataset.split("-")[0]


def table_6_row(dataset: str) -> dict[str, float]:
    """What the preset says, under the paper's symbols."""
    config = finetuning("grpo", dataset, "paper").algorithm
    assert isinstance(config, GRPOConfig)
    return {
        "n_batch": config.batch_size,
        "c_offline": pretraining(dataset, "paper").algorithm.context_length,
        "c_online": config.context_length,
        "g_online": config.return_to_go,
        "L_traj": config.subtrajectory_length,
        "L_eval": config.lookahead_length,
        "gamma": config.gamma,
        "epsilon": config.update.clip_range,
        "delta_r": config.return_margin,
        "lr_policy": config.update.learning_rate,
        "kappa_initial": config.update.entropy_coef,
    }


def table_7_row(dataset: str) -> dict[str, float]:
    config = finetuning("ppo", dataset, "paper").algorithm
    assert isinstance(config, PPOConfig)
    return {
        "n_batch": config.batch_size,
        "c_offline": pretraining(dataset, "paper").algorithm.context_length,
        "c_online": config.context_length,
        "g_online": config.return_to_go,
        "K_ppo": config.episodes_per_iteration,
        "lr_policy": config.update.learning_rate,
        "lr_value": config.value_learning_rate,
        "kappa_initial": config.update.entropy_coef,
        "epsilon": config.update.clip_range,
        "gamma": config.gamma,
        "gae_lambda": config.gae_lambda,
    }


@pytest.mark.parametrize("dataset", NAMES)
def test_table_6(dataset):
    assert table_6_row(dataset) == dict(zip(COLUMNS_6, ROWS_6[dataset], strict=True))


@pytest.mark.parametrize("dataset", NAMES)
def test_table_7(dataset):
    assert table_7_row(dataset) == dict(zip(COLUMNS_7, ROWS_7[dataset], strict=True))


def test_every_row_of_the_tables_is_tested():
    assert list(TABLE_6) == list(TABLE_7) == list(ROWS_6) == list(ROWS_7)
    assert set(NAMES) == DATASETS.keys()
    assert all(DATASETS[name] == task_info(name).name for name in NAMES)


@pytest.mark.parametrize(("table", "row"), [("table6_grpo", table_6_row), ("table7_ppo", table_7_row)])
def test_the_tables_as_transcribed_elsewhere(table, row):
    folder = shared()
    if folder is None:
        pytest.skip("the paper's tables are not beside the repository")
    expected = read_flow_rows(folder / "paper" / "tables.yaml", table)
    assert expected.keys() == set(NAMES)
    for dataset in NAMES:
        assert row(dataset) == expected[dataset], dataset


def read_flow_rows(path: Path, table: str) -> dict[str, dict[str, float]]:
    """`name: {key: number, …}` lines under `table:`; PyYAML would be a dependency for two tables."""
    rows, inside = {}, False
    for line in path.read_text().splitlines():
        if not line.startswith(" "):
            inside = line.startswith(f"{table}:")
        elif inside and "{" in line:
            name, _, content = line.partition(":")
            pairs = (pair.split(":") for pair in content.strip(" {}").split(","))
            rows[name.strip()] = {key.strip(): float(value) for key, value in pairs}
    return rows


@pytest.mark.parametrize("dataset", NAMES)
def test_table_5_grpo(dataset):
    preset = finetuning("grpo", dataset, "paper")
    config = preset.algorithm
    assert isinstance(config, GRPOConfig)
    collected = 5 if block(dataset) in ADROIT else 1
    assert (config.episodes_per_iteration, config.replay_capacity, config.reset_trajectories) == (collected, 32, 16)
    assert (config.reset_points, config.group_size, config.subtrajectory_capacity) == (4, 8, 2048)
    assert config.passes * config.subtrajectory_capacity / config.batch_size == (4 if block(dataset) in ADROIT else 8)
    assert config.update.ratio == "sequence"
    assert not config.relabel
    assert config.shared_start
    assert config.reset_selection == "active"
    assert_common(config.update)


@pytest.mark.parametrize("dataset", NAMES)
def test_table_5_ppo(dataset):
    config = finetuning("ppo", dataset, "paper").algorithm
    assert isinstance(config, PPOConfig)
    assert config.replay_capacity == 4 * config.episodes_per_iteration
    assert config.updates_per_iteration == 8
    mujoco = block(dataset) not in ADROIT + MAZE
    assert (config.value_width, config.value_layer_norm) == ((256, False) if mujoco else (512, True))
    assert config.value_scale == 1
    assert config.update.ratio == "token"
    assert not config.relabel
    assert_common(config.update)


def assert_common(update: UpdateConfig):
    assert update.optimizer == "lamb"
    assert (update.grad_norm_clip, update.weight_decay, update.kl_coef) == (0.5, 1e-4, 1e-3)
    assert update.reference_sync_interval == 4
    assert update.target_entropy is None  # -dim(A)
    assert update.decay_updates == 0


@pytest.mark.parametrize("dataset", NAMES)
def test_table_5_pretraining(dataset):
    preset = pretraining(dataset, "paper")
    assert preset.model == ModelConfig(layers=4, heads=4, width=512, dropout=0.1)
    assert preset.return_to_go == ROWS_6[dataset][3]
    config = preset.algorithm
    assert (config.optimizer, config.grad_norm_clip, config.weight_decay) == ("lamb", 0.5, 1e-4)
    assert config.target_entropy is None
    own = {"hopper": (1e-4, 5000), "walker2d": (1e-3, 10_000), "ant": (1e-3, 5000)}
    rate, updates = own.get(block(dataset), (1e-4, 40_000))
    assert (config.learning_rate, preset.iterations * config.updates_per_iteration) == (rate, updates)


def test_defaults_are_table_5s_and_hoppers():
    """What a user gets who names no preset."""
    hopper_6, hopper_7 = (finetuning(method, "hopper-medium-v2", "paper").algorithm for method in ("grpo", "ppo"))
    assert GRPOConfig(return_to_go=7200.0) == hopper_6
    assert PPOConfig(return_to_go=7200.0) == hopper_7
    assert SupervisedConfig() == pretraining("hopper-medium-v2", "paper").algorithm
    config = DecisionTransformerConfig(observation_dim=11, action_dim=3)
    assert (config.layers, config.heads, config.width, config.dropout) == (4, 4, 512, 0.1)
    assert (config.context_length, config.return_scale) == (20, 0.001)


@pytest.mark.parametrize("dataset", NAMES)
@pytest.mark.parametrize("scale", ["paper", "small"])
def test_every_preset_builds(dataset, scale):
    before = pretraining(dataset, scale)
    assert before.dataset == dataset
    info = task_info(dataset)
    shape = DecisionTransformerConfig(
        observation_dim=info.observation_dim,
        action_dim=info.action_dim,
        context_length=before.algorithm.context_length,
        **vars(before.model if scale == "small" else replace(before.model, layers=1)),  # the layers are all alike
    )
    policy = DecisionTransformer(shape)
    for method, kind in (("grpo", GRPO), ("ppo", PPO)):
        preset = finetuning(method, dataset, scale)
        assert preset.dataset == dataset
        assert preset.iterations > 0
        algorithm = kind(policy, preset.algorithm, torch.Generator().manual_seed(0))
        assert policy.context_length == ROWS_6[dataset][2]
        assert algorithm.update.entropy_dual.target == -info.action_dim
        assert scale == "small" or isinstance(algorithm.update.optimizer, Lamb)


def test_the_small_scale_is_smaller():
    for name in NAMES:
        little, paper = pretraining(name, "small"), pretraining(name, "paper")
        assert little.model.layers * little.model.width**2 < paper.model.layers * paper.model.width**2 / 50
        assert little.algorithm.context_length == paper.algorithm.context_length
        for method in METHODS.keys() - {"dt"}:
            assert finetuning(method, name, "small") != finetuning(method, name, "paper")


def test_the_small_pretraining_is_longer_where_the_pages_is():
    updates = {name: 50 * pretraining(name, "small").iterations for name in NAMES}
    expected = {"hopper": 2_000, "walker2d": 2_000, "ant": 2_000}
    assert updates == {name: 400 if "random" in name else expected.get(block(name), 4_000) for name in NAMES}


def test_bounds_of_actions_are_imitated_at_scale_paper_and_where_data_are_random():
    for name in NAMES:
        expected = 1.0 if "random" in name else 0.97
        assert pretraining(name, "small").algorithm.action_limit == expected
        assert pretraining(name, "paper").algorithm.action_limit == 1.0
        for method in ("odt", "odt_td3"):  # what goes on imitating does it alike
            assert finetuning(method, name, "small").algorithm.update.action_limit == expected
            assert finetuning(method, name, "paper").algorithm.update.action_limit == 1.0


def test_the_small_scale_keeps_within_the_page_where_worlds_are_small():
    for name in NAMES:
        theirs, ours = (finetuning("grpo", name, scale).algorithm for scale in ("paper", "small"))
        assert ours.subtrajectory_length == min(10, theirs.subtrajectory_length)
        assert ours.lookahead_length == min(250, theirs.lookahead_length)
        assert ours.subtrajectory_length + ours.lookahead_length < task_info(name).horizon
        values = finetuning("ppo", name, "small").algorithm.value_scale
        assert values == (2 if block(name) in MAZE else 100)  # AntMaze pays 1


def test_learning_rates_at_scale_small_fall_over_the_iterations_asked_for():
    for method, updates in (("grpo", 16), ("ppo", 20)):
        config = finetuning(method, "hopper-random-v2", "small", iterations=7)
        assert (config.iterations, config.algorithm.update.decay_updates) == (7, round(7 * updates))
    assert finetuning("grpo", "hopper-random-v2", "paper", iterations=7).algorithm.update.decay_updates == 0


def test_a_small_run_continued_behind_its_preset_goes_on_learning():
    for method in ("grpo", "ppo"):
        update = finetuning(method, "hopper-random-v2", "small").algorithm.update
        assert update.final_learning_rate == pytest.approx(update.learning_rate / 10)


def test_the_small_scale_moves_a_policy_more_slowly_that_random_data_have_not_made():
    for method in ("grpo", "ppo"):
        rates = {name: finetuning(method, name, "small").algorithm.update.learning_rate for name in NAMES}
        slow, fast = sorted(set(rates.values()))
        assert {name for name, rate in rates.items() if rate == fast} == {name for name in NAMES if "random" in name}
        assert slow < fast / 2


def test_the_papers_network_has_13_million_parameters():
    preset = pretraining("hopper-medium-v2", "paper")
    policy = DecisionTransformer(DecisionTransformerConfig(observation_dim=11, action_dim=3, **vars(preset.model)))
    assert 12.5e6 < sum(parameter.numel() for parameter in policy.parameters()) < 13.5e6


def test_the_value_network_has_two_hidden_layers():
    network = ValueNetwork(11, width=PPOConfig(return_to_go=1.0).value_width)
    sizes = [linear.out_features for linear in network.modules() if isinstance(linear, torch.nn.Linear)]
    assert sizes == [256, 256, 1]


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError) as caught:
        finetuning("grpo", "hopper-expert-v2", "paper")
    assert "'hopper-expert-v2'" in str(caught.value)
    assert all(name in str(caught.value) for name in NAMES)
    with pytest.raises(ConfigError) as caught:
        pretraining("door-expert-v1", "small")
    assert all(name in str(caught.value) for name in NAMES)
    with pytest.raises(ConfigError) as caught:
        finetuning("trpo", "hopper-medium-v2", "paper")
    assert "'trpo'" in str(caught.value)
    assert all(method in str(caught.value) for method in METHODS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("iterations", -1),
        ("seed", -1),
        ("seed", 2**63),
        ("evaluation_episodes", 0),
        ("evaluate_every", 0),
        ("checkpoint_every", 0),
        ("threads", 0),
        ("network_threads", 0),
    ],
)
def test_impossible_counts_are_refused(field, value):
    for config in (finetuning("ppo", "hopper-medium-v2", "small"), pretraining("hopper-medium-v2", "small")):
        if field in vars(config):
            with pytest.raises(ConfigError, match=rf"{field}.*{value}"):
                replace(config, **{field: value})


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_time_limit_of_no_time_is_refused(value):
    with pytest.raises(ConfigError, match=rf"time_limit must be (above 0|a finite number), got {value}"):
        replace(finetuning("ppo", "hopper-medium-v2", "small"), time_limit=value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("layers", 0), ("heads", 0), ("width", 0), ("width", 66), ("dropout", 1.0), ("dropout", math.nan)],
)
def test_impossible_networks_are_refused(field, value):
    with pytest.raises(ConfigError, match=f"{field}.*{value}"):
        DecisionTransformerConfig(observation_dim=11, action_dim=3, **{field: value})


def test_configs_are_what_a_run_is_told_by():
    config = finetuning("grpo", "hopper-medium-v2", "small")
    assert isinstance(config, FinetuneConfig)
    assert replace(config) == config
    assert isinstance(pretraining("hopper-medium-v2", "small"), PretrainConfig)
    with pytest.raises(AttributeError):
        config.seed = 1


@pytest.mark.parametrize("method", METHODS)
def test_a_reinformer_differs_from_the_page_in_its_network_and_context_only(method):
    dataset = "hopper-medium-v2"
    theirs, ours = (finetuning(method, dataset, "paper", kind).algorithm for kind in ("dt", "reinformer"))
    has_context = "context_length" in vars(theirs)  # IQL's policy reads the present only
    assert ours == (replace(theirs, context_length=5) if has_context else theirs)
    assert has_context or method not in ("grpo", "ppo", "q_guided", "odt")
    config = pretraining(dataset, "paper", architecture="reinformer")
    assert config.model == ModelConfig(layers=4, heads=8, width=256, dropout=0.1)
    assert config.algorithm.context_length == 5
    walkers = pretraining("walker2d-medium-v2", "paper", architecture="reinformer")
    assert [one.algorithm.batch_size for one in (config, walkers)] == [256, 128]
    assert config.iterations * config.algorithm.updates_per_iteration == 50_000
    little = pretraining(dataset, "small", architecture="reinformer")
    assert (little.architecture, little.model) == ("reinformer", small.MODEL)
    assert pretraining(dataset, "small").architecture == "dt"
