"""Single transitions (s, a, r, s', terminated): the replay of methods that learn values off policy."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dtune.data.datasets import Dataset, columns_of
from dtune.errors import ConfigError, DataError


def transitions(dataset: Dataset) -> dict[str, Tensor]:
    """Every recorded step whose successor is known, by column: those of a dataset, and `next_observations`.

    Behind a step that terminated nothing follows: its successor is never looked at, and here its own observation.
    The last step of an episode that the clock cut has one, but nobody recorded it: it is left out.
    """
    last = torch.zeros(dataset.steps, dtype=torch.bool)
    last[dataset.starts + dataset.lengths - 1] = True
    known = (~last | dataset.terminated).nonzero().squeeze(1)
    following = known + ~last[known]
    rows = {name: value[known] for name, value in columns_of(dataset).items()}
    return {**rows, "next_observations": dataset.observations[following]}


def return_unit(dataset: Dataset) -> float:
    """1 / (best - worst return): what rewards are multiplied by to make returns comparable between datasets.

    Raises:
        DataError: if all returns are the same.
    """
    spread = (dataset.returns.max() - dataset.returns.min()).item()
    if not spread > 0:
        raise DataError(
            f"{dataset.name}: all its returns are the same, so they give rewards no scale: set reward_scaling to none"
        )
    return 1 / spread


class TransitionReplay:
    """The newest `capacity` transitions, drawn evenly; at first those of an offline dataset.

    Args:
        capacity: transitions held at most.
        offline: what it begins with. Not part of `state_dict`: continue with the same.
        reward_scale: factor on its rewards.

    Raises:
        ConfigError: if it cannot hold the whole of `offline`.
    """

    def __init__(self, capacity: int, offline: Dataset, reward_scale: float = 1.0):
        self.capacity, self._offline, self._reward_scale = capacity, offline, reward_scale
        rows = self._recorded()
        self._begun = self._count = len(rows["rewards"])  # the count goes on when the oldest are written over
        if self._begun > capacity:
            raise ConfigError(
                f"the replay is to begin with all {self._begun:,} transitions of {offline.name}, but holds"
                f" {capacity:,}: raise replay_capacity"
            )
        self._rows = {name: value.new_empty(capacity, *value.shape[1:]) for name, value in rows.items()}
        self._begin(rows)

    def _recorded(self) -> dict[str, Tensor]:
        rows = transitions(self._offline)
        return rows | {"rewards": rows["rewards"] * self._reward_scale}

    def _begin(self, rows: dict[str, Tensor]) -> None:
        for name, value in rows.items():
            self._rows[name][: self._begun] = value

    def __len__(self) -> int:
        """Transitions held now."""
        return min(self._count, self.capacity)

    def extend(self, rows: Mapping[str, Tensor]) -> None:
        """Adds transitions, by the names that `transitions` gives; the oldest are written over."""
        added = len(rows["rewards"])
        index = (self._count + torch.arange(added)) % self.capacity
        for name, value in self._rows.items():
            value[index] = rows[name]
        self._count += added

    def sample(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Transitions drawn evenly, with replacement."""
        index = torch.randint(len(self), (batch,), generator=generator)
        return {name: value[index] for name, value in self._rows.items()}

    def state_dict(self) -> dict[str, Any]:
        """What came in after the offline dataset, oldest first."""
        added = self._count - self._begun
        kept = min(added, self.capacity)
        index = (self._count - kept + torch.arange(kept)) % self.capacity
        rows = {name: value[index] for name, value in self._rows.items()}
        return {"capacity": self.capacity, "offline": self._begun, "added": added, "rows": rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            ValueError: if the saved replay had another capacity or began with other transitions.
        """
        if (state["capacity"], state["offline"]) != (self.capacity, self._begun):
            raise ValueError(
                f"the saved replay holds up to {state['capacity']} transitions and began with {state['offline']}, this"
                f" one {self.capacity} and {self._begun}: continue with the same"
            )
        self._begin(self._recorded())
        self._count = self._begun + state["added"] - len(state["rows"]["rewards"])
        self.extend(state["rows"])
