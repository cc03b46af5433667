"""What walks leave behind: full trajectories, and places on them to go back to."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dtune.data.steps import Steps


@dataclass(frozen=True)
class Episodes:
    """Full trajectories, one a row, padded at the end to the simulator's horizon."""

    steps: Steps
    snapshots: Float[Tensor, "batch time snapshot"]  # of the simulator before each step; width 0 where not taken
    final_observations: Float[Tensor, "batch obs"]  # what was seen after the last step
    terminated: Bool[Tensor, "batch"]  # the task ended; False where only time ran out

    def rows(self) -> dict[str, Tensor]:
        """Everything by name, for a `Fifo`."""
        others = {name: value for name, value in vars(self).items() if name != "steps"}
        return {**vars(self.steps), **others}

    @classmethod
    def from_rows(cls, rows: dict[str, Tensor]) -> "Episodes":
        """The inverse of `rows`."""
        steps = Steps(**{field.name: rows[field.name] for field in fields(Steps)})
        return cls(steps, rows["snapshots"], rows["final_observations"], rows["terminated"])

    def __len__(self) -> int:
        """Episodes."""
        return len(self.terminated)

    def take(self, rows: Int[Tensor, "taken"]) -> "Episodes":
        """The episodes in `rows`, in that order."""
        return Episodes.from_rows({name: value[rows] for name, value in self.rows().items()})

    @property
    def lengths(self) -> Int[Tensor, "batch"]:
        """Steps in each."""
        return self.steps.mask.sum(1)

    @property
    def returns(self) -> Float[Tensor, "batch"]:
        """Undiscounted sum of rewards of each, in environment units."""
        return (self.steps.rewards * self.steps.mask).sum(1, dtype=torch.float64)


@dataclass(frozen=True)
class ResetPoints:
    """Steps to go back to, one a row: the pairs (sₖ, gₖ) of Algorithm 1 and all that belongs to them."""

    snapshots: Float[Tensor, "batch snapshot"]
    returns_to_go: Float[Tensor, "batch"]
    timesteps: Int[Tensor, "batch"]
    history: Steps  # the context_length - 1 steps before, padded in front

    @classmethod
    def choose(
        cls,
        episodes: Episodes,
        rows: Int[Tensor, "points"],
        steps: Int[Tensor, "points"],
        history_length: int,
        *,
        fresh: bool = False,
    ) -> "ResetPoints":
        """Points at `steps` of the episodes in `rows`.

        Args:
            episodes: must have been collected with snapshots.
            rows: an episode a point.
            steps: a step of it a point, from 0.
            history_length: steps before the point the policy will see, context_length - 1.
            fresh: begin with an empty context instead of the parent's steps.
        """
        before = torch.arange(-history_length, 0) + steps[:, None]
        if fresh:
            before = torch.full_like(before, -1)
        return cls(
            snapshots=episodes.snapshots[rows, steps],
            returns_to_go=episodes.steps.returns_to_go[rows, steps],
            timesteps=episodes.steps.timesteps[rows, steps],
            history=episodes.steps.gather(rows, before),
        )

    def repeat(self, times: int) -> "ResetPoints":
        """Each point `times` times, copies side by side."""
        again = {name: value.repeat_interleave(times, 0) for name, value in vars(self).items() if name != "history"}
        return ResetPoints(**again, history=self.history.map(lambda x: x.repeat_interleave(times, 0)))
