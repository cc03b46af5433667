"""First-in-first-out storage of rows."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dtune import parallel


class Fifo:
    """The newest `capacity` rows of named tensors, oldest first.

    A row is one index of the first dimension, the same in every tensor: `extend(vars(steps))` stores a
    batch of `Steps`, and `Steps(**fifo.take(index))` gives some of them back. Stored tensors are replaced,
    never written to: what was handed out before stays as it was.

    Args:
        capacity: rows kept; the oldest leave when more come in.

    Raises:
        ValueError: if `capacity` is below 1.
    """

    def __init__(self, capacity: int):
        if capacity < 1:
            raise ValueError(f"A Fifo of capacity {capacity} can hold nothing: give it a capacity of at least 1.")
        self.capacity = capacity
        self._rows: dict[str, Tensor] = {}

    def __len__(self) -> int:
        """Rows held now, `capacity` at most."""
        return _count(self._rows)

    @property
    def rows(self) -> dict[str, Tensor]:
        """All rows held, oldest first, by name. Empty before the first `extend`."""
        return dict(self._rows)

    def extend(self, rows: Mapping[str, Tensor]) -> None:
        """Adds rows behind those held, and lets the oldest go where there are more than `capacity`.

        Raises:
            ValueError: if the tensors disagree in their number of rows, or differ in names, row shapes or
                dtypes from those held. Nothing is stored then.
        """
        _check_rows(rows)
        if self._rows:
            _check_same_kind(rows, self._rows)
        fresh = {name: value[-self.capacity :] for name, value in rows.items()}
        surplus = max(0, len(self) + _count(fresh) - self.capacity)
        # `cat` also copies a single part: a stored tensor never shares memory with the caller's.
        self._rows = {
            name: torch.cat([self._rows[name][surplus:], value] if self._rows else [value])
            for name, value in fresh.items()
        }

    def forget(self, count: int) -> None:
        """Lets the oldest `count` rows go."""
        if count:
            self._rows = {name: value[count:].clone() for name, value in self._rows.items()}

    def take(self, index: Int[Tensor, "taken"]) -> dict[str, Tensor]:
        """The rows at `index`, 0 being the oldest, in the order asked for; repeats are allowed."""
        return {name: value[index] for name, value in self._rows.items()}

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to continue as if never interrupted."""
        return {"capacity": self.capacity, "rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replaces the rows held by saved ones.

        Raises:
            ValueError: if the saved buffer had another capacity, or its tensors disagree in their rows.
        """
        if state["capacity"] != self.capacity:
            raise ValueError(
                f"The saved Fifo holds up to {state['capacity']} rows, this one {self.capacity}: "
                "continue with the capacity it was saved with."
            )
        rows = state["rows"]
        if rows:
            _check_rows(rows)
        self._rows = {name: value.clone() for name, value in rows.items()}


class SharedFifo:
    """A `Fifo` whose rows stay on the rank that made them, while their order is known to all.

    Length, order and eviction are those of one `Fifo` of all rows; memory is that of this rank's own.

    Args:
        capacity: rows kept by all ranks together.
    """

    def __init__(self, capacity: int):
        self._own = Fifo(capacity)
        self._owners = torch.zeros(0, dtype=torch.long)  # the rank of every row, oldest first

    def __len__(self) -> int:
        """Rows held by all ranks together."""
        return len(self._owners)

    @property
    def rows(self) -> dict[str, Tensor]:
        """The rows held by this rank, oldest first, by name."""
        return self._own.rows

    def extend(self, rows: Mapping[str, Tensor], owners: Int[Tensor, "added"]) -> None:
        """Adds rows behind those held, and lets the oldest go where there are more than `capacity`.

        Args:
            rows: this rank's own, in order.
            owners: the rank of every row that all ranks now add together, in order.
        """
        self._own.extend(rows)
        self._owners = torch.cat([self._owners, owners])[-self._own.capacity :]
        self._own.forget(len(self._own) - int(self._mine.sum()))

    def find(self, index: Int[Tensor, "sought"]) -> tuple[Int[Tensor, "own"], Int[Tensor, "own"]]:
        """Of the rows at `index`, 0 being the oldest, those held here: their places in `rows`, and in `index`."""
        mine = self._mine
        own = mine[index].nonzero().squeeze(1)
        return (mine.cumsum(0) - 1)[index[own]], own

    @property
    def _mine(self) -> Bool[Tensor, "rows"]:
        return self._owners == parallel.rank()

    def state_dict(self) -> dict[str, Any]:
        """All rows, of all ranks (a collective): what any number of ranks can continue with.

        Where there are several, it says whose they were, so that as many continue to the same bits.
        """
        many = parallel.ranks()
        counts = self._owners.bincount(minlength=many).tolist()
        # gathered: rank by rank, each in order; the n-th row of a rank belongs where it occurs for the n-th time
        place = self._owners.argsort(stable=True).argsort() if many > 1 else slice(None)
        rows = {name: value[place] for name, value in parallel.gather_rows(self.rows, counts).items()}
        whose = {"ranks": many, "owners": self._owners} if many > 1 else {}
        return {"capacity": self._own.capacity, "rows": rows, **whose}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes this rank's share of saved rows.

        Raises:
            ValueError: as `Fifo.load_state_dict`.
        """
        saved = state["rows"]
        owners = parallel.owners(_count(saved))
        self._owners = state["owners"].clone() if state.get("ranks") == parallel.ranks() else owners
        mine = self._mine
        rows = {name: value[mine] for name, value in saved.items()}
        self._own.load_state_dict({"capacity": state["capacity"], "rows": rows})


def _count(rows: Mapping[str, Tensor]) -> int:
    return len(next(iter(rows.values()))) if rows else 0


def _check_rows(rows: Mapping[str, Tensor]) -> None:
    scalars = [name for name, value in rows.items() if value.ndim == 0]
    if scalars or not rows:
        raise ValueError(f"A Fifo stores tensors with rows as first dimension, got {scalars or 'no tensors'}.")
    counts = {name: len(value) for name, value in rows.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"All tensors put into a Fifo need the same number of rows, got {counts}.")


def _check_same_kind(rows: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> None:
    def kind(tensors: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {name: (tuple(value.shape[1:]), value.dtype) for name, value in tensors.items()}

    got, stored = kind(rows), kind(held)
    wrong = sorted(name for name in got.keys() | stored.keys() if got.get(name) != stored.get(name))
    if wrong:
        raise ValueError(
            f"Rows of a Fifo keep their names, shapes and dtypes; {wrong} differ: "
            f"got {[got.get(name) for name in wrong]}, held {[stored.get(name) for name in wrong]}."
        )
