"""Figures 1 to 4 from records: which curves belong to which, and their means over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from jaxtyping import Float64

from dtune.experiments.reports.results import LABELS, Curve, label

POINTS = 200
"""Places at which a mean over seeds is taken."""


@final
@dataclass(frozen=True, kw_only=True)
class Axis:
    """What runs from left to right."""

    column: str
    """Of the record."""
    label: str
    """With its unit."""


AXES = (
    Axis(column="iteration", label="iterations"),
    Axis(column="env_steps", label="environment steps"),
    Axis(column="seconds", label="training time (s)"),
)

TABLE_1 = tuple(method for method in LABELS if method != "q_guided")


@final
@dataclass(frozen=True, kw_only=True)
class FigureSpec:
    """One figure of the paper."""

    title: str
    """What is compared."""
    curves: Sequence[str]
    """Methods, with their variants; a star stands for any number."""
    needs: Sequence[str] = ()
    """Of these one must be there, or the figure shows nothing of its own; any two curves where none is named."""
    ratio: bool = False
    """Whether the largest importance ratio is drawn as well."""
    labels: Mapping[str, str] | None = None
    """What the legend calls the curves of a pattern, `{}` being the number; `results.label` of the others."""


FIGURES: dict[str, FigureSpec] = {
    "1": FigureSpec(
        title="Fig. 1: hindsight return relabelling",
        curves=("grpo", "grpo+relabel", "ppo", "ppo+relabel"),
        needs=("grpo+relabel", "ppo+relabel"),
        ratio=True,
        labels={"grpo+relabel": "GRPO-DT, relabelled", "ppo+relabel": "PPO-DT, relabelled"},
    ),
    "2a": FigureSpec(
        title="Fig. 2a: sub-trajectories or full trajectories",
        curves=("grpo", "grpo+full"),
        labels={"grpo+full": "GRPO-DT, full trajectories"},
    ),
    "2b": FigureSpec(
        title="Fig. 2b: groups from one state or from several",
        curves=("grpo", "grpo+mixed"),
        labels={"grpo+mixed": "GRPO-DT, groups of mixed states"},
    ),
    "2c": FigureSpec(
        title="Fig. 2c: importance ratio of the sequence or of each action",
        curves=("grpo", "grpo+sequence", "grpo+token"),
        labels={"grpo+sequence": "GRPO-DT, sequence ratio", "grpo+token": "GRPO-DT, token ratio"},
    ),
    "2d": FigureSpec(
        title="Fig. 2d: reset points where the policy is unsure or anywhere",
        curves=("grpo", "grpo+active", "grpo+uniform"),
        labels={"grpo+active": "GRPO-DT, active reset points", "grpo+uniform": "GRPO-DT, uniform reset points"},
    ),
    "2e": FigureSpec(
        title="Fig. 2e: sequence ratio with and without geometric mean",
        curves=("grpo", "grpo+sequence", "grpo+geometric"),
        needs=("grpo+geometric",),
        labels={"grpo+sequence": "GRPO-DT, sequence ratio", "grpo+geometric": "GRPO-DT, geometric mean"},
    ),
    "3": FigureSpec(title="Fig. 3: methods", curves=TABLE_1),
    "4a": FigureSpec(
        title="Fig. 4a: decision transformer and Reinformer",
        curves=("grpo", "grpo+reinformer"),
        labels={"grpo+reinformer": "GRPO-DT on a Reinformer"},
    ),
    "4b": FigureSpec(title="Fig. 4b: going back, or a Q-function", curves=("grpo", "q_guided")),
    "4c": FigureSpec(
        title="Fig. 4c: length of sub-trajectories",
        curves=("grpo", "grpo+traj*"),
        labels={"grpo+traj*": "GRPO-DT, {} steps"},
    ),
    "4d": FigureSpec(
        title="Fig. 4d: length of the lookahead",
        curves=("grpo", "grpo+eval*"),
        labels={"grpo+eval*": "GRPO-DT, {} steps of lookahead"},
    ),
}
"""Figures by the name they have on the command line; `grpo` itself is the preset's choice."""


Line = tuple[Float64[np.ndarray, "_"], Float64[np.ndarray, "_"]]
"""Places and values of one seed."""


@final
@dataclass(frozen=True, kw_only=True)
class Band:
    """Mean over seeds, and the sample standard deviation about it, at common places."""

    method: str
    seeds: int
    across: Float64[np.ndarray, "points"]
    mean: Float64[np.ndarray, "points"]
    deviation: Float64[np.ndarray, "points"]
    """Zeros of one seed."""
    lines: Sequence[Line]
    """What each seed measured."""

    @property
    def constant(self) -> bool:
        """Whether it was judged at the beginning alone: a policy that does not learn, the same everywhere."""
        return all(len(places) == 1 and not places[0] for places, _ in self.lines)

    @property
    def paths(self) -> list[Float64[np.ndarray, "_"]]:
        """The places of its mean or, where that would be no line, of each seed."""
        return [self.across] if len(self.across) > 1 else [places for places, _ in self.lines if len(places)]

    def above_zero(self) -> "Band":
        """What a logarithmic axis can show: nothing before every seed was judged at a place above 0."""
        if self.constant:
            return self
        lines = [(places[places > 0], values[places > 0]) for places, values in self.lines]
        begin = max(places[0] if len(places) else np.inf for places, _ in lines)
        kept = self.across >= begin
        return replace(
            self, across=self.across[kept], mean=self.mean[kept], deviation=self.deviation[kept], lines=lines
        )


def curves_of(spec: FigureSpec, curves: Sequence[Curve]) -> dict[str, dict[str, list[Curve]]]:
    """The records a figure shows, by dataset and method, both in the order of the figure.

    Datasets on which it would show nothing of its own (`spec.needs`), or a single curve, are left out.
    """
    chosen: dict[str, dict[str, list[Curve]]] = {}
    for pattern in spec.curves:
        fitting = [curve for curve in curves if _fits(pattern, curve.method) is not None]
        for curve in sorted(fitting, key=lambda curve: (_number(pattern, curve.method), curve.seed)):
            chosen.setdefault(curve.dataset, {}).setdefault(curve.method, []).append(curve)
    needs = spec.needs or spec.curves
    return {
        dataset: found
        for dataset, found in sorted(chosen.items())
        if len(found) > 1 and any(_fits(pattern, method) is not None for pattern in needs for method in found)
    }


def curve_label(spec: FigureSpec, method: str) -> str:
    """What the legend calls a curve."""
    for pattern, text in (spec.labels or {}).items():
        number = _fits(pattern, method)
        if number is not None:
            return text.format(number)
    return label(method)


def band(
    curves: Sequence[Curve], across: str, up: str, *, logarithmic: bool = False, points: int = POINTS
) -> Band | None:
    """Mean and deviation over seeds of column `up` against column `across`.

    Seeds are interpolated linearly at common places, `points` at most, from the latest beginning to the earliest end of
    them, so that every place has all seeds. Single evaluations are single places.

    Args:
        curves: the runs of one method on one dataset.
        across: a column that rises.
        up: the column drawn.
        logarithmic: take the mean and the deviation of the logarithm to base 10, and return them so.
        points: of the result, at most.

    Returns:
        None where a seed has no number of one of the columns, or seeds share no place.
    """
    lines = _lines(curves, across, up, logarithmic)
    if len(lines) < len(curves):
        return None
    first, last = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    if last < first:
        return None
    places = np.unique(np.concatenate([x for x, _ in lines]))
    if len(places) > points:
        places = np.linspace(first, last, points)
    places = places[(places >= first) & (places <= last)]
    values = np.stack([np.interp(places, x, y) for x, y in lines])
    deviation = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(len(places))
    return Band(
        method=curves[0].method, seeds=len(curves), across=places, mean=values.mean(axis=0), deviation=deviation,
        lines=lines,
    )  # fmt: skip


def apart(curves: Sequence[Curve], across: str, up: str, *, logarithmic: bool = False) -> Band | None:
    """The seeds singly, of which `band` makes no mean: a band without places, but with lines.

    Returns:
        None where no seed has numbers of both columns.
    """
    lines, none = _lines(curves, across, up, logarithmic), np.empty(0)
    if not lines:
        return None
    return Band(method=curves[0].method, seeds=len(lines), across=none, mean=none, deviation=none, lines=lines)


def _lines(curves: Sequence[Curve], across: str, up: str, logarithmic: bool) -> list[Line]:
    """Of each seed that has any, the places and values where both columns are numbers."""
    lines = []
    for curve in curves:
        x, y = curve.column(across), curve.column(up)
        there = np.isfinite(x) & np.isfinite(y) & ((y > 0) | (not logarithmic))
        if there.any():
            lines.append((x[there], np.log10(y[there]) if logarithmic else y[there]))
    return lines


def _fits(pattern: str, method: str) -> str | None:
    """What the star of a pattern stands for in a method, "" where there is no star; None where it does not fit."""
    if not pattern.endswith("*"):
        return "" if method == pattern else None
    number = method.removeprefix(pattern[:-1])
    return number if number.isdecimal() and method.startswith(pattern[:-1]) else None


def _number(pattern: str, method: str) -> int:
    return int(_fits(pattern, method) or 0)
