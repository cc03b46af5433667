"""A simulator that remembers how its walks came about, so that those that broke can be walked again."""

from dataclasses import dataclass
from itertools import islice
from typing import final

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from dtune.envs.simulator import Divisible, Outcome, Simulator, restorable

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
    """Passes everything on to a simulator (`Restorable`, `Divisible`, where that is), and keeps what leads to a fault.

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
        self._twins: dict[int, list[Watched]] = {}
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
        return restorable(self._simulator).snapshot()

    def restore(self, snapshots: Float64[np.ndarray, "envs width"]) -> Float64[Tensor, "envs obs"]:
        """Goes on from `snapshots`; see `Restorable.restore`."""
        self._begin(_Start(count=len(snapshots), snapshots=snapshots.copy()))
        return restorable(self._simulator).restore(snapshots)

    @property
    def threads(self) -> int:
        """See `Divisible.threads`; 1 where the simulator cannot be divided."""
        return self._simulator.threads if isinstance(self._simulator, Divisible) else 1

    def twins(self, count: int, threads: int) -> "list[Watched]":
        """Those of the simulator, watched together with it; none where it cannot be divided. See `Divisible.twins`."""
        if not isinstance(self._simulator, Divisible):
            return []
        twins, made = self._simulator.twins(count, threads), self._twins.setdefault(threads, [])
        made += [Watched(twin) for twin in twins[len(made) :]]
        return made[:count]

    def forget(self) -> None:
        """Forgets the walks that broke."""
        for watched in self._all():
            watched._broken = []

    @property
    def broken(self) -> int:
        """Walks that broke since `forget`, `KEPT` at most."""
        return min(KEPT, sum(len(watched._broken) for watched in self._all()))

    def walks(self) -> list[Walk]:
        """The walks that broke since `forget` or, where none did, the first of the present batch that were walked here.

        Where they were walked in parts, each began where the parts did.

        Starts are looked up in the simulator itself: its rows are no longer those of before.

        Raises:
            SimulatorError: if the simulator cannot be gone back in: then a walk's start cannot be kept.
        """
        present = (watched._trace(row) for watched in self._all() for row in range(watched._start.count))
        broken = [trace for watched in self._all() for trace in watched._broken][:KEPT]
        traces = broken or list(islice((trace for trace in present if len(trace.actions)), KEPT))
        snapshots: dict[int, Float64[np.ndarray, "envs snapshot"]] = {}
        for trace in traces:
            if id(trace.start) not in snapshots:
                snapshots[id(trace.start)] = self._snapshots(trace.start)
        return [Walk(snapshot=snapshots[id(trace.start)][trace.row], actions=trace.actions) for trace in traces]

    def _all(self) -> "list[Watched]":
        """This one, and those made of its twins."""
        return [self, *(twin for made in self._twins.values() for twin in made)]

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
        simulator, generator = restorable(self._simulator), torch.Generator()
        assert start.generator is not None
        generator.set_state(start.generator)
        simulator.reset(start.count, generator)
        return simulator.snapshot()
