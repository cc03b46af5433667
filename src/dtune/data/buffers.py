"""First-in-first-out storage of rows."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


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
