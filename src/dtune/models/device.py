"""A network may live on an accelerator; everything else stays on the CPU, where the physics are.

Tensors cross where a network is called: what it is given goes to its device, what it gives comes back, and gradients go
the same way. No algorithm knows where a network is. On a CPU nothing is copied and no bit changes.
"""

import os

import torch
from torch import nn

from dtune.data.steps import Steps
from dtune.errors import ConfigError
from dtune.models.distributions import TanhNormal
from dtune.models.policy import Policy, TrainablePolicy

CPU = torch.device("cpu")
LARGE = 1_000_000
"""Parameters from which on a network is asked by several threads of Python at a time."""


def device_of(network: nn.Module | TrainablePolicy) -> torch.device:
    """Where its parameters are."""
    return next(network.parameters()).device


def lives_elsewhere(policy: Policy) -> bool:
    """Whether `policy` is a network that is not on the CPU, which is free while it works."""
    return isinstance(policy, nn.Module) and any(part.device != CPU for part in policy.parameters())


def is_large(policy: Policy) -> bool:
    """Whether `policy` is a network whose calls take far longer than Python needs to make them."""
    return isinstance(policy, nn.Module) and sum(part.numel() for part in policy.parameters()) >= LARGE


def to_device(context: Steps, device: torch.device) -> Steps:
    """The same steps, where a network is."""
    return context if context.mask.device == device else context.map(lambda x: x.to(device, non_blocking=True))


def to_cpu(distribution: TanhNormal) -> TanhNormal:
    """The same distribution, where all else is; differentiable."""
    if distribution.mean.device == CPU:
        return distribution
    return TanhNormal(distribution.mean.to(CPU), distribution.std.to(CPU))


def check_device(name: str) -> None:
    """Raises `ConfigError` where a name is that of no device, here or elsewhere."""
    kind, _, number = name.partition(":")
    if name != "cpu" and (kind != "cuda" or not (number.isdecimal() or name == kind)):
        raise ConfigError(f"--device is cpu, cuda or cuda:N, got {name!r}")


def choose_device(name: str) -> torch.device:
    """The device that a user names; `cuda` is, of a machine's several ranks, each one's own.

    Raises:
        ConfigError: if it is neither `cpu` nor a GPU (`cuda`, `cuda:1`) that is here.
    """
    check_device(name)
    if name == "cpu":
        return CPU
    index = int(name.partition(":")[2] or os.environ.get("LOCAL_RANK", "0"))
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= here:
        raise ConfigError(
            f"--device {name} is GPU {index}, counted from 0, but PyTorch sees {here} here (`dtune doctor` says more):"
            " leave the option out to use the CPU"
        )
    return torch.device("cuda", index)
