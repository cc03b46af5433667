"""dtune finetunes decision transformers online with pure RL gradients."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dtune.algorithms.grpo import GRPO, GRPOConfig
    from dtune.algorithms.iql import IQL, IQLConfig
    from dtune.algorithms.odt import ODT, ODTConfig
    from dtune.algorithms.odt_td3 import ODTTD3, ODTTD3Config
    from dtune.algorithms.ppo import PPO, PPOConfig
    from dtune.algorithms.q_guided import QGuidedConfig, QGuidedGRPO
    from dtune.algorithms.supervised import Supervised, SupervisedConfig
    from dtune.algorithms.update import UpdateConfig
    from dtune.data.hdf5 import read_hdf5
    from dtune.envs.check import check_simulator
    from dtune.envs.collect import collect_episodes
    from dtune.envs.gymnasium import GymnasiumSimulator
    from dtune.envs.tasks import make_simulator, normalized_score
    from dtune.experiments.loading import load_dataset
    from dtune.experiments.policies import load_policy, load_weights
    from dtune.experiments.run import evaluate, finetune
    from dtune.models.check import check_policy
    from dtune.models.decision_transformer import DecisionTransformer, DecisionTransformerConfig
    from dtune.models.reinformer import Reinformer, ReinformerConfig

_HOMES = {
    "DecisionTransformer": "dtune.models.decision_transformer",
    "DecisionTransformerConfig": "dtune.models.decision_transformer",
    "GRPO": "dtune.algorithms.grpo",
    "GRPOConfig": "dtune.algorithms.grpo",
    "GymnasiumSimulator": "dtune.envs.gymnasium",
    "IQL": "dtune.algorithms.iql",
    "IQLConfig": "dtune.algorithms.iql",
    "ODT": "dtune.algorithms.odt",
    "ODTConfig": "dtune.algorithms.odt",
    "ODTTD3": "dtune.algorithms.odt_td3",
    "ODTTD3Config": "dtune.algorithms.odt_td3",
    "PPO": "dtune.algorithms.ppo",
    "PPOConfig": "dtune.algorithms.ppo",
    "QGuidedConfig": "dtune.algorithms.q_guided",
    "QGuidedGRPO": "dtune.algorithms.q_guided",
    "Reinformer": "dtune.models.reinformer",
    "ReinformerConfig": "dtune.models.reinformer",
    "Supervised": "dtune.algorithms.supervised",
    "SupervisedConfig": "dtune.algorithms.supervised",
    "UpdateConfig": "dtune.algorithms.update",
    "check_policy": "dtune.models.check",
    "check_simulator": "dtune.envs.check",
    "collect_episodes": "dtune.envs.collect",
    "evaluate": "dtune.experiments.run",
    "finetune": "dtune.experiments.run",
    "load_dataset": "dtune.experiments.loading",
    "load_policy": "dtune.experiments.policies",
    "load_weights": "dtune.experiments.policies",
    "make_simulator": "dtune.envs.tasks",
    "normalized_score": "dtune.envs.tasks",
    "read_hdf5": "dtune.data.hdf5",
}

__all__ = [  # noqa: RUF022  in the order of the table above
    "DecisionTransformer",
    "DecisionTransformerConfig",
    "GRPO",
    "GRPOConfig",
    "GymnasiumSimulator",
    "IQL",
    "IQLConfig",
    "ODT",
    "ODTConfig",
    "ODTTD3",
    "ODTTD3Config",
    "PPO",
    "PPOConfig",
    "QGuidedConfig",
    "QGuidedGRPO",
    "Reinformer",
    "ReinformerConfig",
    "Supervised",
    "SupervisedConfig",
    "UpdateConfig",
    "check_policy",
    "check_simulator",
    "collect_episodes",
    "evaluate",
    "finetune",
    "load_dataset",
    "load_policy",
    "load_weights",
    "make_simulator",
    "normalized_score",
    "read_hdf5",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for: torch takes a second, and `dtune --help` needs none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dtune' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
