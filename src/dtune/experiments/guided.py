"""The methods that TD3's critics guide: ODT+TD3 as Yan et al. (2024) ran it, and Q-guided GRPO-DT (App. B.1)."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from dtune.algorithms.grpo import GRPOConfig
from dtune.algorithms.odt import ODTConfig
from dtune.algorithms.odt_td3 import ODTTD3Config
from dtune.algorithms.q_guided import QGuidedConfig
from dtune.algorithms.td3 import CriticConfig
from dtune.envs.tasks import DATASETS
from dtune.experiments.baselines import TABLE_9, odt

# --- The critics of Table 9; d, LayerNorm and rewards are those of the code --------------------------------------

_MUJOCO = CriticConfig(learning_rate=1e-3, gamma=0.99, policy_interval=2)
_ADROIT = CriticConfig(learning_rate=2e-4, gamma=0.99, policy_interval=1, layer_norm=True, reward_scale=0.01)
_ANTMAZE = CriticConfig(learning_rate=2e-4, gamma=0.998, policy_interval=1, layer_norm=True, reward_shift=-1.0)

CRITICS = {
    "hopper": _MUJOCO, "walker2d": _MUJOCO, "ant": _MUJOCO,
    "pen": _ADROIT, "door": _ADROIT, "hammer": replace(_ADROIT, reward_scale=0.001),
    "antmaze-umaze": _ANTMAZE, "antmaze-umaze-diverse": _ANTMAZE,
}  # fmt: skip


def critics(dataset: str) -> CriticConfig:
    """The critics on a dataset: d times as many offline steps as the policy's pretraining has."""
    task = DATASETS[dataset]
    config = CRITICS[task]
    return replace(config, offline_updates=config.policy_interval * TABLE_9[task].pretraining_updates)


def small_critics(config: CriticConfig) -> CriticConfig:
    """Scale `small`: smaller networks, shorter pretraining."""
    return replace(config, width=128, offline_updates=1000)


# --- ODT+TD3: ODT's row of Table 9, and critics -------------------------------------------------------------------


def odt_td3(dataset: str) -> ODTTD3Config:
    """ODT+TD3 on a dataset."""
    return ODTTD3Config(**vars(odt(dataset)), critic=critics(dataset))


def small_odt_td3(
    config: ODTTD3Config, random: bool, small_odt: Callable[[ODTConfig, bool], ODTConfig]
) -> ODTTD3Config:
    """Scale `small`: what ODT's has, and smaller critics."""
    shared: dict[str, Any] = {part.name: getattr(config, part.name) for part in fields(ODTConfig)}
    return replace(config, **vars(small_odt(ODTConfig(**shared), random)), critic=small_critics(config.critic))


# --- Q-guided GRPO-DT: learning rate and κ of App. B.1, GRPO-DT's row of Table 6, and critics ---------------------


def q_guided(dataset: str, row: GRPOConfig) -> QGuidedConfig:
    """Q-guided GRPO-DT on a dataset; the paper ran it on Ant-medium-replay.

    Args:
        dataset: its name.
        row: GRPO-DT's configuration for it.
    """
    update = replace(row.update, ratio="token", learning_rate=1e-5, entropy_coef=1e-2)
    return QGuidedConfig(
        return_to_go=row.return_to_go, context_length=row.context_length, batch_size=row.batch_size, update=update,
        episodes_per_iteration=row.episodes_per_iteration, critic=critics(dataset),
        critic_replay_capacity=TABLE_9[DATASETS[dataset]].replay_capacity,
    )  # fmt: skip


def small_q_guided(config: QGuidedConfig, iterations: int) -> QGuidedConfig:
    """Scale `small`: more episodes, fewer and smaller critic steps; AdamW at a third of GRPO-DT's rate."""
    update = replace(
        config.update, optimizer="adamw", learning_rate=1.5e-4, final_learning_rate=3e-5,
        decay_updates=16 * iterations, entropy_coef=0.1,
    )  # fmt: skip
    return replace(
        config, episodes_per_iteration=8, replay_capacity=16, mirrored=True, action_capacity=1024, batch_size=64,
        critic=small_critics(config.critic), critic_updates=400, critic_batch_size=128, update=update,
    )  # fmt: skip
