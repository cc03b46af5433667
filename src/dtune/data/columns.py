"""D4RL's layout, one row a step in a few columns: checked, and cut into episodes."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from dtune.data.datasets import Dataset
from dtune.errors import ConfigError, DataError

MATRICES = ("observations", "actions")
FLAGS = ("terminals", "timeouts")
COLUMNS = (
    *MATRICES,
    "rewards",
    *FLAGS,
)  # `next_observations` and others may be beside them, and are not read

ACTION_TOLERANCE = 1e-3  # rounding a recorder may leave outside [-1, 1]

# D4RL's Ant recorded 84 contact forces, which its simulator left at zero: numbers 27..110 say nothing.
ANT_RECORDED, ANT_OBSERVED = 111, 27


def episode_ends(terminals: Bool[Tensor, "steps"], timeouts: Bool[Tensor, "steps"]) -> Int64[Tensor, "episodes"]:
    """The row after each episode's last one, by the rule for locomotion: cut at every terminal or timeout.

    Rows after the last cut are an unfinished episode.
    """
    return (terminals | timeouts).nonzero().squeeze(1) + 1


def adroit_episode_ends(terminals: Bool[Tensor, "steps"], timeouts: Bool[Tensor, "steps"]) -> Int64[Tensor, "episodes"]:
    """The row after each episode's last one, by the rule the paper's Adroit numbers were made with.

    As `episode_ends`, but blind to the last row, so that a file that ends with an episode loses it: of the
    6,729 steps of door-human 6,504 are left.
    """
    return episode_ends(terminals[:-1], timeouts[:-1])


Splitting = Literal["locomotion", "adroit"]
SPLITTINGS: dict[Splitting, Callable[[Tensor, Tensor], Tensor]] = {
    "locomotion": episode_ends,
    "adroit": adroit_episode_ends,
}


def make_dataset(columns: Mapping[str, Tensor], *, name: str, splitting: Splitting = "locomotion") -> Dataset:
    """Episodes from columns in D4RL's layout, one row a step; float32 columns are used uncopied.

    Args:
        columns: at least `observations [N, obs]`, `actions [N, action]` within [-1, 1], and, as `[N]` or
            `[N, 1]`, `rewards`, `terminals` and `timeouts` (0 or 1). Others are not read.
        name: said in messages, and kept.
        splitting: the rule episodes are cut by; the rows of an unfinished last episode are dropped.

    Raises:
        DataError: if a column is missing, has a wrong shape, holds NaN, infinity or an action outside
            [-1, 1], or if no episode is finished.
        ConfigError: if there is no such rule.
    """
    if splitting not in SPLITTINGS:
        raise ConfigError(f"There is no splitting {splitting!r}: choose one of {sorted(SPLITTINGS)}.")
    check_columns({key: tuple(value.shape) for key, value in columns.items()}, name=name)
    terminals, timeouts = (_flags(columns[key].flatten(), f"{name}: {key!r}") for key in FLAGS)
    ends = SPLITTINGS[splitting](terminals, timeouts)
    if len(ends) == 0:
        raise DataError(
            f"{name} has no finished episode in {len(terminals)} rows, {splitting} splitting: 'terminals' "
            "or 'timeouts' must be true at the last step of each, so mark the ends, or record longer."
        )
    observations = _observed(columns["observations"].float(), name)
    actions, rewards = columns["actions"].float(), columns["rewards"].float().flatten()
    for key, numbers in (("observations", observations), ("actions", actions), ("rewards", rewards)):
        _check_finite(numbers, f"{name}: {key!r}")
    stop = int(ends[-1])
    return Dataset(
        observations=observations[:stop],
        actions=_within_limits(actions, name)[:stop],
        rewards=rewards[:stop],
        terminated=terminals[:stop],
        lengths=ends.diff(prepend=ends.new_zeros(1)),
        name=name,
    )


def check_columns(shapes: Mapping[str, tuple[int, ...]], *, name: str) -> None:
    """Checks that columns of these shapes make a dataset, before any of them is read.

    Raises:
        DataError: if one is missing, has a wrong shape or another number of rows than the observations.
    """
    missing = [key for key in COLUMNS if key not in shapes]
    if missing:
        raise DataError(
            f"{name} lacks {missing} and has {sorted(shapes)}: D4RL's layout needs {list(COLUMNS)}, so "
            "rename or add the columns."
        )
    for key in COLUMNS:
        shape = shapes[key]
        matrix = key in MATRICES
        fits = len(shape) == 2 and shape[1] > 0 if matrix else len(shape) == 1 or shape[1:] == (1,)
        if not fits:
            needed = "(steps, numbers)" if matrix else "(steps,)"
            raise DataError(f"{name}: {key!r} has the shape {shape}, not {needed}: store one row a step.")
    counts = {key: shapes[key][0] for key in COLUMNS}
    if len(set(counts.values())) > 1:
        raise DataError(
            f"{name} has columns of unequal length, {counts}: each needs one row a step, so download or "
            "record the data again."
        )


def _flags(column: Tensor, where: str) -> Bool[Tensor, "steps"]:
    if column.dtype == torch.bool:
        return column
    odd = (column != 0) & (column != 1)
    if bool(odd.any()):
        row = int(odd.nonzero()[0])
        raise DataError(f"{where} holds {column[row].item()} at row {row}: a flag has to be 0 or 1; store it so.")
    return column == 1


def _check_finite(column: Tensor, where: str) -> None:
    low, high = column.aminmax()  # NaN comes through, and no second array is needed as for isfinite
    if not bool(low.isfinite() & high.isfinite()):
        row, *rest = (~column.isfinite()).nonzero()[0].tolist()
        raise DataError(
            f"{where} holds {float(column[(row, *rest)])} at row {row}: all numbers have to be finite, so "
            "leave out the episode it lies in, or download the data again."
        )


def _within_limits(actions: Tensor, name: str) -> Tensor:
    low, high = actions.aminmax()
    largest = max(-float(low), float(high))
    if largest > 1 + ACTION_TOLERANCE:
        row = int((actions.abs() > 1 + ACTION_TOLERANCE).any(1).nonzero()[0])
        raise DataError(
            f"{name}: 'actions' reach {largest:g}, and leave [-1, 1] at row {row} first: a policy acts by a "
            "tanh, so scale the recorded actions to [-1, 1]."
        )
    return actions.clamp(-1, 1) if largest > 1 else actions


def _observed(observations: Tensor, name: str) -> Tensor:
    if observations.shape[1] != ANT_RECORDED:
        return observations
    surplus = observations[:, ANT_OBSERVED:].any(1)
    if bool(surplus.any()):
        raise DataError(
            f"{name}: 'observations' have {ANT_RECORDED} numbers, of which those from {ANT_OBSERVED} on are "
            f"not all zero (row {int(surplus.nonzero()[0])}): D4RL's Ant has zeros there and the simulator "
            f"observes {ANT_OBSERVED}, so store only the first {ANT_OBSERVED}."
        )
    return observations[:, :ANT_OBSERVED].contiguous()
