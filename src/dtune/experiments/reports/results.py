"""Results in git: one CSV a run, a row an evaluation. Tables and figures are made of nothing else.

The name of a file says what ran: `DATASET_METHOD_seedN.csv`, where METHOD may carry a variant, `grpo+relabel`.
"""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import Float64

from dtune.errors import DataError

COLUMNS = (
    "iteration",
    "env_steps",
    "env_steps_trajectories",
    "env_steps_subtrajectories",
    "env_steps_lookahead",
    "gradient_steps",
    "critic_steps",
    "seconds",
    "return",
    "return_std",
    "normalized_score",
    "success",
    "length",
    "ratio_max",
    "ratio_peak",
    "fresh_ratio_error",
)
"""Columns of numbers; `seed` and `data` (the file trained on) follow. An empty cell was not measured."""

COUNTED = COLUMNS[COLUMNS.index("env_steps") : COLUMNS.index("return")]
"""Columns that begin at 0: before the first iteration they are left empty."""

LABELS = {
    "dt": "DT",
    "iql": "IQL",
    "odt": "ODT",
    "odt_td3": "ODT+TD3",
    "ppo": "PPO-DT",
    "grpo": "GRPO-DT",
    "q_guided": "Q-guided GRPO-DT",
}
"""What the paper calls each method, in the order of Table 1."""

FINAL_EVALUATIONS = 3
"""The final score is the mean of so many last evaluations: a single one can be lucky."""

_NAME = re.compile(r"(?P<dataset>[^_/]+)_(?P<method>[^/]+)_seed(?P<seed>\d+)\.csv")


@final
@dataclass(frozen=True, kw_only=True)
class Curve:
    """The evaluations of one run, oldest first."""

    dataset: str
    """Name of the dataset; it decides the task."""
    method: str
    """Key of `LABELS`, and a variant behind a plus where there is one."""
    seed: int
    """Of the run."""
    data: str = ""
    """Name of the file trained on; empty where not known."""
    columns: dict[str, Float64[np.ndarray, "evaluations"]]
    """By name of `COLUMNS`; NaN where not measured, and counts begin at 0."""
    finished: bool = True
    """Whether the run has come to its end; records of those that have not are not written."""

    def __len__(self) -> int:
        """Evaluations."""
        return len(self.columns["iteration"])

    def column(self, name: str) -> Float64[np.ndarray, "evaluations"]:
        """One column; NaN throughout where the record has none of that name."""
        return self.columns.get(name, np.full(len(self), math.nan))

    @property
    def final(self) -> float:
        """Normalised score, mean of the last `FINAL_EVALUATIONS`; NaN where there are no reference scores.

        The evaluation before training counts only where there is no other.
        """
        scores = self.column("normalized_score")
        trained = scores[self.column("iteration") > 0]
        return float((trained if len(trained) else scores)[-FINAL_EVALUATIONS:].mean())

    @property
    def best(self) -> float:
        """Normalised score of the best single evaluation, the one before training included."""
        return float(self.column("normalized_score").max())

    @property
    def file_name(self) -> str:
        """What its CSV is called."""
        return f"{self.dataset}_{self.method}_seed{self.seed}.csv"


def label(method: str) -> str:
    """What people call a method and its variant."""
    base, _, variant = method.partition("+")
    return LABELS.get(base, base) + (f" + {variant}" if variant else "")


def parse_name(name: str) -> tuple[str, str, int] | None:
    """Dataset, method and seed that the name of a file says; None where it is not the name of a record."""
    found = _NAME.fullmatch(name)
    return (found["dataset"], found["method"], int(found["seed"])) if found else None


def write_curve(curve: Curve, folder: Path) -> Path:
    """Writes a record into `folder`, under its own name; columns never measured are left out.

    Raises:
        DataError: if its names cannot be told apart in the name of a file.
    """
    said = (curve.dataset, curve.method, curve.seed)
    if parse_name(curve.file_name) != said:
        raise DataError(f"{curve.file_name} cannot name a record: a dataset has no underscore, and nothing a slash.")
    measured = [name for name in COLUMNS if not np.isnan(curve.column(name)).all()]
    header = [*measured, "seed", *(["data"] if curve.data else [])]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in range(len(curve)):
        cells = [_text(float(curve.column(name)[row])) for name in measured]
        writer.writerow([*cells, curve.seed, *([curve.data] if curve.data else [])])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / curve.file_name
    path.write_bytes(text.getvalue().encode())
    return path


def read_curve(path: Path) -> Curve:
    """Reads one record.

    Raises:
        DataError: if its name or its content is not that of a record, saying where.
    """
    path = Path(path)
    said = parse_name(path.name)
    if said is None:
        raise DataError(f"{path} is not named like a record: DATASET_METHOD_seedN.csv, as in results/README.md.")
    try:
        lines = list(csv.reader(path.read_bytes().decode().splitlines(), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}): collect its run again, or delete it.") from error
    header = lines[0] if lines else []
    if not {"iteration", "return"} <= set(header) or len(set(header)) < len(header):
        raise DataError(f"{path} is no record: its first line names the columns, iteration and return among them.")
    if len(lines) < 2:
        raise DataError(f"{path} holds no evaluation: collect its run again, or delete it.")
    rows = [_row(path, header, cells, number) for number, cells in enumerate(lines[1:], start=2)]
    return _curve(path, said, header, rows)


def read_results(folder: Path) -> dict[str, list[Curve]]:
    """Reads every record in a folder and below, ordered by name.

    Returns:
        Records by the folder they are in, relative to `folder` ("" for itself): what lies together is compared.

    Raises:
        DataError: if one is damaged, or two say the same of dataset, method and seed.
    """
    folder = Path(folder)
    paths = [folder] if folder.is_file() else sorted(folder.rglob("*.csv"))
    groups: dict[str, list[Curve]] = {}
    for path in paths:
        if folder.is_file() or parse_name(path.name) is not None:
            place = "" if folder.is_file() else path.parent.relative_to(folder).as_posix()
            groups.setdefault("" if place == "." else place, []).append(read_curve(path))
    return groups


def _curve(path: Path, said: tuple[str, str, int], header: Sequence[str], rows: Sequence[Mapping[str, str]]) -> Curve:
    dataset, method, seed = said
    columns = {}
    for name in COLUMNS:
        if name in header:
            columns[name] = np.array([_number(path, number, name, row[name]) for number, row in enumerate(rows, 2)])
    if np.isnan(columns["iteration"]).any() or (np.diff(columns["iteration"]) <= 0).any():
        raise DataError(f"{path} is out of order: iterations rise from line to line, and none is left out.")
    if any(row.get("seed", str(seed)) != str(seed) for row in rows):
        raise DataError(f"{path} is named seed {seed} but holds another: give it the name of the run it is of.")
    for name in COUNTED:
        if name in columns and columns["iteration"][0] == 0 and np.isnan(columns[name][0]):
            columns[name][0] = 0.0
    return Curve(dataset=dataset, method=method, seed=seed, data=rows[0].get("data", ""), columns=columns)


def _row(path: Path, header: list[str], cells: list[str], number: int) -> dict[str, str]:
    if len(cells) != len(header):
        raise DataError(f"{path}, line {number}: {len(cells)} cells under {len(header)} columns; collect it again.")
    return dict(zip(header, cells))


def _number(path: Path, line: int, name: str, cell: str) -> float:
    try:
        value = float(cell) if cell else math.nan
    except ValueError:
        value = math.inf
    if cell and not math.isfinite(value):
        raise DataError(f"{path}, line {line}: {name} is {cell!r}, but cells hold finite numbers or nothing.")
    return value


def _text(value: float) -> str:
    """The shortest text that reads back as the same number."""
    if math.isnan(value):
        return ""
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
