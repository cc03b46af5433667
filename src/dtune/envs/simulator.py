"""What an environment must offer: many episodes of it, side by side."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from dtune.errors import ConfigError, SimulatorError


class Outcome(NamedTuple):
    """What one step brought, one row an environment. No later step writes to these tensors."""

    observations: Float64[Tensor, "envs obs"]
    """In environment units, after the step."""
    rewards: Float64[Tensor, "envs"]
    """In environment units, for the step."""
    terminated: Bool[Tensor, "envs"]
    """The task itself ended: nothing can be earned from here, so never bootstrap past it."""
    truncated: Bool[Tensor, "envs"]
    """Only time ran out: the clock has reached the horizon and the task had not ended."""
    faulty: Bool[Tensor, "envs"]
    """NaN, infinity or a warning of the physics: the row's numbers cannot be trusted. `terminated` too."""


@runtime_checkable
class Simulator(Protocol):
    """Many episodes of one environment, stepped together; those that have ended leave the batch.

    Rows are numbered 0..envs-1 among the episodes still there, in the order they were started in.
    """

    observation_dim: int
    """Numbers in one observation."""
    action_dim: int
    """Numbers in one action, each in [-1, 1]."""
    horizon: int
    """Steps after which an episode is truncated."""

    def reset(self, count: int, generator: torch.Generator) -> Float64[Tensor, "count obs"]:
        """Starts `count` fresh episodes as rows 0..count-1 and forgets the former rows.

        Args:
            count: the number of episodes, any number at any time.
            generator: the source of all randomness: the same state gives the same episodes.

        Returns:
            First observations, in environment units.
        """
        ...

    def step(self, actions: Float32[Tensor, "envs action"]) -> Outcome:
        """Advances every row by one step.

        Args:
            actions: one for each present row, in [-1, 1]. NaN in a row makes that row faulty, and no other. They are
                the simulator's own: it may change them in place.

        Returns:
            Observations, rewards and endings, in the rows' order. A row that has ended may be stepped on,
            but is better dropped by `keep`.
        """
        ...

    def keep(self, rows: Int64[Tensor, "kept"]) -> None:
        """Keeps `rows`, indices into the present rows, in that order. The others have ended."""
        ...


def check_members(simulator: object) -> None:
    """Raises `ConfigError` where something lacks a member of `Simulator`, and says which."""
    names = ("observation_dim", "action_dim", "horizon", "reset", "step", "keep")
    if lacking := _lacking(simulator, names):
        raise ConfigError(
            f"{type(simulator).__name__} has no {', '.join(lacking)}: a simulator has {', '.join(names)};"
            " dtune.GymnasiumSimulator makes one of a Gymnasium environment"
        )


def _lacking(thing: object, names: Sequence[str]) -> list[str]:
    """Names of members that it has not; unlike `isinstance`, sees those that a wrapper passes on."""
    return [name for name in names if getattr(thing, name, None) is None]


@runtime_checkable
class Restorable(Simulator, Protocol):
    """A simulator one can go back in: after `restore` all goes on bit for bit as it did after `snapshot`."""

    def snapshot(self) -> Float64[np.ndarray, "envs width"]:
        """Everything needed to go on from here, one row an environment: physics, task and clock.

        Rows may be stored, shuffled, repeated and given to another simulator of the same task. What is in
        them is the simulator's business.
        """
        ...

    def restore(self, snapshots: Float64[np.ndarray, "envs width"]) -> Float64[Tensor, "envs obs"]:
        """Goes on from `snapshots`, one row each, and forgets the former rows, however many there were.

        Returns:
            The observations at the snapshots, in environment units.
        """
        ...


def restorable(simulator: Simulator) -> Restorable:
    """`simulator`, in which one can go back.

    Raises:
        SimulatorError: if one cannot.
    """
    if _lacking(simulator, ("snapshot", "restore")):
        raise SimulatorError(
            f"{type(simulator).__name__} has no snapshot and restore, so one cannot go back in it: add them,"
            " or use PPO-DT or Q-guided GRPO-DT, which do not need it."
        )
    return cast(Restorable, simulator)


@runtime_checkable
class Divisible(Restorable, Protocol):
    """A simulator of which there can be several, so that they step while others do, or while a network is asked."""

    threads: int
    """Threads that step it."""

    def twins(self, count: int, threads: int) -> Sequence[Restorable]:
        """`count` simulators of the same task with so many threads each; none knows of another.

        They have no rows, or any; the same ones may be given each time. An empty list: it cannot be divided now.
        """
        ...


@runtime_checkable
class Inspectable(Protocol):
    """A simulator that tells the parts of its state by name, so that `check_simulator` can say which is missing."""

    def named(self) -> list[dict[str, str]]:
        """By row, the present value of each part, as text by name, equal where the values are."""
        ...
