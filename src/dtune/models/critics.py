"""Value networks and critics: small perceptrons on normalised observations."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dtune.models.device import CPU

CONSTANT = 1e-6
"""Deviation up to which a number of an observation counts as one that never changes."""


class ValueNetwork(nn.Module):
    """V(s), the return expected from an observation, in environment reward units (Table 5: SiLU, two hidden layers).

    Args:
        observation_dim: numbers in an observation.
        width: units a hidden layer; the paper's 256 for MuJoCo, 512 elsewhere.
        layers: hidden layers.
        layer_norm: a LayerNorm without parameters between each linear map and its activation (Adroit and AntMaze).
        activation: of hidden layers.
        scale: reward units an output of 1 stands for; 100 lets a small network reach large returns quickly.
    """

    observation_mean: Tensor
    observation_std: Tensor

    def __init__(
        self,
        observation_dim: int,
        *,
        width: int = 256,
        layers: int = 2,
        layer_norm: bool = False,
        activation: type[nn.Module] = nn.SiLU,
        scale: float = 1.0,
    ):
        super().__init__()
        self.register_buffer("observation_mean", torch.zeros(observation_dim))
        self.register_buffer("observation_std", torch.ones(observation_dim))
        self.scale = scale
        self.net = _perceptron(observation_dim, width, layers, activation, layer_norm=layer_norm)

    def set_statistics(self, observations: Float[Tensor, "steps obs"]) -> None:
        """Fixes the normalisation to the mean and deviation of some observations; constant ones keep their unit.

        What hardly moves in them may move later, as a nail does: no unit is below a hundredth of the median one.
        """
        spread = observations.std(0, correction=min(1, len(observations) - 1))
        unit = _unit_of(spread)
        moving = unit[spread > CONSTANT]
        self.observation_mean.copy_(observations.mean(0))
        self.observation_std.copy_(unit.clamp(min=0.01 * moving.median().item()) if len(moving) else unit)

    def forward(self, observations: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch"]:
        """V(s) of each observation."""
        seen = (observations.to(self.observation_mean.device) - self.observation_mean) / self.observation_std
        return (self.scale * self.net(seen).squeeze(-1)).to(CPU)


class TwinCritic(nn.Module):
    """Q₁(s, a) and Q₂(s, a), two perceptrons that share nothing (TD3; ReLU, two hidden layers of 256).

    Args:
        observation_dim: numbers in an observation.
        action_dim: numbers in an action.
        width: units a hidden layer.
        layers: hidden layers.
        layer_norm: a LayerNorm without parameters between each linear map and its activation (Adroit and AntMaze).
    """

    observation_mean: Tensor
    observation_std: Tensor

    def __init__(
        self, observation_dim: int, action_dim: int, *, width: int = 256, layers: int = 2, layer_norm: bool = False
    ):
        super().__init__()
        self.register_buffer("observation_mean", torch.zeros(observation_dim))
        self.register_buffer("observation_std", torch.ones(observation_dim))
        inputs = observation_dim + action_dim
        self.nets = nn.ModuleList(_perceptron(inputs, width, layers, nn.ReLU, layer_norm=layer_norm) for _ in range(2))

    def set_statistics(self, mean: Float[Tensor, "obs"], std: Float[Tensor, "obs"]) -> None:
        """Fixes the normalisation of observations, best to the policy's own; constant ones keep their unit."""
        self.observation_mean.copy_(mean)
        self.observation_std.copy_(_unit_of(std))

    def forward(
        self, observations: Float[Tensor, "*batch obs"], actions: Float[Tensor, "*batch action"]
    ) -> Float[Tensor, "2 *batch"]:
        """Both values of each pair; actions are the squashed ones, in [-1, 1]."""
        device = self.observation_mean.device
        seen = (observations.to(device) - self.observation_mean) / self.observation_std
        inputs = torch.cat((seen, actions.to(device)), -1)
        return torch.stack([net(inputs).squeeze(-1) for net in self.nets]).to(CPU)


def _perceptron(inputs: int, width: int, layers: int, activation: type[nn.Module], *, layer_norm: bool) -> nn.Module:
    """`layers` hidden layers and one output."""
    sizes = [inputs] + [width] * layers
    hidden: list[nn.Module] = []
    for before, after in pairwise(sizes):
        norm = [nn.LayerNorm(after, elementwise_affine=False)] if layer_norm else []
        hidden += [nn.Linear(before, after), *norm, activation()]
    return nn.Sequential(*hidden, nn.Linear(sizes[-1], 1))


def _unit_of(std: Tensor) -> Tensor:
    return torch.where(std > CONSTANT, std, torch.ones_like(std))


def initialise_linear(module: nn.Module, generator: torch.Generator) -> None:
    """PyTorch's default initialisation, U(±1/√fan_in), drawn from `generator` instead of the global one."""
    with torch.no_grad():
        for linear in (m for m in module.modules() if isinstance(m, nn.Linear)):
            bound = linear.in_features**-0.5
            linear.weight.uniform_(-bound, bound, generator=generator)
            linear.bias.uniform_(-bound, bound, generator=generator)
