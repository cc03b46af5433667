"""Table 1 from records: final scores of every method on every dataset, beside the paper's own."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, final

import numpy as np

from dtune.errors import ConfigError
from dtune.experiments.reports.results import COUNTED, LABELS, Curve
from dtune.functional.statistics import interquartile_mean, mean_and_deviation, stratified_interval

PUBLISHED = Path(__file__).with_name("table_1.csv")
"""Table 1 of the paper, a line a dataset and method."""

NEAR = 0.1
"""Results within this share of the best are underlined (the caption of Table 1)."""

Score = Literal["final", "best"]


@final
@dataclass(frozen=True, kw_only=True)
class Cell:
    """One result: a mean over seeds, normalised score."""

    mean: float
    """Over seeds; of an average row, over datasets."""
    deviation: float | None = None
    """Sample standard deviation over seeds; None of one seed, of an average, and of the paper's DT."""
    seeds: int = 0
    """Runs behind it; 0 of what was not run here."""
    best: float = math.nan
    """The other of final and best score, mean over seeds."""
    mark: Literal["", "best", "near"] = ""
    """Whether it is the best of its row, or within 10 % of it."""


Cells = dict[str, Cell]


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """Results on one dataset, or the averages of a block, by method."""

    block: str
    """The block of Table 1 it belongs to."""
    dataset: str
    """Its name; empty of an average."""
    label: str
    """What Table 1 calls it."""
    cells: Cells
    """What was measured here."""
    published: Cells
    """What the paper says; of an average, over the same datasets as here."""


@final
@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Interquartile means over datasets and seeds, by method, with their intervals of 95 %."""

    block: str
    """The block of Table 1, or "all"."""
    datasets: int
    """Over how many."""
    values: dict[str, tuple[float, tuple[float, float] | None]]
    """No interval where every dataset has a single seed."""


@cache
def published() -> dict[str, tuple[str, str, Cells]]:
    """Table 1 of the paper: block, label and results by method, of each dataset in its order."""
    table: dict[str, tuple[str, str, Cells]] = {}
    with PUBLISHED.open(newline="") as file:
        for line in csv.DictReader(file):
            _, _, cells = table.setdefault(line["dataset"], (line["block"], line["label"], {}))
            deviation = float(line["deviation"]) if line["deviation"] else None
            cells[line["method"]] = Cell(mean=float(line["mean"]), deviation=deviation)
    return table


def choose_methods(curves: Sequence[Curve], wanted: Sequence[str] | None = None) -> list[str]:
    """Methods of the columns: those wanted or, of those there are, the plain ones; variants only where nothing else is.

    Raises:
        ConfigError: if one is wanted that no record is of.
    """
    there = {curve.method for curve in curves}
    if wanted:
        missing = [method for method in wanted if method not in there]
        if missing:
            raise ConfigError(f"there is no record of {', '.join(missing)}: choose of {', '.join(sorted(there))}")
        return list(dict.fromkeys(wanted))
    order = list(LABELS)
    plain = sorted((m for m in there if "+" not in m), key=lambda m: (order.index(m) if m in order else len(order), m))
    return plain or sorted(there)


def choose_groups(
    groups: Mapping[str, Sequence[Curve]], wanted: Sequence[str] | None = None
) -> dict[str, tuple[Sequence[Curve], list[str]]]:
    """Records and columns of each group, see `choose_methods`; groups that have none of those wanted are left out.

    Raises:
        ConfigError: if a method is wanted that no group has a record of.
    """
    if not wanted:
        return {title: (curves, choose_methods(curves)) for title, curves in groups.items()}
    order = choose_methods([curve for curves in groups.values() for curve in curves], wanted)
    there = {title: {curve.method for curve in curves} for title, curves in groups.items()}
    chosen = {title: [method for method in order if method in methods] for title, methods in there.items()}
    return {title: (groups[title], methods) for title, methods in chosen.items() if methods}


def score_table(curves: Sequence[Curve], methods: Sequence[str], score: Score = "final") -> list[Row]:
    """Table 1: a row a dataset in the paper's order, then others by name; behind a block of several its averages.

    A method's average is over all datasets of the block that any method was run on, and missing where it was not
    run on all of them: averages over different datasets are not comparable.

    Args:
        curves: records; those of other methods are left out.
        methods: columns.
        score: which score is the main number; the other stands beside it as `Cell.best`.
    """
    known = published()
    runs: dict[str, dict[str, list[Curve]]] = {}
    for curve in curves:
        if curve.method in methods:
            runs.setdefault(curve.dataset, {}).setdefault(curve.method, []).append(curve)
    order = [name for name in known if name in runs] + sorted(name for name in runs if name not in known)
    rows: list[Row] = []
    block: list[Row] = []
    for name in order:
        title, label, paper = known.get(name, ("Others", name, {}))
        if block and block[0].block != title:
            rows += [*block, *_average(block, methods)]
            block = []
        cells = {method: _cell(runs[name][method], score) for method in methods if method in runs[name]}
        shown = {method: paper[method] for method in methods if method in paper}
        block.append(Row(block=title, dataset=name, label=label, cells=_mark(cells), published=_mark(shown)))
    return [*rows, *block, *_average(block, methods)]


def score_intervals(
    curves: Sequence[Curve], methods: Sequence[str], generator: np.random.Generator, score: Score = "final"
) -> list[Intervals]:
    """Interquartile means of every block and of all datasets; a method that misses a dataset has none there."""
    known = published()
    scores: dict[str, dict[str, list[float]]] = {}
    for curve in curves:
        if curve.method in methods and math.isfinite(getattr(curve, score)):
            scores.setdefault(curve.dataset, {}).setdefault(curve.method, []).append(getattr(curve, score))
    blocks: dict[str, list[str]] = {}
    for name in [*(name for name in known if name in scores), *sorted(scores.keys() - known.keys())]:
        blocks.setdefault(known[name][0] if name in known else "Others", []).append(name)
    if len(blocks) > 1:
        blocks["all"] = list(scores)
    found = []
    for title, names in blocks.items():
        values = {}
        for method in methods:
            strata = [scores[name].get(method, []) for name in names]
            if all(strata):
                several = any(len(stratum) > 1 for stratum in strata)
                pooled = np.concatenate([np.asarray(stratum, float) for stratum in strata])
                interval = stratified_interval(strata, generator) if several else None
                values[method] = (float(interquartile_mean(pooled)), interval)
        found.append(Intervals(block=title, datasets=len(names), values=values))
    return found


def cost_table(curves: Sequence[Curve], methods: Sequence[str]) -> dict[str, dict[str, float]]:
    """What a run of each method cost: means over its runs of the last row's counts, `iterations` and `runs`.

    Counts that were not recorded are NaN.
    """
    table = {}
    for method in methods:
        runs = [curve for curve in curves if curve.method == method]
        ends = {name: float(np.mean([curve.column(name)[-1] for curve in runs])) for name in COUNTED}
        iterations = float(np.mean([curve.column("iteration")[-1] for curve in runs]))
        table[method] = {"runs": float(len(runs)), "iterations": iterations, **ends}
    return table


def _cell(runs: Sequence[Curve], score: Score) -> Cell:
    mean, deviation = mean_and_deviation([getattr(run, score) for run in runs])
    others = [run.best if score == "final" else run.final for run in runs]
    return Cell(mean=mean, deviation=deviation, seeds=len(runs), best=float(np.mean(others)))


def _average(block: Sequence[Row], methods: Sequence[str]) -> list[Row]:
    """The row of averages of a block; none of fewer than two datasets."""
    if len(block) < 2:
        return []
    cells, paper = {}, {}
    for method in methods:
        here = [row.cells[method] for row in block if method in row.cells]
        there = [row.published[method] for row in block if method in row.published]
        if len(here) == len(block):
            means, bests = [cell.mean for cell in here], [cell.best for cell in here]
            cells[method] = Cell(mean=float(np.mean(means)), best=float(np.mean(bests)), seeds=here[0].seeds)
        if len(there) == len(block):
            paper[method] = Cell(mean=float(np.mean([cell.mean for cell in there])))
    return [Row(block=block[0].block, dataset="", label="Average", cells=_mark(cells), published=_mark(paper))]


def _mark(cells: Cells) -> Cells:
    """Says which is the best of a row, and which are within 10 % of it."""
    means = [cell.mean for cell in cells.values() if math.isfinite(cell.mean)]
    if not means:
        return cells
    top = max(means)
    marked = {}
    for method, cell in cells.items():
        mark: Literal["", "best", "near"] = ""
        if cell.mean >= top - NEAR * abs(top):
            mark = "best" if cell.mean == top else "near"
        marked[method] = Cell(**{**vars(cell), "mark": mark})
    return marked
