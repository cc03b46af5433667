"""Many runs, here or on a Ray cluster: what is finished is skipped, what is not goes on where it was."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from dtune.errors import DtuneError
from dtune.experiments.folder import locked
from dtune.experiments.record import read_rows
from dtune.experiments.signals import Stopped, name_and_code, stop_signals
from dtune.experiments.sweeps.estimates import estimate
from dtune.experiments.sweeps.jobs import REFUSED, Change, Engine, Job, State, last_words
from dtune.experiments.sweeps.ledger import Ledger
from dtune.experiments.sweeps.plans import Run

LOGS = "logs"
"""Folder of what the runs print, below the sweep's."""

PATIENCE = 0.5
"""Seconds to wait for a change before looking whether to stop."""

Say = Callable[[str], None]


def run_sweep(
    runs: Sequence[Run], out: Path, make_engine: Callable[[], Engine], *, jobs: int = 1, say: Say = print
) -> None:
    """Runs all that is not done yet.

    Args:
        runs: pretrainings before those that begin with them.
        out: the sweep's folder, which holds theirs.
        make_engine: gives what runs them.
        jobs: how many run at a time; only for what is said of the time they take.
        say: prints a line.

    Raises:
        ConfigError: if another sweep is at work in the folder.
        Stopped: after SIGINT or SIGTERM, once all runs have saved.
        DtuneError: if runs failed; the others are done.
    """
    with locked(out):
        ledger = Ledger(out)
        ledger.enter(runs)
        announce(runs, ledger, jobs=jobs, out=out, say=say)
        if all(ledger.entries[run.key].state == "done" for run in runs):
            return
        with closing(make_engine()) as engine, stop_signals() as stop:
            sweep = _Sweep(runs, out, engine, ledger, say)
            while sweep.unfinished and not stop:
                sweep.advance()
            if stop:
                sweep.stop(stop[0])
        sweep.complain()


def announce(runs: Sequence[Run], ledger: Ledger | None, *, jobs: int, out: Path, say: Say) -> None:
    """Says how many runs there are, how many are done, and what the others will take."""
    entries = ledger.entries if ledger else {}
    left = [run for run in runs if run.key not in entries or entries[run.key].state != "done"]
    before = sum(run.method == "pretrain" for run in runs)
    done = len(runs) - len(left)
    say(f"runs: {len(runs) - before}, pretrainings before them: {before}; done: {done} of {len(runs)}")
    if not left:
        return
    asked = [(run.method, run.dataset, run.scale, run.iterations, run.time_limit) for run in left]
    found = estimate(asked, ledger.measured() if ledger else ())
    source = f"measured for {found.measured} of them" if found.measured else "stated estimates: nothing is measured yet"
    say(
        f"the others take about {found.hours / jobs:,.1f} hours with {jobs} at a time, and {found.gigabytes:,.1f} GB"
        f" ({source})"
    )
    free = shutil.disk_usage(next(path for path in (out, *out.absolute().parents) if path.exists())).free / 1e9
    if found.gigabytes > free:
        say(f"there are only {free:,.1f} GB free at {out}: choose another --out, or make room")


class _Sweep:
    """The state of `run_sweep`."""

    def __init__(self, runs: Sequence[Run], out: Path, engine: Engine, ledger: Ledger, say: Say) -> None:
        self._out, self._engine, self._ledger, self._say = out, engine, ledger, say
        self._runs = {run.key: run for run in runs}
        self._before = {run.key: ledger.entries[run.key].attempts for run in runs}
        self._submitted: set[str] = set()

    @property
    def unfinished(self) -> bool:
        """Whether there is anything left that can be run."""
        return any(self._state(key) in ("pending", "running") for key in self._runs)

    def advance(self) -> None:
        """Submits what has become possible, and writes down what has changed."""
        for key, run in self._runs.items():
            before = "done" if run.after is None else self._state(run.after)
            if self._state(key) == "pending" and key not in self._submitted:
                if before == "failed":
                    self._note(Change(key=key, state="failed", code=REFUSED[0]))
                elif before == "done":
                    self._submitted.add(key)
                    self._engine.submit(Job(key=key, arguments=run.arguments, log=self._log(key)))
        for change in self._engine.poll(PATIENCE):
            self._note(change)

    def stop(self, number: int) -> None:
        """Ends what is running, and the sweep."""
        self._say("stopping: every run saves first")
        for change in self._engine.stop(number):
            self._note(change)
        for key in self._runs:  # those that were not even begun
            if self._state(key) == "running":
                self._note(Change(key=key, state="pending"))
        name, code = name_and_code(number)
        done = sum(self._state(key) == "done" for key in self._runs)
        raise Stopped(f"stopped by {name} with {done} of {len(self._runs)} done: the same command goes on", code)

    def complain(self) -> None:
        """Says which runs failed, if any did."""
        failed = [key for key in self._runs if self._state(key) == "failed"]
        if failed:
            raise DtuneError(
                f"{len(failed)} of {len(self._runs)} failed ({', '.join(failed[:5])}{', …' if failed[5:] else ''}):"
                f" {self._out / LOGS} says why; the same command tries them again, and leaves what is done alone"
            )

    def _state(self, key: str) -> State:
        return self._ledger.entries[key].state

    def _log(self, key: str) -> Path:
        return self._out / LOGS / f"{key.replace('/', '.')}.log"

    def _note(self, change: Change) -> None:
        entry = self._ledger.note(change, self._before[change.key])
        if change.state == "running":
            return
        done = sum(self._state(key) == "done" for key in self._runs)
        about = f"{entry.seconds:,.0f} s"
        if change.state == "done":
            scores = [
                row for row in read_rows(self._out / change.key / "metrics.csv") if "eval/normalized_score" in row
            ]
            about += f", score {scores[-1]['eval/normalized_score']:.1f}" if scores else ""
        elif change.state == "failed":
            about = last_words(self._log(change.key)) if change.starts else "the pretraining it begins with failed"
        self._say(f"{done}/{len(self._runs)} {change.state} {change.key} ({about})")
