"""What the paper compares with, each as its authors ran it: Yan et al. (2024), Table 9, and IQL's own configurations.

Tables are by task; all datasets of a task share a row.
"""

from dataclasses import replace

from dtune.algorithms.iql import IQLConfig
from dtune.algorithms.odt import ODTConfig
from dtune.algorithms.pretrained import PretrainedConfig
from dtune.algorithms.supervised import SupervisedConfig
from dtune.envs.tasks import DATASETS

# --- Yan et al. (2024), Table 9 ----------------------------------------------------------------------------------


def _yan(
    T_train: int, T_eval: int, rtg_eval: float, rtg_online: float, lr: float, wd: float, pretrain_steps: int,
    buffer: int, min_steps: int = 0,
) -> ODTConfig:  # fmt: skip
    """A row of Table 9; what all tasks share are the defaults of the class. `min_steps` is their code's."""
    update = replace(ODTConfig(return_to_go=0.0).update, context_length=T_train)
    return ODTConfig(
        return_to_go=float(rtg_eval), online_return_to_go=float(rtg_online), context_length=T_eval,
        replay_capacity=buffer, min_steps=min_steps, pretraining_updates=pretrain_steps,
        update=replace(update, learning_rate=lr, weight_decay=wd),
    )  # fmt: skip


# fmt: off
TABLE_9 = {
    #                        T_train T_eval RTG: eval  online   lr    wd   pretrain buffer at least
    "hopper":                _yan(20, 5,  3600,  7200, 1e-4, 5e-4,  5_000, 1000),
    "walker2d":              _yan(20, 5,  5000, 10000, 1e-3, 1e-3, 10_000, 1000),
    "ant":                   _yan(20, 1,  6000, 12000, 1e-3, 1e-4,  5_000, 1000),
    "pen":                   _yan( 5, 1, 12000, 12000, 1e-4, 1e-4, 40_000, 5000, 1000),
    "hammer":                _yan( 5, 5, 16000, 16000, 1e-4, 1e-4, 40_000, 5000, 1000),
    "door":                  _yan( 5, 1,  4000,  4000, 1e-4, 1e-4, 40_000, 5000, 1000),
    "antmaze-umaze":         _yan( 5, 1,     1,     2, 1e-4, 1e-4, 40_000, 2000, 1000),  # theirs: -100, of rewards - 1
    "antmaze-umaze-diverse": _yan( 5, 1,     1,     2, 1e-4, 1e-4, 40_000, 2000, 1000),
}
# fmt: on
RANDOM_MIN_STEPS = 1000
"""Environment steps an iteration, at least, where the policy was pretrained on random data and falls at once."""


def odt(dataset: str) -> ODTConfig:
    """The online decision transformer on a dataset."""
    config = TABLE_9[DATASETS[dataset]]
    return replace(config, min_steps=RANDOM_MIN_STEPS) if "-random-" in dataset else config


def small_odt(config: ODTConfig, pretraining: SupervisedConfig) -> ODTConfig:
    """Scale `small`: fewer updates, of windows as long as those it acts on; AdamW as in the small pretraining."""
    update = replace(
        config.update, optimizer=pretraining.optimizer, learning_rate=pretraining.learning_rate, batch_size=64,
        context_length=config.context_length, warmup_updates=pretraining.warmup_updates, grad_norm_clip=0.5,
        updates_per_iteration=150, action_limit=pretraining.action_limit,
    )  # fmt: skip
    # of the pretraining only its warm-up matters, which is over
    return replace(config, min_steps=RANDOM_MIN_STEPS, pretraining_updates=pretraining.warmup_updates, update=update)


def pretrained(dataset: str) -> PretrainedConfig:
    """DT: the policy that the others begin with, judged as ODT is."""
    config = TABLE_9[DATASETS[dataset]]
    return PretrainedConfig(return_to_go=config.return_to_go, context_length=config.context_length)


# --- Kostrikov et al. (2022): mujoco, antmaze, "kitchen and adroit"; the length of the pretraining from above ------

_MUJOCO = IQLConfig(expectile=0.7, inverse_temperature=3.0, reward_scaling="both")
_ANT = replace(_MUJOCO, reward_scaling="none")
_ADROIT = IQLConfig(expectile=0.7, inverse_temperature=0.5, reward_scaling="none", dropout=0.1)
_ANTMAZE = IQLConfig(expectile=0.9, inverse_temperature=10.0, reward_scaling="none", reward_shift=-1.0)

IQL_CONFIGS = {
    "hopper": _MUJOCO, "walker2d": _MUJOCO, "ant": _ANT, "pen": _ADROIT, "hammer": _ADROIT, "door": _ADROIT,
    "antmaze-umaze": _ANTMAZE, "antmaze-umaze-diverse": _ANTMAZE,
}  # fmt: skip


def iql(dataset: str) -> IQLConfig:
    """Online IQL on a dataset."""
    task = DATASETS[dataset]
    return replace(IQL_CONFIGS[task], pretraining_updates=TABLE_9[task].pretraining_updates)


def small_iql(config: IQLConfig) -> IQLConfig:
    """Scale `small`: smaller networks, batches and pretraining."""
    return replace(config, width=64, batch_size=128, pretraining_updates=2000)
