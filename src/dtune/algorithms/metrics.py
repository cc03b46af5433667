"""What an algorithm counts while it iterates: honest environment steps, and the means of its updates."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dtune.data.steps import Steps
from dtune.envs.rollout import Episodes
from dtune.errors import NumericError

FAULT_LIMIT = 0.01
"""Largest share of an iteration's walks whose numbers may be broken."""

_COUNTS = ("trajectories", "subtrajectories", "lookahead")


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
        self.walks = self.faulty = 0

    def set(self, key: str, value: int | float) -> None:
        """Records one number."""
        self.values[key] = value

    def count_episodes(self, episodes: Episodes, faulty: Episodes) -> None:
        """Full trajectories walked; the faulty ones cost steps, too."""
        self.env_steps["trajectories"] += int(episodes.lengths.sum() + faulty.lengths.sum())
        self.walks, self.faulty = self.walks + len(episodes) + len(faulty), self.faulty + len(faulty)
        if len(episodes):
            self.set("rollout/return", episodes.returns.mean().item())
            self.set("rollout/length", episodes.lengths.double().mean().item())

    def count_groups(self, sampled: Steps, lookahead: Steps, faulty: int) -> None:
        """Sub-trajectories grown and looked ahead from."""
        self.env_steps["subtrajectories"] += int(sampled.mask.sum())
        self.env_steps["lookahead"] += int(lookahead.mask.sum())
        self.walks, self.faulty = self.walks + len(sampled.mask), self.faulty + faulty

    def add_update(self, metrics: dict[str, float]) -> None:
        """What one gradient step reported."""
        self.updates.append(metrics)
        self.gradient_steps += 1

    def refuse_faults(self) -> None:
        """Stops a run whose simulator has broken down.

        Raises:
            NumericError: if more than `FAULT_LIMIT` of this iteration's walks were faulty.
        """
        if self.faulty > FAULT_LIMIT * self.walks:
            raise NumericError(
                f"{self.faulty} of {self.walks} walks of this iteration met NaN or a simulator warning, more than"
                f" {FAULT_LIMIT:.0%}: check the environment, or lower the learning rate; the last checkpoint is intact"
            )

    def end(self) -> dict[str, float]:
        """The iteration's row: means over its updates (maxima of `_max`, the first of `fresh`, the last of rates).

        Raises:
            NumericError: as `refuse_faults`.
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
