"""ODT+TD3's and Q-guided GRPO-DT's presets against Yan et al.'s Table 9 and App. B.1, typed here a second time."""

import pytest
import torch

from dtune.algorithms.odt_td3 import ODTTD3, ODTTD3Config
from dtune.algorithms.q_guided import QGuidedConfig, QGuidedGRPO
from dtune.data.datasets import Dataset
from dtune.envs.tasks import DATASETS, task_info
from dtune.experiments import guided
from dtune.experiments.methods import ALGORITHMS
from dtune.experiments.presets import TABLE_6, finetuning
from dtune.models.decision_transformer import DecisionTransformer, DecisionTransformerConfig

COLUMNS = [
    "T_train", "T_eval", "RTG_eval", "RTG_online", "alpha", "gamma", "lr_critic", "lr_actor", "wd", "pretrain",
    "buffer", "d", "layer_norm", "reward_scale", "reward_shift",
]  # fmt: skip
ROWS = {
    "hopper": [20, 5, 3600, 7200, 0.1, 0.99, 1e-3, 1e-4, 5e-4, 5_000, 1000, 2, False, 1, 0],
    "walker2d": [20, 5, 5000, 10000, 0.1, 0.99, 1e-3, 1e-3, 1e-3, 10_000, 1000, 2, False, 1, 0],
    "ant": [20, 1, 6000, 12000, 0.1, 0.99, 1e-3, 1e-3, 1e-4, 5_000, 1000, 2, False, 1, 0],
    "pen": [5, 1, 12000, 12000, 0.1, 0.99, 2e-4, 1e-4, 1e-4, 40_000, 5000, 1, True, 0.01, 0],
    "hammer": [5, 5, 16000, 16000, 0.1, 0.99, 2e-4, 1e-4, 1e-4, 40_000, 5000, 1, True, 0.001, 0],
    "door": [5, 1, 4000, 4000, 0.1, 0.99, 2e-4, 1e-4, 1e-4, 40_000, 5000, 1, True, 0.01, 0],
    "antmaze-umaze": [5, 1, 1, 2, 0.1, 0.998, 2e-4, 1e-4, 1e-4, 40_000, 2000, 1, True, 1, -1],
}


def row(config: ODTTD3Config) -> dict[str, float | None]:
    critic, update = config.critic, config.update
    assert critic.offline_updates == critic.policy_interval * config.pretraining_updates
    return {
        "T_train": update.context_length,
        "T_eval": config.context_length,
        "RTG_eval": config.return_to_go,
        "RTG_online": config.online_return_to_go,
        "alpha": config.rl_coef,
        "gamma": critic.gamma,
        "lr_critic": critic.learning_rate,
        "lr_actor": update.learning_rate,
        "wd": update.weight_decay,
        "pretrain": config.pretraining_updates,
        "buffer": config.replay_capacity,
        "d": critic.policy_interval,
        "layer_norm": critic.layer_norm,
        "reward_scale": critic.reward_scale,
        "reward_shift": critic.reward_shift,
    }


@pytest.mark.parametrize("dataset", DATASETS)
def test_odt_td3_is_table_9s(dataset):
    config, task = guided.odt_td3(dataset), DATASETS[dataset].removesuffix("-diverse")
    assert row(config) == dict(zip(COLUMNS, ROWS[task], strict=True))
    assert (config.update.updates_per_iteration, config.update.batch_size, config.update.optimizer) == (
        300,
        256,
        "lamb",
    )
    assert (config.update.grad_norm_clip, config.supervised_coef, config.exploration_noise) == (0.25, 1.0, 0.1)
    assert not config.stochastic
    assert (config.min_steps == 1000) == ("-random-" in dataset or task in ("pen", "hammer", "door", "antmaze-umaze"))
    critic = config.critic
    assert (critic.polyak, critic.smoothing_std, critic.smoothing_limit, critic.width) == (0.005, 0.2, 0.5, 256)


def test_q_guided_is_that_of_the_appendix():
    config = finetuning("q_guided", "ant-medium-replay-v2", "paper").algorithm
    assert config == QGuidedConfig(return_to_go=12000.0)
    assert (config.update.learning_rate, config.update.entropy_coef, config.update.clip_range) == (1e-5, 1e-2, 0.3)
    assert (config.state_trajectories, config.states, config.group_size, config.replay_capacity) == (16, 4, 8, 32)
    assert config.critic_replay_capacity == 1000
    assert (config.value, config.return_margin) == ("first", None)
    assert guided.odt_td3("hopper-medium-v2") == ODTTD3Config(return_to_go=3600.0, online_return_to_go=7200.0)


def recorded(observation_dim: int, action_dim: int) -> Dataset:
    draw = torch.Generator().manual_seed(0)
    return Dataset(
        observations=torch.randn(12, observation_dim, generator=draw),
        actions=2 * torch.rand(12, action_dim, generator=draw) - 1,
        rewards=torch.randn(12, generator=draw),
        terminated=torch.zeros(12, dtype=torch.bool),
        lengths=torch.tensor([4, 4, 4]),
        name="recorded",
    )


@pytest.mark.parametrize("dataset", TABLE_6)
@pytest.mark.parametrize(("method", "kind"), [("q_guided", QGuidedGRPO), ("odt_td3", ODTTD3)])
def test_every_preset_builds(method, kind, dataset):
    info = task_info(dataset)
    shape = {"observation_dim": info.observation_dim, "action_dim": info.action_dim}
    for scale in ("paper", "small"):
        config = finetuning(method, dataset, scale).algorithm
        known = ALGORITHMS[type(config)]
        assert known.offline
        policy = DecisionTransformer(DecisionTransformerConfig(**shape, layers=1, heads=1, width=8))
        algorithm = known.make(policy, config, dataset=recorded(**shape), generator=torch.Generator().manual_seed(0))
        assert isinstance(algorithm, kind)
        assert policy.context_length == config.context_length
    assert config != finetuning(method, dataset, "paper").algorithm
