"""A policy without memory or return: a perceptron on the present observation."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dtune.checks import at_least, finite
from dtune.data.steps import Steps
from dtune.errors import ConfigError
from dtune.models.critics import initialise_linear
from dtune.models.device import to_cpu
from dtune.models.distributions import TanhNormal, unsquash
from dtune.models.dropout import Dropout

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


@dataclass(frozen=True, kw_only=True)
class PerceptronPolicyConfig:
    """The shape of a perceptron policy. Defaults are IQL's."""

    observation_dim: int
    """Numbers in an observation."""
    action_dim: int
    """Numbers in an action, each in (-1, 1)."""
    context_length: int = 1
    """Steps of history read: the present one."""
    width: int = 256
    """Units a hidden layer."""
    layers: int = 2
    """Hidden layers."""
    dropout: float = 0.0
    """Probability of dropping a hidden unit, in training mode only."""

    def __post_init__(self) -> None:
        finite(self)
        at_least(self, 1, "observation_dim", "action_dim", "width", "layers")
        if self.context_length != 1:
            raise ConfigError(
                f"a perceptron reads the present step only: context_length must be 1, got {self.context_length}"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is a probability in [0, 1), got {self.dropout}")

    @property
    def size(self) -> tuple[int, int]:
        """Tensors of such a network's state, and numbers in them: known without making one."""
        first = (self.observation_dim + 1) * self.width
        others, head = (self.width + 1) * self.width * (self.layers - 1), (self.width + 1) * self.action_dim
        return 2 * self.layers + 3, first + others + head + self.action_dim


class PerceptronPolicy(nn.Module):
    """A `Policy` that takes no notice of the return asked for: μ(s) by a perceptron (ReLU), σ the same everywhere.

    Attributes:
        log_std: `[action]`, learned; counts only within [-5, 2].
    """

    def __init__(self, config: PerceptronPolicyConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.config, self.context_length, self.action_dim = config, config.context_length, config.action_dim
        self.observation_dim = config.observation_dim
        hidden: list[nn.Module] = []
        for before, after in pairwise([config.observation_dim] + [config.width] * config.layers):
            hidden += [nn.Linear(before, after), nn.ReLU(), Dropout(config.dropout)]
        self.net = nn.Sequential(*hidden, nn.Linear(config.width, config.action_dim))
        self.log_std = nn.Parameter(torch.zeros(config.action_dim))
        initialise_linear(self, generator or torch.Generator().manual_seed(0))
        self.eval()

    def act(self, observations: Float[Tensor, "*batch obs"]) -> TanhNormal:
        """π(a | s) for each observation."""
        mean = self.net(observations.to(self.log_std.device))
        return to_cpu(TanhNormal(mean, self.log_std.clamp(LOG_STD_MIN, LOG_STD_MAX).exp().expand_as(mean)))

    def forward(self, context: Steps) -> TanhNormal:
        """π(aₕ | sₕ) at every step of the window: `[batch, time, action]`."""
        return self.act(context.observations)

    def next_return_to_go(
        self, returns_to_go: Float[Tensor, "batch"], rewards: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch"]:
        """What is still to be earned of what was asked for, g - r: for the record only."""
        return returns_to_go - rewards


def log_likelihood(distribution: TanhNormal, actions: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch"]:
    """log N(a; tanh μ, σ²): IQL squashes the mean only, not what is drawn."""
    return TanhNormal(distribution.mode, distribution.std).base_log_prob(actions)


def explore(distribution: TanhNormal, noise: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch action"]:
    """A draw from N(tanh μ, σ²), clipped to [-1, 1], as the raw action that tanh makes it of."""
    return unsquash(distribution.mode + distribution.std * noise)
