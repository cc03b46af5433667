"""What an algorithm counts while it iterates: honest environment steps, and the means of its updates."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dtune import parallel
from dtune.data.steps import Steps
from dtune.envs.rollout import Episodes
from dtune.errors import FaultsError

FAULT_LIMIT = 0.01
"""Largest share of an iteration's steps that may break the walk they belong to."""
FAULTY_WALKS_LIMIT = 0.9
"""Largest share of its walks that may break, at whatever rate."""
MANY_WALKS = 10
"""Of fewer walks than these that share says nothing."""

_COUNTS = ("trajectories", "subtrajectories", "lookahead")


def too_many_faults(faulty: int, walks: int, steps: int) -> bool:
    """Whether a simulator has broken down, or whoever acts in it.

    A fault ends its walk, so there are as many steps that broke as walks: their share of all steps does not depend on
    how long walks are. Where hardly one of many walks is sound, little is left to learn from.

    Args:
        faulty: walks that a fault ended.
        walks: all that were walked.
        steps: taken on them together.
    """
    return faulty > FAULT_LIMIT * steps or (walks >= MANY_WALKS and faulty > FAULTY_WALKS_LIMIT * walks)


class Metrics:
    """One iteration's numbers by metric key, and the running counts."""

    def __init__(self) -> None:
        self.env_steps = dict.fromkeys(_COUNTS, 0)
        self.gradient_steps = 0
        self.begin()

    def begin(self) -> None:
        """Forgets the last iteration, keeps the counts."""
        self.values: dict[str, float] = {}
        self.updates: list[dict[str, float]] = []
        self.walks = self.faulty = self.steps = 0

    def set(self, key: str, value: int | float) -> None:
        """Records one number."""
        self.values[key] = value

    def count_episodes(self, episodes: Episodes, faulty: Episodes) -> None:
        """Full trajectories walked; the faulty ones cost steps, too."""
        steps = int(episodes.lengths.sum() + faulty.lengths.sum())
        self.env_steps["trajectories"] += steps
        self._count_walks(len(episodes) + len(faulty), len(faulty), steps)
        if len(episodes):
            self.set("rollout/return", episodes.returns.mean().item())
            self.set("rollout/length", episodes.lengths.double().mean().item())

    def count_groups(self, sampled: Steps, lookahead: Steps, faulty: int) -> None:
        """Sub-trajectories grown and looked ahead from: this rank's, to which those of all others are added."""
        own = torch.tensor([sampled.mask.sum(), lookahead.mask.sum(), len(sampled.mask), faulty], dtype=torch.long)
        explored, looked, walks, broken = map(int, parallel.total(own))
        self.env_steps["subtrajectories"] += explored
        self.env_steps["lookahead"] += looked
        self._count_walks(walks, broken, explored + looked)

    def add_update(self, metrics: dict[str, float]) -> None:
        """What one gradient step reported."""
        self.updates.append(metrics)
        self.gradient_steps += 1

    def refuse_faults(self) -> None:
        """Stops a run whose simulator has broken down.

        Raises:
            FaultsError: see `too_many_faults`.
        """
        if too_many_faults(self.faulty, self.walks, self.steps):
            raise FaultsError(
                f"{self.faulty} of {self.walks} walks of this iteration met NaN or a simulator warning, in"
                f" {self.steps:,} steps ({FAULT_LIMIT:.0%} of the steps and {FAULTY_WALKS_LIMIT:.0%} of the walks may):"
                " check the environment, or lower the learning rate; the last checkpoint is intact"
            )

    def end(self) -> dict[str, float]:
        """The iteration's row: means over its updates (maxima of `_max`, the first of `fresh`, the last of rates).

        Raises:
            FaultsError: as `refuse_faults`.
        """
        self.refuse_faults()
        for key in self.updates[0] if self.updates else ():
            values = torch.tensor([update[key] for update in self.updates if key in update], dtype=torch.float64)
            self.set(key, _summary(key, values))
        self.set("rollout/faulty", self.faulty)
        for name in _COUNTS:
            self.set(f"count/env_steps_{name}", self.env_steps[name])
        self.set("count/env_steps", sum(self.env_steps.values()))
        self.set("count/gradient_steps", self.gradient_steps)
        return self.values

    def _count_walks(self, walks: int, faulty: int, steps: int) -> None:
        self.walks, self.faulty, self.steps = self.walks + walks, self.faulty + faulty, self.steps + steps

    def state_dict(self) -> dict[str, Any]:
        """The running counts."""
        return {"env_steps": dict(self.env_steps), "gradient_steps": self.gradient_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.env_steps, self.gradient_steps = dict(state["env_steps"]), state["gradient_steps"]


def _summary(key: str, values: Tensor) -> float:
    if key.endswith(("_max", "_error")):
        return values.max().item()
    return values[-1].item() if key.endswith(("_coef", "_rate")) else values.mean().item()
