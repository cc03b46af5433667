"""Anybody's Gymnasium environment as a `Simulator`, and as a `Restorable` where it can be."""

import weakref
from collections.abc import Callable
from functools import partial
from importlib import import_module
from itertools import pairwise
from types import TracebackType
from typing import Any, final

import gymnasium
import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from dtune.envs.copies import Facts, Recipe
from dtune.envs.simulator import Outcome
from dtune.envs.workers import Here, There, Worker
from dtune.errors import ConfigError, SimulatorError


@final
class GymnasiumSimulator:
    """Many copies of a Gymnasium environment, stepped in worker processes.

    Observations are flattened; actions in [-1, 1] are scaled to the environment's box. Episodes are truncated by
    `horizon`, whatever time limit is wrapped around the environment. Environments of one row after another are
    reset with seeds that are drawn from the generator, so the number of workers changes nothing.

    It can be gone back in (`snapshot`, `restore`) if it is a MuJoCo environment, if it can be deep-copied and its
    attributes say all (numbers, arrays, text, containers and random generators), or with `get_state` and
    `set_state`. Which it is, is tried when it is made: `refusal` says why it cannot, and is empty where it can.

    A worker that raises, dies or hangs is replaced, and its walks are repeated to where they were.

    Args:
        environment: an ID ("Pendulum-v1", "module:ID"), or a callable that makes one environment.
        horizon: steps after which an episode is truncated; None: the environment's own time limit.
        workers: processes the copies are shared out to; 0: none, all are stepped here.
        get_state: takes an environment (wrappers included) and gives all that decides how it goes on: numbers,
            arrays, text, random generators' states, or lists, tuples and dicts of them.
        set_state: takes an environment, any copy in any state, and what `get_state` gave.
        timeout: seconds that one step of all copies of a worker may take; not watched with 0 workers.

    Raises:
        ConfigError: if there is no such environment, it has no time limit and no `horizon` is given, or a
            setting is out of range.
        SimulatorError: if its actions or observations are not boxes of numbers, its actions have no bounds, or it
            fails again and again.
    """

    def __init__(
        self,
        environment: str | Callable[[], gymnasium.Env],
        *,
        horizon: int | None = None,
        workers: int = 1,
        get_state: Callable[[Any], Any] | None = None,
        set_state: Callable[[Any, Any], None] | None = None,
        timeout: float = 60.0,
    ) -> None:
        if workers < 0:
            raise ConfigError(f"workers counts processes and cannot be negative, got {workers}: 0 steps all here.")
        if horizon is not None and horizon < 1:
            raise ConfigError(f"horizon must be at least 1 step, got {horizon}.")
        if not timeout > 0:
            raise ConfigError(f"timeout must be above 0 seconds, got {timeout}.")
        make = _by_name(environment) if isinstance(environment, str) else environment
        recipe = Recipe(make=make, get_state=get_state, set_state=set_state, horizon=horizon)
        start = partial(There if workers else Here, recipe)
        self._workers = [Worker(start, timeout) for _ in range(max(1, workers))]
        self._finalizer = weakref.finalize(self, _close, self._workers)
        try:
            self._facts = self._learn()
        except BaseException:
            self.close()
            raise
        self.observation_dim, self.action_dim = self._facts.observation_dim, self._facts.action_dim
        self.horizon, self.refusal = self._facts.horizon, self._facts.refusal
        self._row_worker: Int64[np.ndarray, "envs"] | None = None
        self._row_copy: Int64[np.ndarray, "envs"]
        self._clock: Int64[np.ndarray, "envs"]
        self._observations: Float64[np.ndarray, "envs obs"]

    def reset(self, count: int, generator: torch.Generator) -> Float64[Tensor, "count obs"]:
        """Starts `count` fresh episodes as rows 0..count-1; see `Simulator.reset`."""
        seeds = torch.randint(2**31 - 1, (count,), generator=generator).tolist()
        began = self._begin("reset", seeds)
        self._clock = np.zeros(count, np.int64)
        self._observations = np.concatenate([*began, np.zeros((0, self.observation_dim))])
        return torch.from_numpy(self._observations.copy())

    def step(self, actions: Float32[Tensor, "envs action"]) -> Outcome:
        """Advances every row by one step; see `Simulator.step`. Faulty rows show zeros and are terminated.

        Raises:
            SimulatorError: if actions do not fit the rows, or the environment failed three times in a row; no row
                has moved then.
        """
        worker, chosen = self._rows(), self._checked(actions)
        rows = [np.flatnonzero(worker == index) for index in range(len(self._workers))]
        found = self._each([("step", self._row_copy[mine], chosen[mine]) for mine in rows])
        order = np.argsort(np.concatenate(rows))
        observations, rewards, terminated, truncated, faulty = (np.concatenate(parts)[order] for parts in zip(*found))
        self._clock += 1
        self._observations = observations.copy()
        truncated = (truncated | (self._clock >= self.horizon)) & ~terminated
        return Outcome(*map(torch.from_numpy, (observations, rewards, terminated, truncated, faulty)))

    def keep(self, rows: Int64[Tensor, "kept"]) -> None:
        """Keeps `rows`; see `Simulator.keep`."""
        worker, kept = self._rows(), rows.cpu().numpy()
        if (kept.size and (kept.min() < 0 or kept.max() >= len(worker))) or len(np.unique(kept)) < len(kept):
            raise SimulatorError(f"rows to keep must be in [0, {len(worker)}), each once, got {kept.tolist()}.")
        self._row_worker, self._row_copy = worker[kept], self._row_copy[kept]
        self._clock, self._observations = self._clock[kept], self._observations[kept]

    def snapshot(self) -> Float64[np.ndarray, "envs width"]:
        """Clock, observation and saved state of every row; see `Restorable.snapshot`.

        Raises:
            SimulatorError: if the environment cannot be gone back in.
        """
        worker = self._restorable_rows()
        rows = [np.flatnonzero(worker == index) for index in range(len(self._workers))]
        saved = np.concatenate(self._each([("save", self._row_copy[mine]) for mine in rows]))
        order = np.argsort(np.concatenate(rows))
        return np.concatenate((self._clock[:, None].astype(np.float64), self._observations, saved[order]), axis=1)

    def restore(self, snapshots: Float64[np.ndarray, "envs width"]) -> Float64[Tensor, "envs obs"]:
        """Goes on from `snapshots`; see `Restorable.restore`.

        Raises:
            SimulatorError: if the rows are not of this environment, or it cannot be gone back in.
        """
        self._require_restorable()
        width = 1 + self.observation_dim + self._facts.width
        if snapshots.ndim != 2 or snapshots.shape[1] != width:
            raise SimulatorError(
                f"snapshots of shape {snapshots.shape} are not of this environment, whose rows have {width} numbers: "
                "restore only what a simulator of the same environment gave."
            )
        clock, observations, states = np.split(snapshots, (1, 1 + self.observation_dim), axis=1)
        self._begin("load", states.copy())  # repeated when a worker fails, whatever became of the caller's array
        self._clock, self._observations = clock[:, 0].astype(np.int64), observations.copy()
        return torch.from_numpy(observations.copy())

    def named(self) -> list[dict[str, str]]:
        """By row, all that could be part of its state, as text by name; see `Inspectable.named`."""
        worker = self._rows()
        rows = [np.flatnonzero(worker == index) for index in range(len(self._workers))]
        found = self._each([("named", self._row_copy[mine]) for mine in rows])
        flat = [names for part in found for names in part]
        return [flat[index] for index in np.argsort(np.concatenate(rows))]

    def close(self) -> None:
        """Ends the workers. Happens by itself when nobody holds the simulator any more."""
        self._finalizer()

    def __enter__(self) -> "GymnasiumSimulator":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _learn(self) -> Facts:
        """The first worker finds out, all take it over."""
        self._workers[0].ask("learn")
        facts: Facts = self._workers[0].answer()
        self._workers[0].remember()
        self._each([("prepare", facts)] * len(self._workers))
        return facts

    def _each(self, requests: list[tuple[Any, ...]]) -> list[Any]:
        """Asks every worker for something and waits for all; where one fails, none has done it."""
        if not self._finalizer.alive:
            raise SimulatorError("the simulator has been closed: make another.")
        for worker, request in zip(self._workers, requests, strict=True):
            worker.ask(*request)
        found = [worker.answer() for worker in self._workers]
        for worker in self._workers:
            worker.remember()
        return found

    def _begin(self, name: str, origins: list[int] | Float64[np.ndarray, "envs width"]) -> list[Any]:
        """Begins an episode from each of `origins`, of which every worker gets a slice."""
        bounds = np.linspace(0, len(origins), len(self._workers) + 1).astype(int)
        found = self._each([(name, origins[start:stop]) for start, stop in pairwise(bounds)])
        sizes = np.diff(bounds)
        self._row_worker = np.repeat(np.arange(len(sizes)), sizes)
        self._row_copy = np.arange(len(origins)) - bounds[self._row_worker]
        return found

    def _rows(self) -> Int64[np.ndarray, "envs"]:
        if self._row_worker is None:
            raise SimulatorError("no episode has been started: call reset or restore first.")
        return self._row_worker

    def _restorable_rows(self) -> Int64[np.ndarray, "envs"]:
        self._require_restorable()
        return self._rows()

    def _require_restorable(self) -> None:
        if self.refusal:
            raise SimulatorError(
                f"one cannot go back in this environment: {self.refusal}. Give get_state and set_state, or use "
                "PPO-DT or Q-guided GRPO-DT, which do not need it."
            )

    def _checked(self, actions: Float32[Tensor, "envs action"]) -> Float32[np.ndarray, "envs action"]:
        if actions.shape != (len(self._rows()), self.action_dim):
            raise SimulatorError(
                f"actions have shape {tuple(actions.shape)}, but there are {len(self._rows())} rows of "
                f"{self.action_dim} numbers each: give one action a row that was kept."
            )
        return np.ascontiguousarray(actions.detach().cpu().numpy())


def _by_name(name: str) -> Callable[[], gymnasium.Env]:
    """What makes the environment of an ID; workers do not know what this process registered."""
    module, _, short = name.rpartition(":")
    try:
        if module:
            import_module(module)
        spec = gymnasium.spec(short)
    except (gymnasium.error.Error, ImportError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(
            f"there is no Gymnasium environment {name!r} ({said}): give the ID of one that is registered, "
            "module:ID to import its module first, or a callable."
        ) from error
    return partial(gymnasium.make, spec, disable_env_checker=True)


def _close(workers: list[Worker]) -> None:
    for worker in workers:
        worker.close()
