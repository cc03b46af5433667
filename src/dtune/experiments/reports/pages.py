"""What the pages of a run and of a folder of records show."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dtune.errors import DataError
from dtune.experiments.record import read_run
from dtune.experiments.reports.collect import begun, collect, find_runs
from dtune.experiments.reports.drawing import colour
from dtune.experiments.reports.figures import AXES, FIGURES, band, curve_label, curves_of
from dtune.experiments.reports.formats import Grid, Word
from dtune.experiments.reports.formats import Line as Row
from dtune.experiments.reports.page import Line, Page, Panel, films
from dtune.experiments.reports.report import report
from dtune.experiments.reports.results import Curve, label
from dtune.experiments.reports.scores import Score, choose_groups, published

_LABELS = {axis.column: axis.label for axis in AXES}
_RUN_AXES = {"iteration": "iteration", "env_steps": "count/env_steps", "seconds": "time/seconds"}
_FIRST = ("eval/normalized_score", "eval/return", "eval/length", "train/ratio_max", "train/kl", "train/entropy")
_BLUE = "#0072B2"
_POINTS = 100
"""Of a curve in a page of many."""
_DASHES = ("", "6 3", "2 2", "8 3 2 3")


def run_page(folder: Path) -> Page:
    """The page of one run: all its metrics, its evaluations, films, settings and versions.

    Raises:
        DataError: if the folder has no rows yet.
    """
    rows = read_run(folder)
    if not rows:
        raise DataError(f"{folder} holds no metrics: give a run folder, or one of records.")
    keys = list(dict.fromkeys(key for row in rows for key in row))
    shown = [key for key in keys if not key.startswith(("count/", "time/")) and key != "iteration"]
    shown.sort(key=lambda key: (_FIRST.index(key) if key in _FIRST else len(_FIRST), key.split("/")[0]))
    panels = [Panel(title=key, lines=[_metric(rows, key)]) for key in shown]
    start, config = begun(folder), _json(folder / "config.json")
    lead = "  ".join(str(part) for part in (config.get("dataset"), _seed(config), start.get("date")) if part)
    return Page(
        title=str(folder),
        lead=lead,
        axes=_LABELS,
        panels={"": [panel for panel in panels if panel.lines[0].axes]},
        grids=[_evaluations(rows)],
        films=films(folder),
        details=_documents([folder]),
    )


def results_page(
    source: Path, groups: Mapping[str, Sequence[Curve]], score: Score = "final", wanted: Sequence[str] | None = None,
    only: str | None = None,
) -> Page:  # fmt: skip
    """The page of a folder of records or of runs: curves of every dataset, the tables, settings and versions.

    Args:
        source: the folder.
        groups: its records, see `collect.load`.
        score: the main number.
        wanted: methods of the columns.
        only: which run folders were taken, as `collect` has it.
    """
    panels: dict[str, list[Panel]] = {}
    grids: list[Grid] = []
    for title, (curves, methods) in choose_groups(groups, wanted).items():
        names = {method: label(method) for method in methods}
        order = [*methods, *sorted({curve.method for curve in curves} - {*methods})]  # one legend for all panels
        found = {name: _runs(curves, name, methods) for name in _datasets(curves, methods)}
        panels[title] = [_panel(name, runs, names, order) for name, runs in found.items()]
        panels[title] += () if wanted else _figures(curves, order)
        grids += report(curves, methods, title=title, score=score)
    count = sum(map(len, groups.values()))
    runs = list(collect(source, only=only)[0]) if source.is_dir() and any(find_runs(source)) else []
    return Page(
        title=str(source),
        lead=f"{count} runs; normalised scores, mean and ± 1 standard deviation over seeds",
        axes=_LABELS,
        panels=panels,
        grids=grids,
        films=films(source),
        details=_documents(runs[:: max(1, -(-len(runs) // 100))]),
    )


def _metric(rows: Sequence[Mapping[str, float]], key: str) -> Line:
    """One metric of one run, against every axis that was recorded with it."""
    axes = {}
    for axis, across in _RUN_AXES.items():
        points = [(row[across], row[key]) for row in rows if across in row and key in row]
        if points and np.isfinite(points).all():
            axes[axis] = {"x": [x for x, _ in points], "y": [y for _, y in points]}
    return Line(name=key, colour=_BLUE, axes=axes)


def _figures(curves: Sequence[Curve], order: Sequence[str]) -> Iterator[Panel]:
    """What the paper's figures compare, a panel a dataset; Fig. 3 is the methods, which are shown anyway."""
    for spec in (spec for name, spec in FIGURES.items() if name != "3"):
        for dataset, runs in curves_of(spec, curves).items():
            names = {method: curve_label(spec, method) for method in runs}
            yield _panel(f"{spec.title}, {dataset}", runs, names, order)


def _runs(curves: Sequence[Curve], dataset: str, methods: Sequence[str]) -> dict[str, list[Curve]]:
    runs = {method: [c for c in curves if c.dataset == dataset and c.method == method] for method in methods}
    return {method: some for method, some in runs.items() if some}


def _panel(title: str, runs: Mapping[str, Sequence[Curve]], names: Mapping[str, str], order: Sequence[str]) -> Panel:
    """Means and bands of normalised scores by method; of returns where there are no reference scores.

    Colours and dashes are by the place in `order`, whichever of its methods a panel shows.
    """
    scored = all(np.isfinite(curve.column("normalized_score")).all() for some in runs.values() for curve in some)
    lines = []
    for method, some in runs.items():
        axes: dict[str, dict[str, Sequence[float]]] = {}
        for axis in AXES:
            found = band(some, axis.column, "normalized_score" if scored else "return", points=_POINTS)
            if found is not None:
                axes[axis.column] = {"x": found.across.tolist(), "y": found.mean.tolist()}
                if found.seeds > 1 and len(found.across) > 1:
                    low, high = found.mean - found.deviation, found.mean + found.deviation
                    axes[axis.column] |= {"low": low.tolist(), "high": high.tolist()}
        dash = _DASHES[order.index(method) % len(_DASHES)] if "+" in method else ""
        lines.append(Line(name=names[method], colour=colour(method, order), dash=dash, axes=axes))
    return Panel(title=title if scored else f"{title}, return", lines=lines)


def _datasets(curves: Sequence[Curve], methods: Sequence[str]) -> list[str]:
    order = list(published())
    names = {curve.dataset for curve in curves if curve.method in methods}
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def _evaluations(rows: Sequence[Mapping[str, float]]) -> Grid:
    """The first, the best and the last evaluation."""
    judged = [row for row in rows if "eval/return" in row]
    if not judged:
        return Grid(
            title="not judged yet",
            header=["", "iterations"],
            lines=[Row(words=[Word("so far"), _word(rows[-1], "iteration")])],
        )
    best = max(judged, key=lambda row: row["eval/return"])
    columns = {
        "iteration": "iteration", "return": "eval/return", "±": "eval/return_std", "score": "eval/normalized_score",
        "length": "eval/length", "env steps": "count/env_steps", "gradient steps": "count/gradient_steps",
        "seconds": "time/seconds",
    }  # fmt: skip
    chosen = (("first", judged[0]), ("best", best), ("last", judged[-1]))
    lines = [Row(words=[Word(name), *(_word(row, key) for key in columns.values())]) for name, row in chosen]
    note = "± over the episodes of an evaluation; seconds of training, without evaluations"
    return Grid(title="evaluations", header=["", *columns], lines=lines, notes=[note])


def _word(row: Mapping[str, float], key: str) -> Word:
    if key not in row:
        return Word("–")
    return Word(f"{row[key]:,.0f}" if key.startswith(("count/", "time/", "iteration")) else f"{row[key]:,.1f}")


def _documents(folders: Sequence[Path]) -> list[tuple[str, str, Any]]:
    """Settings of every run, and the versions they were begun with."""
    settings = [
        ("Configuration", str(folder), config) for folder in folders if (config := _json(folder / "config.json"))
    ]
    begins = [("Versions", str(folder), meta) for folder in folders if (meta := begun(folder))]
    return [*settings, *begins]


def _seed(config: Mapping[str, Any]) -> str:
    return f"seed {config['seed']}" if "seed" in config else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
