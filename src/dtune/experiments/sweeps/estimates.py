"""How long a sweep takes and how much room it needs: measured where its ledger has such runs, stated where not."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from dtune.experiments.reports.results import Curve

# Seconds an iteration with one thread, of an AMD EPYC. Small: measured on hopper-random, others within a factor of 5;
# at scale `paper` no more than the order of magnitude, from counts of operations.
SECONDS: Mapping[str, Mapping[str, float]] = {
    "small": {
        "pretrain": 3.0, "grpo": 1.0, "ppo": 0.7, "q_guided": 1.3, "odt": 2.5, "odt_td3": 4.6, "iql": 2.6, "dt": 1.0,
    },
    "paper": {
        "pretrain": 3000.0, "grpo": 1000.0, "ppo": 100.0, "q_guided": 300.0, "odt": 3000.0, "odt_td3": 9000.0,
        "iql": 10.0, "dt": 60.0,
    },
}  # fmt: skip

MEGABYTES: Mapping[str, Mapping[str, float]] = {
    "small": {
        "pretrain": 3.0, "grpo": 32.0, "ppo": 20.0, "q_guided": 20.0, "odt": 15.0, "odt_td3": 10.0, "iql": 10.0,
        "dt": 3.0,
    },
    "paper": {
        "pretrain": 450.0, "grpo": 900.0, "ppo": 800.0, "q_guided": 900.0, "odt": 900.0, "odt_td3": 1200.0,
        "iql": 100.0, "dt": 150.0,
    },
}  # fmt: skip
"""Of a run folder at its end."""


Pace = Mapping[tuple[str, str], float]
"""Seconds an iteration, by method (with its variant) and dataset."""


def paces(curves: Iterable[Curve]) -> dict[tuple[str, str], float]:
    """Seconds an iteration of each method on each dataset, over all the records there are of it.

    Args:
        curves: records with seconds; those without an iteration or without seconds say nothing.
    """
    seconds: dict[tuple[str, str], float] = {}
    iterations: dict[tuple[str, str], float] = {}
    for curve in curves:
        key = curve.method, curve.dataset
        took, done = (float(curve.column(name)[-1]) for name in ("seconds", "iteration"))
        if took > 0 and done > 0:
            seconds[key] = seconds.get(key, 0.0) + took
            iterations[key] = iterations.get(key, 0.0) + done
    return {key: seconds[key] / iterations[key] for key in seconds}


class Measured(NamedTuple):
    """A run that is done."""

    method: str
    dataset: str
    scale: str
    iterations: int
    seconds: float
    megabytes: float


class Estimate(NamedTuple):
    """What the rest of a sweep takes."""

    hours: float
    """With one job at a time."""
    gigabytes: float
    measured: int
    """Runs that this is from measurements for."""


def estimate(runs: Iterable[tuple[str, str, str, int, float | None]], known: Iterable[Measured]) -> Estimate:
    """Adds up what runs will take.

    Args:
        runs: method, dataset, scale, iterations and time limit (seconds) of each.
        known: runs like them that are done; those of the same dataset count before those of the same method.
    """
    finished = list(known)
    seconds = megabytes = measured = 0.0
    for method, dataset, scale, iterations, limit in runs:
        like = [one for one in finished if (one.method, one.scale) == (method, scale)]
        like = [one for one in like if one.dataset == dataset] or like
        measured += bool(like)
        each, size = SECONDS[scale][method], MEGABYTES[scale][method]
        if like:
            each = sum(one.seconds for one in like) / sum(max(one.iterations, 1) for one in like)
            size = sum(one.megabytes for one in like) / len(like)
        whole = each * max(iterations, 1)
        seconds += whole if limit is None else min(whole, limit)
        megabytes += size
    return Estimate(seconds / 3600, megabytes / 1000, int(measured))
