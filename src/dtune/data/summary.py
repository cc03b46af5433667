"""What is in a recording: numbers to look at, and what is odd about it though nothing forbids it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from dtune.data.columns import FLAGS, MATRICES
from dtune.data.datasets import Dataset


class Range(NamedTuple):
    """What the finite numbers of a column are like."""

    shape: tuple[int, ...]
    least: float
    mean: float
    most: float


class Spread(NamedTuple):
    """Least, mean, standard deviation (over N) and most of some numbers."""

    least: float
    mean: float
    deviation: float
    most: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Statistics of the episodes of a dataset."""

    episodes: int
    steps: int
    returns: Spread
    lengths: Spread
    terminated: int
    """Episodes that the environment ended itself."""


def summarise(dataset: Dataset) -> Summary:
    """Counts what there is."""
    last = dataset.starts + dataset.lengths - 1
    return Summary(
        episodes=len(dataset),
        steps=dataset.steps,
        returns=spread(dataset.returns),
        lengths=spread(dataset.lengths.double()),
        terminated=int(dataset.terminated[last].sum()),
    )


def spread(numbers: Float64[Tensor, "numbers"]) -> Spread:
    """What the numbers are like."""
    deviation, mean = torch.std_mean(numbers, correction=0)
    return Spread(float(numbers.min()), float(mean), float(deviation), float(numbers.max()))


def ranges(columns: Mapping[str, Tensor]) -> dict[str, Range]:
    """What each column is like; NaN and infinity are left out."""
    found = {}
    for key, column in columns.items():
        finite = column[column.isfinite()].double() if column.dtype.is_floating_point else column.double()
        numbers = finite if finite.numel() else torch.full((1,), torch.nan, dtype=torch.float64)
        found[key] = Range(tuple(column.shape), float(numbers.min()), float(numbers.mean()), float(numbers.max()))
    return found


def bins(numbers: Float64[Tensor, "numbers"], count: int) -> tuple[list[float], list[int]]:
    """The lower edges of `count` bins of equal width between the least and the most, and what falls in each."""
    low, high = float(numbers.min()), float(numbers.max())
    if not high > low:
        return [low], [len(numbers)]
    edges = torch.linspace(low, high, count + 1, dtype=torch.float64)
    places = (torch.bucketize(numbers, edges, right=True) - 1).clamp(0, count - 1)
    return edges[:-1].tolist(), torch.bincount(places, minlength=count).tolist()


def remarks(columns: Mapping[str, Tensor], dataset: Dataset) -> Iterator[str]:
    """Says what is odd about a recording that was read: each is allowed, and each can mean a mistake.

    Args:
        columns: in D4RL's layout, whole.
        dataset: the episodes they were cut into.
    """
    rows = len(columns["rewards"])
    terminals, timeouts = (columns[key].flatten() != 0 for key in FLAGS)
    if rows > dataset.steps:
        left = rows - dataset.steps
        yield f"{left:,} of {rows:,} rows are left out: no end follows them, or the splitting drops them"
    if both := int((terminals & timeouts).sum()):
        yield f"{both:,} rows are terminals and timeouts at once: they count as terminals"
    if single := int((dataset.lengths == 1).sum()):
        yield f"{single:,} episodes have a single step"
    if double := _duplicates(dataset):
        yield f"{double:,} episodes are there before, number for number"
    for key in MATRICES:
        numbers = getattr(dataset, key)
        low, high = numbers.amin(0), numbers.amax(0)
        if still := (low == high).nonzero().squeeze(1).tolist():
            why = {"observations": "a policy sees nothing in them, and divides by 1e-6", "actions": "nothing is tried"}
            yield f"{key} {_listed(still)} never change: {why[key]}"
    edge = (dataset.actions.abs() >= 1).float().mean().item()
    if edge > 0.01:
        yield (
            f"{edge:.0%} of the actions lie at -1 or 1, where a tanh never comes: an `action_limit` below 1 keeps a"
            " policy that imitates them from acting at the bounds only"
        )
    if not dataset.rewards.any():
        yield "all rewards are 0"


def _duplicates(dataset: Dataset) -> int:
    """Episodes equal to an earlier one."""
    marks = torch.stack(
        [dataset.lengths.double(), dataset.returns, dataset.observations[dataset.starts].double().sum(1)]
    )
    _, place, count = torch.unique(marks.T, dim=0, return_inverse=True, return_counts=True)
    first: dict[int, list[int]] = {}
    found = 0
    for episode in (count[place] > 1).nonzero().squeeze(1).tolist():  # equal at a glance: few
        others = first.setdefault(int(place[episode]), [])
        found += any(_equal(dataset, episode, other) for other in others)
        others.append(episode)
    return found


def _equal(dataset: Dataset, one: int, other: int) -> bool:
    length = int(dataset.lengths[one])
    a, b = (slice(start, start + length) for start in dataset.starts[[one, other]].tolist())
    columns = (dataset.observations, dataset.actions, dataset.rewards)
    return all(torch.equal(column[a], column[b]) for column in columns)


def _listed(places: list[int]) -> str:
    shown = ", ".join(map(str, places[:6]))
    return f"{shown} and {len(places) - 6} others" if len(places) > 6 else shown
