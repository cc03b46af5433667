"""The one loop: iterate, evaluate, record, save; and carry on where a run was cut off."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch

from dtune import parallel
from dtune.checks import above_zero, finite
from dtune.envs.simulator import Simulator
from dtune.envs.watched import Watched
from dtune.errors import ConfigError, FaultsError, NumericError
from dtune.experiments import checkpoint, together
from dtune.experiments.alarms import Alarms
from dtune.experiments.evaluation import Evaluation
from dtune.experiments.live import Live
from dtune.experiments.mirrors import Mirror
from dtune.experiments.record import Record, read_rows
from dtune.experiments.replay import keep_walks
from dtune.experiments.signals import stop_signals, stopped_by
from dtune.models.policy import TrainablePolicy

Clock = Literal["wall", "processor"]
"""Whose seconds `time/seconds` are: those that go by, or those that all threads of this process work."""

_CLOCKS: dict[Clock, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}


@runtime_checkable
class Algorithm(Protocol):
    """Somebody's idea of learning: one file."""

    @property
    def policy(self) -> TrainablePolicy:
        """Who learns."""
        ...

    def iterate(self, simulator: Any) -> dict[str, float]:
        """One iteration; what happened, by metric key."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what the next iteration does, except the simulator."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long a run lasts, and how often it is judged and saved."""

    iterations: int
    evaluate_every: int = 10
    checkpoint_every: int = 10
    evaluate_seconds: float | None = None
    """Seconds of training between evaluations, each with a checkpoint, in place of those two."""
    time_limit: float | None = None
    """Seconds of training, over all pieces of a continued run and without evaluations; the first iteration that
    passes it is the last."""
    clock: Clock = "wall"
    """What counts them, here and in the record."""
    start_counts: bool = True
    """Whether the policy of the start, which is judged too, may be the best; one that has learned nothing may not."""

    def __post_init__(self) -> None:
        finite(self)
        above_zero(self, *(name for name in ("evaluate_seconds", "time_limit") if getattr(self, name) is not None))
        for name, least in (("iterations", 0), ("evaluate_every", 1), ("checkpoint_every", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} counts iterations and must be at least {least}, got {getattr(self, name)}")


@dataclass
class _Progress:
    """What the loop itself has to remember between iterations."""

    iteration: int = 0
    best: float = -float("inf")
    best_iteration: int = 0
    seconds: float = field(default=0.0, compare=False)  # of training, without evaluations; not in checkpoints

    def state_dict(self) -> dict[str, Any]:
        return {"iteration": self.iteration, "best": self.best, "best_iteration": self.best_iteration}


def train(
    algorithm: Algorithm,
    simulator: Simulator | None,
    schedule: Schedule,
    *,
    evaluation: Evaluation | None = None,
    directory: Path | None = None,
    documents: Mapping[str, Any] | None = None,
    title: str = "dtune",
    quiet: bool = False,
    mirror: Callable[[Callable[[str], None]], Mirror] | None = None,
) -> list[dict[str, float]]:
    """Runs `algorithm` to the end of `schedule`, from the last checkpoint in `directory` if there is one.

    A stopped or killed run leaves rows and weights that, continued, are byte for byte those of a run never
    disturbed on the same machine. Of several ranks the first keeps the folder, the display and the mirror; all stop
    after the same iteration.

    Args:
        algorithm: who learns.
        simulator: where; None for supervised learning.
        schedule: how long, and how often to judge and save.
        evaluation: how to judge the policy, before the first iteration too; None: not at all.
        directory: the run folder; None keeps nothing.
        documents: JSON files to put beside the weights of each checkpoint.
        title: said on the live line.
        quiet: print nothing.
        mirror: begins one that repeats every row, given whom to tell if it fails.

    Returns:
        The rows of `metrics.csv` (of this call only, where there is no directory).

    Raises:
        NumericError: if a parameter stops being finite, or too many numbers of the simulator: the last good checkpoint
            is intact, and `replay_….npz` in `directory` holds walks that led there.
        Stopped: after SIGINT, SIGTERM or SIGUSR1, with the state saved.
    """
    with ExitStack() as stack:
        stop = stack.enter_context(stop_signals())
        first_rank = not parallel.rank()
        loop = _Loop(algorithm, simulator, schedule, evaluation, directory, documents or {})
        first, limit, alarms = loop.progress.iteration, schedule.time_limit, Alarms()
        live = stack.enter_context(
            Live(title, schedule.iterations, first, time_limit=limit, quiet=quiet or not first_rank)
        )
        loop.mirror = stack.enter_context(mirror(live.say)) if mirror is not None and first_rank else None
        try:
            loop.open(live.say, stack)
            while not (asked := _agreed(stop)) and not loop.ended:
                row = loop.iterate()
                live.update(loop.progress.iteration, row)
                for sentence in alarms.heard(row):
                    live.say(sentence)
        except NumericError as error:
            raise loop.keep_replay(error) from error
        if asked:
            loop.save()
            raise stopped_by(asked, loop.progress.iteration)
        return loop.rows()


def _first_clock(seconds: float) -> float:
    """What the first rank has measured."""
    return float(parallel.from_first(torch.tensor(seconds, dtype=torch.float64)))


def _agreed(stop: list[int]) -> int:
    """The signal that asks some rank to stop, on all of them; 0 for none."""
    return int(parallel.largest(torch.tensor(stop[0] if stop else 0)))


class _Loop:
    """The state of `train`."""

    def __init__(
        self,
        algorithm: Algorithm,
        simulator: Simulator | None,
        schedule: Schedule,
        evaluation: Evaluation | None,
        directory: Path | None,
        documents: Mapping[str, Any],
    ):
        self.algorithm, self.schedule, self.documents = algorithm, schedule, documents
        self.kept, self.directory = directory is not None, None if parallel.rank() else directory
        self.simulator = None if simulator is None else Watched(simulator)
        self.evaluation, self.judged = evaluation, None
        if evaluation is not None:
            self.judged = Watched(evaluation.simulator)
            self.evaluation = replace(evaluation, simulator=self.judged)
        self.progress, self.saved, self.begun = _Progress(), 0, 0
        self.elapsed = 0.0  # seconds of the last iteration
        self.record: Record | None = None
        self.mirror: Mirror | None = None
        self._rows: list[dict[str, float]] = []
        self._resumed = None if directory is None else together.load_last(directory)
        if self._resumed is not None:
            self._restore(self._resumed)

    def _restore(self, found: checkpoint.Loaded) -> None:
        """Takes over the state of a checkpoint."""
        try:
            self.progress = _Progress(**found.state["progress"])
            self.algorithm.load_state_dict(found.state["algorithm"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ConfigError(
                f"{found.path} is of a run with another algorithm or policy ({' '.join(repr(error).split())[:200]}):"
                " choose another folder, or go on with what it was begun with"
            ) from error
        self.saved = self.progress.iteration

    @property
    def ended(self) -> bool:
        """Whether there is no iteration left to do, or no time."""
        limit = self.schedule.time_limit
        late = limit is not None and self.progress.seconds >= limit
        return late or self.progress.iteration >= self.schedule.iterations

    def open(self, say: Callable[[str], None], stack: ExitStack) -> None:
        """Opens the record behind the checkpoint continued from, or judges and saves the untrained start."""
        after = None if self._resumed is None else self._resumed.iteration
        if self._resumed is not None and self._resumed.warning:
            say(self._resumed.warning)
        if self.directory is not None:
            self.record = stack.enter_context(Record(self.directory, after=after))
            timed = read_rows(self.directory / "timing.csv") if after else []
            self.progress.seconds = timed[-1].get("time/seconds", 0.0) if timed else 0.0
        self.progress.seconds = _first_clock(self.progress.seconds)
        if after is None:
            self._append({})
            self.save()
        elif not self.ended:
            say(f"continuing after iteration {after} of {self.schedule.iterations}")

    def iterate(self) -> dict[str, float]:
        """One iteration, recorded."""
        self.begun = self.progress.iteration + 1
        for watched in self._watched:
            watched.forget()
        clock = _CLOCKS[self.schedule.clock]
        began = clock()
        metrics = self.algorithm.iterate(self.simulator)
        self.elapsed = _first_clock(clock() - began)
        parallel.same_from_first(list(self.algorithm.policy.parameters()))
        self._check_finite()
        self.progress.iteration += 1
        self.progress.seconds += self.elapsed
        before = self._rows[-1].get("count/env_steps", 0.0) if self._rows else 0.0
        timing = {"time/seconds": self.progress.seconds}
        if self._rows and "count/env_steps" in metrics:
            timing["time/env_steps_per_second"] = (metrics["count/env_steps"] - before) / self.elapsed
        row = self._append({**metrics, **timing})
        if self._due(self.schedule.checkpoint_every):
            self.save()
        return row

    def _due(self, every: int) -> bool:
        """Whether this iteration is one to do what is done in the first, the last, and regularly between."""
        seconds, now = self.schedule.evaluate_seconds, self.progress
        if self.ended or seconds is None:
            return self.ended or now.iteration % every == 0
        return not now.iteration or now.seconds // seconds > (now.seconds - self.elapsed) // seconds

    def _append(self, metrics: dict[str, float]) -> dict[str, float]:
        iteration = self.progress.iteration
        if self.evaluation is not None and self._due(self.schedule.evaluate_every):
            metrics = {**metrics, **self.evaluation(self.algorithm.policy)}
        if self.record is not None:
            self.record.append(iteration, metrics)
        if self.mirror is not None:
            self.mirror.log(iteration, metrics)
        self._rows.append({"iteration": iteration, **metrics})
        counts = iteration > 0 or self.schedule.start_counts
        if counts and metrics.get("eval/return", -np.inf) > self.progress.best:
            self.progress.best, self.progress.best_iteration = metrics["eval/return"], iteration
            if iteration:
                self.save()
        return metrics

    def save(self) -> None:
        """Writes a checkpoint of now, if there is a folder and it does not hold one yet."""
        now = self.progress.iteration
        if not self.kept or (now and self.saved == now):
            return
        self.saved = now  # what cannot be written ends the run
        state = {"algorithm": self.algorithm.state_dict(), "progress": self.progress.state_dict()}
        if self.directory is None:
            return  # the first rank has the folder; all gave their part of the state
        best = self.progress.best_iteration if self.progress.best > -np.inf else None
        checkpoint.save(self.directory, now, state, best=best, documents=self.documents)

    def keep_replay(self, error: NumericError) -> NumericError:
        """Writes the walks that led to `error` to the run folder, where they can be had; says so."""
        if self.directory is None or (isinstance(error, FaultsError) and not self._broken):
            return error  # another rank's walks broke
        task = None if self.evaluation is None else self.evaluation.task
        path = self.directory / f"replay_{self.begun:06d}.npz"
        return keep_walks(error, path, self._watched, task=task, iteration=self.begun)

    @property
    def _watched(self) -> list[Watched]:
        return [watched for watched in (self.simulator, self.judged) if watched is not None]

    @property
    def _broken(self) -> bool:
        """Whether walks of this rank broke in this iteration."""
        return any(watched.broken for watched in self._watched)

    def rows(self) -> list[dict[str, float]]:
        """What was recorded."""
        return self._rows if self.directory is None else read_rows(self.directory / "metrics.csv")

    def _check_finite(self) -> None:
        for name, value in self.algorithm.policy.named_parameters():
            if not torch.isfinite(value).all():
                raise NumericError(
                    f"parameter {name} stopped being finite in iteration {self.progress.iteration + 1}: lower the"
                    " learning rate; the last checkpoint is intact"
                )
