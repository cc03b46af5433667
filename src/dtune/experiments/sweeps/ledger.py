"""The ledger of a sweep: what became of each of its runs, in one file that is whole at any moment."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from dtune.errors import DataError
from dtune.experiments import disk
from dtune.experiments.record import read_rows
from dtune.experiments.sweeps.estimates import Measured
from dtune.experiments.sweeps.jobs import Change, State
from dtune.experiments.sweeps.plans import Run

FILE = "ledger.jsonl"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What became of a run."""

    key: str
    """Its folder, below the sweep's."""
    arguments: list[str]
    """Of `dtune`."""
    method: str
    dataset: str
    scale: str
    state: State = "pending"
    attempts: int = 0
    """Starts, of all calls of the sweep together."""
    seconds: float = 0.0
    """By the clock, of the starts that ended in order."""
    iterations: int = 0
    megabytes: float = 0.0
    code: int = 0
    """Exit code of the last start."""


class Ledger:
    """The entries of a sweep's folder, by key; one line of JSON each.

    Args:
        out: the sweep's folder.

    Raises:
        DataError: if there is a ledger that cannot be read.
    """

    def __init__(self, out: Path) -> None:
        self._out, self._path = out, out / FILE
        self.entries: dict[str, Entry] = _read(self._path) if self._path.exists() else {}

    def enter(self, runs: Sequence[Run]) -> None:
        """Enters runs that are new, or that are asked for with other options; entries of other sweeps stay.

        What was running belonged to a sweep that is gone. What is done stays so while its folder is there.
        """
        for run in runs:
            fresh = Entry(
                key=run.key, arguments=list(run.arguments), method=run.method, dataset=run.dataset, scale=run.scale
            )
            entry = self.entries.get(run.key, fresh)
            if entry.arguments != fresh.arguments or not (entry.state == "done" and self._is_there(run.key)):
                entry = replace(entry, arguments=fresh.arguments, state="pending")
            self.entries[run.key] = entry
        self._write()

    def note(self, change: Change, attempts: int) -> Entry:
        """Writes down what became of a run; `attempts` are those before this call of the sweep."""
        entry = self.entries[change.key]
        count = max(entry.attempts, attempts + change.starts)
        entry = replace(entry, state=change.state, attempts=count, code=change.code)
        if change.state != "running":
            entry = replace(entry, seconds=entry.seconds + change.seconds)
        if change.state == "done":
            rows = read_rows(self._out / change.key / "metrics.csv")
            size = sum(path.stat().st_size for path in (self._out / change.key).rglob("*") if path.is_file())
            entry = replace(entry, iterations=int(rows[-1]["iteration"]) if rows else 0, megabytes=size / 1e6)
        self.entries[change.key] = entry
        self._write()
        return entry

    def measured(self) -> list[Measured]:
        """The runs that are done, for estimates."""
        return [
            Measured(e.method, e.dataset, e.scale, e.iterations, e.seconds, e.megabytes)
            for e in self.entries.values()
            if e.state == "done" and e.seconds > 0
        ]

    def _is_there(self, key: str) -> bool:
        return (self._out / key / "checkpoints" / "last").exists()

    def _write(self) -> None:
        lines = (json.dumps(asdict(entry), allow_nan=False) for entry in self.entries.values())
        disk.replace(self._path, "".join(f"{line}\n" for line in lines).encode())


def _read(path: Path) -> dict[str, Entry]:
    known = {field.name for field in fields(Entry)}
    try:
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        found = [Entry(**{name: entry[name] for name in known}) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no ledger of a sweep ({error!r}): move it away, and the sweep writes another"
        ) from error
    return {entry.key: entry for entry in found}
