"""The one container that flows through the library."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Steps:
    """`batch` rows of `time` consecutive environment steps, in environment units.

    `returns_to_go` is what the policy was *conditioned on* when it acted, never what was earned later.
    That single rule keeps importance ratios honest (Sec. 3.1).
    """

    observations: Float[Tensor, "batch time obs"]
    raw_actions: Float[Tensor, "batch time action"]  # before tanh: ratios need neither atanh nor a Jacobian
    actions: Float[Tensor, "batch time action"]  # tanh of the above, what the simulator was given
    rewards: Float[Tensor, "batch time"]
    returns_to_go: Float[Tensor, "batch time"]
    log_probs: Float[Tensor, "batch time"]  # of `raw_actions`, under the policy that drew them, in nats
    timesteps: Int[Tensor, "batch time"]  # position in the episode, from 0
    mask: Bool[Tensor, "batch time"]  # False before the episode began and after it ended

    def map(self, function: Callable[[Tensor], Tensor]) -> "Steps":
        """Applies `function` to every tensor."""
        return Steps(**{name: function(value) for name, value in vars(self).items()})

    def slice_time(self, start: int, stop: int | None = None) -> "Steps":
        """The steps from `start` up to, not including, `stop` (the end of the rows where None)."""
        return self.map(lambda x: x[:, start:stop])

    def windows(self, length: int) -> "Steps":
        """Every run of `length` consecutive steps: `[batch, time, ...]` to `[batch * windows, length, ...]`.

        There are time - length + 1 of them:

            time      0 1 2 3 4 5
            length 3  [0 1 2] [1 2 3] [2 3 4] [3 4 5]
        """
        return self.map(lambda x: x.unfold(1, length, 1).movedim(-1, 2).flatten(0, 1))

    def gather(self, rows: Int[Tensor, "picked"], index: Int[Tensor, "picked length"]) -> "Steps":
        """The steps at `index` of the given `rows`; where `index` is negative, padding: zeros and mask False."""
        inside = index >= 0

        def take(x: Tensor) -> Tensor:
            taken = x[rows[:, None], index.clamp(min=0)]
            return taken.masked_fill(~inside.view(*inside.shape, *[1] * (taken.ndim - 2)), 0)

        return self.map(take)


def empty_steps(batch: int, time: int, observation_dim: int, action_dim: int) -> Steps:
    """Steps that never happened: zeros, masked."""
    flat = torch.zeros(batch, time)
    return Steps(
        observations=torch.zeros(batch, time, observation_dim),
        raw_actions=torch.zeros(batch, time, action_dim),
        actions=torch.zeros(batch, time, action_dim),
        rewards=flat,
        returns_to_go=flat.clone(),
        log_probs=flat.clone(),
        timesteps=torch.zeros(batch, time, dtype=torch.long),
        mask=torch.zeros(batch, time, dtype=torch.bool),
    )


def concatenate(parts: list[Steps], dim: int) -> Steps:
    """Joins steps along rows (`dim=0`) or along time (`dim=1`)."""
    names = [field.name for field in fields(Steps)]
    return Steps(**{name: torch.cat([getattr(part, name) for part in parts], dim) for name in names})


def portions(lengths: Int[Tensor, "batch"], limit: int) -> Iterator[slice]:
    """Rows that follow each other, as many at a time as have `limit` steps together, or one that has more."""
    start = total = 0
    for row, length in enumerate(lengths.tolist()):
        if row > start and total + length > limit:
            yield slice(start, row)
            start, total = row, 0
        total += length
    if len(lengths):
        yield slice(start, len(lengths))
