"""The record of a run: one row an iteration, in `metrics.csv`, `timing.csv` and TensorBoard.

`metrics.csv` holds what follows from the seed alone, so that two runs of one seed can be compared byte by
byte; what a clock measured (`time/...`) goes to `timing.csv`. Floats are written with `repr`: reading gives
them back exactly.
"""

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from itertools import takewhile
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from dtune.errors import DataError, DtuneError
from dtune.experiments import disk

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Number = int | float
Row = dict[str, Number]


class Record:
    """Appends rows to the files of a run; a row that was appended survives a power cut.

    Args:
        directory: the run folder; made where it does not exist.
        columns: the only keys there can be, in this order; by default a key becomes a column, empty in the
            rows before, when it is first reported: evaluations are rarer than iterations.
        after: the iteration of the checkpoint the run continues from: rows after it are dropped, so that
            curves never double. None for a run from the start: all rows are dropped.
        tensorboard: whether to write TensorBoard events as well.
    """

    def __init__(
        self,
        directory: Path,
        columns: Sequence[str] | None = None,
        *,
        after: int | None = None,
        tensorboard: bool = True,
    ) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        timed, exact = _split(columns) if columns is not None else (None, None)
        self._tables = [
            _Table(self.directory / "metrics.csv", exact),
            _Table(self.directory / "timing.csv", timed),
        ]
        self._tensorboard = tensorboard
        self._writer: SummaryWriter | None = None
        self.truncate_after(after)

    def append(self, iteration: int, metrics: Mapping[str, Number]) -> None:
        """Adds the row of one iteration, to disk before this returns.

        Args:
            iteration: number of the iteration, greater than that of the row before.
            metrics: numbers by key. A column without one stays empty.

        Raises:
            DtuneError: for a key that is not in `columns`, or an iteration that is not greater.
        """
        timed, exact = _split(metrics)
        for table, keys in zip(self._tables, (exact, timed)):
            table.append(iteration, {key: metrics[key] for key in keys})
        if self._tensorboard:
            self._mirror(iteration, metrics)

    def truncate_after(self, iteration: int | None) -> None:
        """Drops the rows after `iteration` (all where None), and a last line that was half written."""
        for table in self._tables:
            table.truncate_after(iteration)
        self.close()

    def close(self) -> None:
        """Closes the TensorBoard events; the next row would open new ones."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> "Record":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _mirror(self, iteration: int, metrics: Mapping[str, Number]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # a second to import: only where it is wanted

            for path in self.directory.glob("events.out.tfevents.*"):
                path.unlink()  # files are read in the order of their clocks' times: several would double curves
            self._writer = SummaryWriter(str(self.directory), max_queue=1000)
            for row in read_run(self.directory)[:-1]:
                self._add_scalars(int(row.pop("iteration")), row)
        self._add_scalars(iteration, metrics)
        self._writer.flush()

    def _add_scalars(self, iteration: int, metrics: Mapping[str, Number]) -> None:
        assert self._writer is not None
        for key, value in metrics.items():
            self._writer.add_scalar(key, float(value), iteration)


class _Table:
    """One CSV file whose first column is `iteration`."""

    def __init__(self, path: Path, columns: Sequence[str] | None) -> None:
        self._path, self._fixed = path, columns
        self._columns: list[str] = []
        self._last: int | None = None  # iteration of the newest row; None: no file

    def append(self, iteration: int, values: Mapping[str, Number]) -> None:
        if self._last is not None and iteration <= self._last:
            raise DtuneError(
                f"Internal error: iteration {iteration} came after {self._last} in {self._path}: "
                "rows are in order, one an iteration."
            )
        unknown = [key for key in values if key not in self._columns]
        if unknown:
            self._add_columns(iteration, unknown)
        row = [str(iteration), *(_text(values[key]) if key in values else "" for key in self._columns)]
        created = self._last is None
        with open(self._path, "ab") as file:
            file.write(_csv([["iteration", *self._columns], row] if created else [row]))
            file.flush()
            os.fsync(file.fileno())
        if created:
            disk.sync_directory(self._path.parent)
        self._last = iteration

    def _add_columns(self, iteration: int, unknown: list[str]) -> None:
        if self._fixed is not None:
            raise DtuneError(
                f"Internal error: iteration {iteration} reports {', '.join(unknown)}, for which {self._path} "
                "has no column: name every key in `columns`."
            )
        if self._last is not None:
            header, *rows = _whole_lines(self._path)
            empty = [""] * len(unknown)
            disk.replace(self._path, _csv([[*header, *unknown], *([*row, *empty] for row in rows)]))
        self._columns += unknown

    def truncate_after(self, iteration: int | None) -> None:
        lines = _whole_lines(self._path) if iteration is not None and self._path.exists() else []
        header, rows = (lines[0], lines[1:]) if lines and lines[0] else ([], [])
        kept = list(takewhile(lambda row: len(row) == len(header) and _is_until(row[0], iteration), rows))
        if kept:
            disk.replace(self._path, _csv([header, *kept]))
            self._columns, self._last = header[1:], int(kept[-1][0])
            return
        self._columns, self._last = list(self._fixed or ()), None
        if self._path.exists():
            self._path.unlink()
            disk.sync_directory(self._path.parent)


def read_rows(path: Path) -> list[Row]:
    """Rows of a `metrics.csv` or `timing.csv`, oldest first; an empty cell is left out of its row.

    A last line without its newline is still being written, and not read.

    Raises:
        DataError: if the file is not such a table.
    """
    try:
        lines = _whole_lines(Path(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}): give the metrics.csv of a run folder.") from error
    if not lines:
        return []
    header, *rows = lines
    if header[:1] != ["iteration"]:
        raise DataError(f"{path} is not a record: its first column must be `iteration`, not {header[:1]}.")
    return [_row(path, header, cells, number) for number, cells in enumerate(rows, start=2)]


def read_run(directory: Path) -> list[Row]:
    """Metrics and timing of a run folder so far, together, oldest first; empty before the first row.

    Raises:
        DataError: if one of the files is not such a table.
    """
    tables = [read_rows(path) for name in ("metrics.csv", "timing.csv") if (path := Path(directory) / name).exists()]
    timed = {row["iteration"]: row for row in tables[1]} if len(tables) > 1 else {}
    return [{**row, **timed.get(row["iteration"], {})} for row in (tables[0] if tables else [])]


def read_columns(path: Path) -> dict[str, list[Number]]:
    """The same table by column: a list a key, NaN where a cell is empty."""
    rows = read_rows(path)
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: [row.get(key, math.nan) for row in rows] for key in keys}


def _row(path: Path, header: list[str], cells: list[str], number: int) -> Row:
    try:
        pairs = zip(header, cells, strict=True)
        return {key: _number(cell) for key, cell in pairs if cell}
    except ValueError as error:
        raise DataError(f"{path}, line {number}: {error}; delete the line, or rerun the run.") from error


def _number(cell: str) -> Number:
    try:
        return int(cell)
    except ValueError:
        return float(cell)


def _text(value: Number) -> str:
    return str(int(value)) if isinstance(value, Integral) else repr(float(value))


def _split(keys: Mapping[str, Number] | Sequence[str]) -> tuple[list[str], list[str]]:
    timed = [key for key in keys if key.startswith("time/")]
    return timed, [key for key in keys if not key.startswith("time/")]


def _csv(lines: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode()


def _whole_lines(path: Path) -> list[list[str]]:
    text = path.read_bytes().decode("utf-8", "replace")  # a strange byte becomes a strange cell, which is refused
    return [_cells(line) for line in text.split("\n")[:-1]]


def _cells(line: str) -> list[str]:
    """Those of one line, by itself: a stray quote swallows no other line. None where it is no line of a table."""
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error:
        return []


def _is_until(cell: str, iteration: int | None) -> bool:
    return iteration is not None and cell.isdecimal() and len(cell) < 20 and int(cell) <= iteration
