"""A restorable world and a policy small enough to learn in seconds: move a point to the origin."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor, nn
from torch.nn.functional import silu

from dtune.data.steps import Steps
from dtune.envs.simulator import Outcome
from dtune.models.distributions import TanhNormal


class PointMass:
    """A point in the plane, moved by 0.2·a a step; the reward is minus its distance to the origin (a `Restorable`).

    It starts in [-1, 1]². Standing still earns about -15 an episode, walking straight home about -3. Stepping a row
    that has ended is an error here, so that every user of it shows that he drops those.

    Args:
        horizon: steps after which an episode is truncated.
        box: leaving [-box, box]² terminates the episode; None: nothing does.
        faults: row (as numbered by the last `reset` or `restore`) -> clock (from 0) at whose step it breaks.
        broken: what a broken row shows as observation and reward.

    Attributes:
        stepped: rows in the batch at each `step` since the start; their sum is the environment steps taken.
        starts: rows at each `reset` or `restore`.
    """

    observation_dim = 2
    action_dim = 2

    def __init__(
        self,
        *,
        horizon: int = 20,
        box: float | None = None,
        faults: Mapping[int, int] | None = None,
        broken: float = 0.0,
    ):
        self.horizon, self.box, self.faults, self.broken = horizon, box, dict(faults or {}), broken
        self.stepped: list[int] = []
        self.starts: list[int] = []

    def reset(self, count: int, generator: torch.Generator) -> Float64[Tensor, "count obs"]:
        drawn = torch.rand(count, 2, dtype=torch.float64, generator=generator)
        return self._start(2 * drawn - 1, torch.zeros(count, dtype=torch.long))

    def restore(self, snapshots: Float64[np.ndarray, "envs width"]) -> Float64[Tensor, "envs obs"]:
        rows = torch.tensor(snapshots, dtype=torch.float64)
        return self._start(rows[:, :2].clone(), rows[:, 2].long())

    def snapshot(self) -> Float64[np.ndarray, "envs width"]:
        return torch.cat([self.position, self.clock[:, None]], 1).numpy()

    def step(self, actions: Float32[Tensor, "envs action"]) -> Outcome:
        assert actions.shape == self.position.shape
        assert not self.ended.any(), "a row that has ended was stepped on"
        self.stepped.append(len(actions))
        plan = torch.tensor([self.faults.get(row, -1) for row in self.row.tolist()])
        faulty = (plan == self.clock) | ~actions.isfinite().all(1)
        self.position = self.position + 0.2 * actions.double()
        self.clock = self.clock + 1
        observations, rewards = self.position.clone(), -self.position.norm(dim=1)
        observations[faulty], rewards[faulty] = self.broken, self.broken
        outside = torch.zeros_like(faulty) if self.box is None else (self.position.abs() > self.box).any(1)
        terminated = outside | faulty
        truncated = (self.clock >= self.horizon) & ~terminated
        self.ended = terminated | truncated
        return Outcome(observations, rewards, terminated, truncated, faulty)

    def keep(self, rows: Int64[Tensor, "kept"]) -> None:
        self.position, self.clock = self.position[rows], self.clock[rows]
        self.row, self.ended = self.row[rows], self.ended[rows]

    def _start(self, position: Tensor, clock: Tensor) -> Tensor:
        self.starts.append(len(position))
        self.position, self.clock = position, clock
        self.row = torch.arange(len(position))
        self.ended = torch.zeros(len(position), dtype=torch.bool)
        return position.clone()


class TinyPolicy(nn.Module):
    """A `TrainablePolicy` for `PointMass`: one hidden layer on each step and on a fading memory of those before it.

    The same parameters serve any context length; the memory holds the steps of the window and no others.
    """

    def __init__(self, context_length: int = 1, *, seed: int = 0, width: int = 64):
        super().__init__()
        self.context_length, self.action_dim = context_length, 2
        self.now, self.past, self.head = nn.Linear(3, width), nn.Linear(5, width, bias=False), nn.Linear(width, 4)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for linear in (self.now, self.past, self.head):
                bound = linear.in_features**-0.5
                for parameter in linear.parameters():
                    parameter.uniform_(-bound, bound, generator=generator)

    def forward(self, context: Steps) -> TanhNormal:
        now = torch.cat([context.observations, context.returns_to_go[..., None] / 10], 2)
        step = torch.cat([now, context.actions], 2).masked_fill(~context.mask[..., None], 0)
        faded = torch.zeros_like(step[:, 0])
        memory = [faded]
        for time in range(step.shape[1] - 1):
            faded = 0.5 * (faded + step[:, time])
            memory.append(faded)
        now = now.masked_fill(~context.mask[..., None], 0)
        mean, log_std = self.head(silu(self.now(now) + self.past(torch.stack(memory, 1)))).chunk(2, -1)
        return TanhNormal(mean, (log_std.tanh() - 1).exp())  # sigma between 0.14 and 1

    def next_return_to_go(
        self, returns_to_go: Float[Tensor, "batch"], rewards: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch"]:
        return returns_to_go - rewards
