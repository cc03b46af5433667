"""The report of a folder of records: scores beside the paper's, intervals, and what each method cost."""

import csv
import io
import math
from collections.abc import Sequence

import numpy as np

from dtune.experiments.reports.formats import Grid, Line, Word
from dtune.experiments.reports.results import FINAL_EVALUATIONS, Curve, label
from dtune.experiments.reports.scores import (
    Cell,
    Cells,
    Intervals,
    Row,
    Score,
    cost_table,
    score_intervals,
    score_table,
)

NOTHING = "–"
_MEANING = {
    "final": f"final: mean of the last {FINAL_EVALUATIONS} evaluations",
    "best": "best: the best single evaluation, before training included",
}
_COSTS = (
    ("trajectories", "env_steps_trajectories"),
    ("sub-trajectories", "env_steps_subtrajectories"),
    ("lookahead", "env_steps_lookahead"),
    ("all env steps", "env_steps"),
    ("gradient steps", "gradient_steps"),
    ("critic steps", "critic_steps"),
    ("seconds", "seconds"),
)


def report(
    curves: Sequence[Curve], methods: Sequence[str], *, title: str = "", score: Score = "final", digits: int = 2
) -> list[Grid]:
    """All tables of records that are to be compared with each other.

    Args:
        curves: the records.
        methods: columns, see `scores.choose_methods`.
        title: of the folder; stands in front of each table's own.
        score: the main number.
        digits: behind the decimal point.
    """
    front = f"{title}: " if title else ""
    generator = np.random.default_rng(0)  # the same records always give the same intervals
    return [
        score_grid(score_table(curves, methods, score), methods, curves, front, score, digits),
        interval_grid(score_intervals(curves, methods, generator, score), methods, front, score),
        cost_grid(curves, methods, front),
    ]


def score_grid(
    rows: Sequence[Row], methods: Sequence[str], curves: Sequence[Curve], front: str, score: Score, digits: int
) -> Grid:
    """Table 1: three lines a dataset, of which the third is the paper's."""
    other: Score = "best" if score == "final" else "final"
    lines = []
    for row, following in zip(rows, [*rows[1:], None]):
        last = following is None or following.block != row.block
        main = [_word(row.cells.get(method), digits) for method in methods]
        beside = [Word(_number(cell.best, digits) if (cell := row.cells.get(m)) else NOTHING) for m in methods]
        paper = [_word(row.published.get(method), digits) for method in methods]
        lines.append(Line(words=[Word(row.label), Word(score), *main]))
        lines.append(Line(words=[Word(""), Word(other), *beside], last=last and not row.published))
        if row.published:
            lines.append(Line(words=[Word(""), Word("paper"), *paper], dim=True, last=last))
    notes = [
        "Normalised as D4RL's, mean ± sample standard deviation over seeds; bold: best of its row, underlined: within"
        " 10 % of it; an average is missing where a method was not run on every dataset of the block.",
        f"{_MEANING['final']}; {_MEANING['best']}; paper: Table 1, three seeds.",
        f"Seeds: {_seeds(rows)}.",
        *_not_finished(curves, methods),
        *_trained_on(curves, methods),
    ]
    header = ["", "", *map(label, methods)]
    return Grid(title=f"{front}normalised scores", header=header, lines=lines, notes=notes, left=2)


def interval_grid(found: Sequence[Intervals], methods: Sequence[str], front: str, score: Score) -> Grid:
    """Interquartile means, a line a method and a column a block."""
    lines = []
    for method in methods:
        words = [Word(_interval(block.values.get(method))) for block in found]
        lines.append(Line(words=[Word(label(method)), *words]))
    notes = [
        f"Interquartile mean of the {score} scores of all runs [95 % interval: 2,000 bootstrap resamples of the seeds"
        " within each dataset]; no interval where every dataset has one seed."
    ]
    header = ["", *(f"{block.block}, {block.datasets}" for block in found)]
    return Grid(
        title=f"{front}interquartile means, by block and number of datasets", header=header, lines=lines, notes=notes
    )


def cost_grid(curves: Sequence[Curve], methods: Sequence[str], front: str) -> Grid:
    """What a run of each method cost, a line a method."""
    costs = cost_table(curves, methods)
    shown = [(name, key) for name, key in _COSTS if any(math.isfinite(cost[key]) for cost in costs.values())]
    lines = []
    for method, cost in costs.items():
        counts = [_count(cost[key]) for key in ("runs", "iterations", *(key for _, key in shown))]
        lines.append(Line(words=[Word(label(method)), *map(Word, counts)]))
    notes = [
        "Means over runs. An iteration of one method is not an iteration of another: compare at equal environment"
        " steps or seconds. Seconds are of training, without evaluations."
    ]
    header = ["", "runs", "iterations", *(name for name, _ in shown)]
    return Grid(title=f"{front}what a run cost", header=header, lines=lines, notes=notes)


def scores_csv(rows: Sequence[Row], methods: Sequence[str], folder: str = "", score: Score = "final") -> str:
    """Table 1 for other programs: a line a dataset and method, full precision; averages have no dataset."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    other = "best" if score == "final" else "final"
    writer.writerow(
        ["folder", "block", "dataset", "method", "seeds", score, f"{score}_std", other, "mark", "paper", "paper_std"]
    )
    for row in rows:
        for method in methods:
            here, paper = row.cells.get(method), row.published.get(method)
            if here is None:
                continue
            said = [here.seeds, here.mean, here.deviation, here.best, here.mark]
            theirs = [None, None] if paper is None else [paper.mean, paper.deviation]
            writer.writerow([folder, row.block, row.dataset, method, *said, *theirs])
    return text.getvalue()


def _word(cell: Cell | None, digits: int) -> Word:
    if cell is None or math.isnan(cell.mean):
        return Word(NOTHING)
    deviation = "" if cell.deviation is None else f" ± {_number(cell.deviation, digits)}"
    return Word(_number(cell.mean, digits) + deviation, cell.mark)


def _number(value: float, digits: int) -> str:
    return NOTHING if math.isnan(value) else f"{value:.{digits}f}"


def _interval(value: tuple[float, tuple[float, float] | None] | None) -> str:
    if value is None:
        return NOTHING
    mean, bounds = value
    return f"{mean:.1f}" + (f" [{bounds[0]:.1f}, {bounds[1]:.1f}]" if bounds else "")


def _count(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:,.0f}"


def _seeds(rows: Sequence[Row]) -> str:
    """How many seeds the cells are of: one number if it is the same throughout."""
    counts = sorted({cell.seeds for row in rows if row.dataset for cell in _measured(row.cells)})
    return " to ".join(dict.fromkeys((str(counts[0]), str(counts[-1])))) if counts else "none"


def _measured(cells: Cells) -> list[Cell]:
    return [cell for cell in cells.values() if cell.seeds]


def _not_finished(curves: Sequence[Curve], methods: Sequence[str]) -> list[str]:
    """A sentence on runs that count, though they have not come to their ends."""
    early = [one for one in curves if one.method in methods and not one.finished]
    names = ", ".join(f"{label(one.method)} on {one.dataset} (seed {one.seed})" for one in early)
    return [f"Not finished: {names}."] if early else []


def _trained_on(curves: Sequence[Curve], methods: Sequence[str]) -> list[str]:
    """Which file each dataset was, where the records say so."""
    files: dict[str, set[str]] = {}
    for curve in curves:
        if curve.method in methods and curve.data:
            files.setdefault(curve.dataset, set()).add(curve.data)
    said = "; ".join(f"{name}: {', '.join(sorted(found))}" for name, found in sorted(files.items()))
    return [f"Data: {said}."] if said else []
