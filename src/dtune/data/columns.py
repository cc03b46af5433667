"""D4RL's layout, one row a step in a few columns: checked, and cut into episodes."""

import math
from collections.abc import Callable, Collection, Mapping

import torch
from jaxtyping import Bool
from torch import Tensor

from dtune.data.datasets import Dataset
from dtune.data.splitting import SPLITTINGS, Splitting
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


Complain = Callable[[str], None]
"""Is given a sentence for each rule that is broken."""


def refuse(sentence: str) -> None:
    """Complains by stopping at the first rule that is broken."""
    raise DataError(sentence)


def make_dataset(columns: Mapping[str, Tensor], *, name: str, splitting: Splitting = "locomotion") -> Dataset:
    """Episodes from columns in D4RL's layout, one row a step; float32 columns are used uncopied.

    Args:
        columns: at least `observations [N, obs]`, `actions [N, action]` within [-1, 1], and, as `[N]` or
            `[N, 1]`, `rewards`, `terminals` and `timeouts` (0 or 1). Others are not read.
        name: said in messages, and kept.
        splitting: the rule episodes are cut by, which also says what becomes of an unfinished last one.

    Raises:
        DataError: if a column is missing, has a wrong shape, holds NaN, infinity or an action outside
            [-1, 1], or if no episode is finished.
        ConfigError: if there is no such rule.
    """
    check_columns({key: tuple(value.shape) for key, value in columns.items()}, name=name)
    check_values(columns, name=name, splitting=splitting)
    terminals, timeouts = (_flags(columns[key]) for key in FLAGS)
    rows, lengths = SPLITTINGS[splitting](terminals, timeouts)
    actions = columns["actions"].float()[rows]
    return Dataset(
        observations=_observed(columns["observations"].float()[rows]),
        actions=actions.clamp(-1, 1) if _largest(actions) > 1 else actions,
        rewards=columns["rewards"].float().flatten()[rows],
        terminated=terminals[rows],
        lengths=lengths,
        name=name,
    )


def check_columns(
    shapes: Mapping[str, tuple[int, ...]], *, name: str, others: Collection[str] = (), complain: Complain = refuse
) -> None:
    """Checks that columns of these shapes make a dataset, before any of them is read.

    Args:
        shapes: of every column, by key.
        name: said in messages.
        others: keys that are there, too, of shapes unknown.
        complain: told when a column is missing, has a wrong shape or another number of rows than the others.
    """
    missing = [key for key in COLUMNS if key not in shapes and key not in others]
    if missing:
        complain(
            f"{name} lacks {missing} and has {sorted({*shapes, *others})}: D4RL's layout needs {list(COLUMNS)}, so "
            "rename or add the columns."
        )
    present = [key for key in COLUMNS if key in shapes]
    for key in present:
        if not fits(key, shapes[key]):
            needed = "(steps, numbers)" if key in MATRICES else "(steps,)"
            complain(f"{name}: {key!r} has the shape {shapes[key]}, not {needed}: store one row a step.")
    counts = {key: shapes[key][0] for key in present if fits(key, shapes[key])}
    if len(set(counts.values())) > 1:
        complain(
            f"{name} has columns of unequal length, {counts}: each needs one row a step, so download or "
            "record the data again."
        )


def fits(key: str, shape: tuple[int, ...]) -> bool:
    """Whether a column can have this shape: a matrix `(steps, numbers)`, all others `(steps,)` or `(steps, 1)`."""
    return len(shape) == 2 and shape[1] > 0 if key in MATRICES else len(shape) == 1 or shape[1:] == (1,)


def check_values(
    columns: Mapping[str, Tensor], *, name: str, splitting: Splitting, complain: Complain = refuse
) -> None:
    """Checks the numbers in the columns that are there and have a fitting shape.

    Args:
        columns: by key, as `make_dataset` takes them.
        name: said in messages.
        splitting: the rule that has to find an episode in them.
        complain: told of each column with NaN, infinity, an action outside [-1, 1] or a flag other than 0 and
            1, and where no episode is finished.

    Raises:
        ConfigError: if there is no such rule.
    """
    if splitting not in SPLITTINGS:
        raise ConfigError(f"There is no splitting {splitting!r}: choose one of {sorted(SPLITTINGS)}.")
    columns = {key: columns[key] for key in COLUMNS if key in columns and fits(key, tuple(columns[key].shape))}
    flags = [key for key in FLAGS if key in columns]
    odd = [key for key in flags if _has_odd_flags(columns[key].flatten(), f"{name}: {key!r}", complain)]
    if len(flags) == len(FLAGS) and not odd and len({len(columns[key]) for key in FLAGS}) == 1:
        terminals, timeouts = (_flags(columns[key]) for key in FLAGS)
        if len(SPLITTINGS[splitting](terminals, timeouts).lengths) == 0:
            complain(
                f"{name} has no finished episode in {len(terminals)} rows, {splitting} splitting: 'terminals' "
                "or 'timeouts' must be true at the last step of each, so mark the ends, or record longer."
            )
    for key in [key for key in columns if key not in FLAGS]:
        _check_numbers(key, columns[key], name, complain)


def _check_numbers(key: str, column: Tensor, name: str, complain: Complain) -> None:
    if len(column) == 0:
        return
    low, high = (float(value) for value in column.float().aminmax())  # NaN comes through, unlike isfinite no copy
    if not (math.isfinite(low) and math.isfinite(high)):
        row, *rest = (~column.float().isfinite()).nonzero()[0].tolist()
        complain(
            f"{name}: {key!r} holds {float(column.float()[(row, *rest)])} at row {row}: all numbers have to be finite, "
            "so leave out the episode it lies in, or download the data again."
        )
    elif key == "actions" and max(-low, high) > 1 + ACTION_TOLERANCE:
        row = int((column.abs() > 1 + ACTION_TOLERANCE).any(1).nonzero()[0])
        complain(
            f"{name}: 'actions' reach {max(-low, high):g}, and leave [-1, 1] at row {row} first: a policy acts by a "
            "tanh, so scale the recorded actions to [-1, 1]."
        )
    elif key == "observations" and column.shape[1] == ANT_RECORDED and bool(column[:, ANT_OBSERVED:].any()):
        row = int(column[:, ANT_OBSERVED:].any(1).nonzero()[0])
        complain(
            f"{name}: 'observations' have {ANT_RECORDED} numbers, of which those from {ANT_OBSERVED} on are "
            f"not all zero (row {row}): D4RL's Ant has zeros there and the simulator "
            f"observes {ANT_OBSERVED}, so store only the first {ANT_OBSERVED}."
        )


def _has_odd_flags(column: Tensor, where: str, complain: Complain) -> bool:
    odd = torch.empty(0) if column.dtype == torch.bool else (column != 0) & (column != 1)
    if bool(odd.any()):
        row = int(odd.nonzero()[0])
        complain(f"{where} holds {column[row].item()} at row {row}: a flag has to be 0 or 1; store it so.")
    return bool(odd.any())


def _flags(column: Tensor) -> Bool[Tensor, "steps"]:
    return column.flatten() if column.dtype == torch.bool else column.flatten() == 1


def _largest(numbers: Tensor) -> float:
    low, high = numbers.aminmax()
    return max(-float(low), float(high))


def _observed(observations: Tensor) -> Tensor:
    return observations[:, :ANT_OBSERVED].contiguous() if observations.shape[1] == ANT_RECORDED else observations
