"""The replay of the online decision transformer: whole trajectories, first in, first out."""

from collections.abc import Mapping
from typing import Any

import torch

from dtune.data.datasets import Dataset, columns_of, join


class TrajectoryReplay:
    """At most `capacity` trajectories, to draw windows of hindsight returns from: `replay.dataset.sample_windows`.

    It begins with the `capacity` best of an offline dataset, in ascending order of their returns. What comes in
    pushes out the one that is longest in here: the offline ones first, the worst of them before the others.

    offline, by return      [2 3 5]              capacity 3
    extend with 1           [3 5 1]
    extend with 9, 4, 6     [9 4 6]              one after the other, so 3, 5 and 1 have left

    Args:
        capacity: trajectories held at most.
        offline: what it begins with. Not part of `state_dict`: continue with the same.

    Attributes:
        dataset: the trajectories held, oldest first, laid end to end. Replaced by `extend`, never written to.
    """

    dataset: Dataset

    def __init__(self, capacity: int, offline: Dataset):
        if capacity < 1:
            raise ValueError(f"A replay of capacity {capacity} can hold nothing: give it a capacity of at least 1.")
        self.capacity = capacity
        self._offline = offline.take(offline.returns.argsort(stable=True)[-capacity:])
        self._settle(len(self._offline), self._offline.newest(0))

    def __len__(self) -> int:
        """Trajectories held now."""
        return len(self.dataset)

    def extend(self, trajectories: Dataset) -> None:
        """Adds trajectories behind those held; the oldest leave where there are more than `capacity`."""
        online = join([self._online, trajectories])
        surplus = max(0, self._left + len(online) - self.capacity)
        left = max(0, self._left - surplus)
        self._settle(left, online.newest(min(len(online), self.capacity - left)))

    def _settle(self, left: int, online: Dataset) -> None:
        self._left, self._online = left, online
        self.dataset = join([self._offline.newest(left), online])

    def state_dict(self) -> dict[str, Any]:
        """What came in, and how much of the offline dataset is still there."""
        return {
            "capacity": self.capacity,
            "offline": [len(self._offline), self._offline.steps],
            "left": self._left,
            "online": {**columns_of(self._online), "lengths": self._online.lengths},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            ValueError: if the saved replay had another capacity or began with other trajectories.
        """
        for name in ("capacity", "offline"):
            ours = self.state_dict()[name]
            if state[name] != ours:
                raise ValueError(f"the saved replay has {name} {state[name]}, this one {ours}: continue with the same")
        rows = {name: torch.clone(value) for name, value in state["online"].items()}
        self._settle(state["left"], Dataset(**rows, name=self._offline.name))
