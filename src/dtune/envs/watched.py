"""A simulator that remembers how its walks came about, so that those that broke can be walked again."""

from dataclasses import dataclass
from itertools import islice
from typing import final

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from dtune.envs.simulator import Outcome, Restorable, Simulator
from dtune.errors import SimulatorError

KEPT = 16
"""Walks kept at most."""


@dataclass(frozen=True, kw_only=True)
class Walk:
    """Where a walk began, and all that was done on it."""

    snapshot: Float64[np.ndarray, "snapshot"]
    """Of the simulator before the first action."""
    actions: Float32[np.ndarray, "steps action"]
    """The actions, up to the one that broke it."""


@dataclass(frozen=True, kw_only=True)
class _Start:
    """How the rows of a batch began: drawn from a generator in this state, or restored from these snapshots."""

    count: int
    generator: Tensor | None = None
    snapshots: Float64[np.ndarray, "envs snapshot"] | None = None


@dataclass(frozen=True, kw_only=True)
class _Trace:
    """A walk whose start has not been looked up yet."""

    start: _Start
    row: int
    actions: Float32[np.ndarray, "steps action"]


@final
class Watched:
    """Passes everything on to a simulator (a `Restorable`, where that is one), and keeps what leads to a fault.

    Actions are kept of the present walks only, and of up to `KEPT` that broke. Observations, rewards and endings are
    the simulator's own.

    Args:
        simulator: the one to watch.
    """

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self.observation_dim, self.action_dim = simulator.observation_dim, simulator.action_dim
        self.horizon = simulator.horizon
        self._broken: list[_Trace] = []
        self._rows: Int64[Tensor, "envs"]
        self._begin(_Start(count=0))

    def reset(self, count: int, generator: torch.Generator) -> Float64[Tensor, "count obs"]:
        """Starts `count` fresh episodes; see `Simulator.reset`."""
        self._begin(_Start(count=count, generator=generator.get_state()))
        return self._simulator.reset(count, generator)

    def step(self, actions: Float32[Tensor, "envs action"]) -> Outcome:
        """Advances every row by one step; see `Simulator.step`."""
        self._taken.append((self._rows, actions.detach().clone()))
        outcome = self._simulator.step(actions)
        if outcome.faulty.any():
            for row in self._rows[outcome.faulty][: KEPT - len(self._broken)].tolist():
                self._broken.append(self._trace(row))
        return outcome

    def keep(self, rows: Int64[Tensor, "kept"]) -> None:
        """Keeps `rows`; see `Simulator.keep`."""
        self._simulator.keep(rows)
        self._rows = self._rows[rows]

    def snapshot(self) -> Float64[np.ndarray, "envs width"]:
        """Everything needed to go on from here; see `Restorable.snapshot`."""
        return self._restorable().snapshot()

    def restore(self, snapshots: Float64[np.ndarray, "envs width"]) -> Float64[Tensor, "envs obs"]:
        """Goes on from `snapshots`; see `Restorable.restore`."""
        self._begin(_Start(count=len(snapshots), snapshots=snapshots.copy()))
        return self._restorable().restore(snapshots)

    def forget(self) -> None:
        """Forgets the walks that broke."""
        self._broken = []

    @property
    def broken(self) -> int:
        """Walks that broke since `forget`, `KEPT` at most."""
        return len(self._broken)

    def walks(self) -> list[Walk]:
        """The walks that broke since `forget` or, where none did, the first of the present batch that were walked here.

        Starts are looked up in the simulator itself: its rows are no longer those of before.

        Raises:
            SimulatorError: if the simulator cannot be gone back in: then a walk's start cannot be kept.
        """
        present = (self._trace(row) for row in range(self._start.count))
        traces = self._broken or list(islice((trace for trace in present if len(trace.actions)), KEPT))
        snapshots: dict[int, Float64[np.ndarray, "envs snapshot"]] = {}
        for trace in traces:
            if id(trace.start) not in snapshots:
                snapshots[id(trace.start)] = self._snapshots(trace.start)
        return [Walk(snapshot=snapshots[id(trace.start)][trace.row], actions=trace.actions) for trace in traces]

    def _begin(self, start: _Start) -> None:
        self._start = start
        self._rows = torch.arange(start.count)
        self._taken: list[tuple[Int64[Tensor, "envs"], Float32[Tensor, "envs action"]]] = []

    def _trace(self, row: int) -> _Trace:
        """The walk that began in `row`, as far as it has come."""
        own = (actions[rows == row] for rows, actions in self._taken)
        actions = torch.cat([torch.zeros(0, self.action_dim), *(taken.cpu() for taken in own)])
        return _Trace(start=self._start, row=row, actions=actions.numpy())

    def _snapshots(self, start: _Start) -> Float64[np.ndarray, "envs snapshot"]:
        if start.snapshots is not None:
            return start.snapshots
        simulator, generator = self._restorable(), torch.Generator()
        assert start.generator is not None
        generator.set_state(start.generator)
        simulator.reset(start.count, generator)
        return simulator.snapshot()

    def _restorable(self) -> Restorable:
        if not isinstance(self._simulator, Restorable):
            raise SimulatorError(
                f"{type(self._simulator).__name__} has no snapshot and restore, so one cannot go back in it: add them,"
                " or use PPO-DT or Q-guided GRPO-DT, which do not need it."
            )
        return self._simulator
