"""DT: the pretrained policy as it is, so that it has a run and a row beside those who improve it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dtune.algorithms.metrics import Metrics
from dtune.checks import at_least, finite
from dtune.envs.simulator import Simulator
from dtune.models.policy import TrainablePolicy


@dataclass(frozen=True, kw_only=True)
class PretrainedConfig:
    """How a pretrained decision transformer is judged. Defaults are those Yan et al. (2024) give for Hopper."""

    return_to_go: float = 3600.0
    """Return asked for, in environment reward units."""
    context_length: int = 5
    """Steps of history the policy reads when it acts."""

    def __post_init__(self) -> None:
        finite(self)
        at_least(self, 1, "context_length")


class Pretrained:
    """Leaves `policy` alone: an iteration neither walks nor learns."""

    def __init__(self, policy: TrainablePolicy, config: PretrainedConfig, generator: torch.Generator | None = None):  # noqa: ARG002
        self.policy, self.config = policy.eval(), config
        policy.context_length = config.context_length
        self.metrics = Metrics()

    def iterate(self, simulator: Simulator) -> dict[str, float]:  # noqa: ARG002
        """Nothing."""
        self.metrics.begin()
        return self.metrics.end()

    def state_dict(self) -> dict[str, Any]:
        """The policy."""
        return {"policy": self.policy.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.policy.load_state_dict(state["policy"])
