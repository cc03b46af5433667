"""A policy walking through a simulator: two ways in, one way forward."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dtune.data.steps import Steps, concatenate, empty_steps
from dtune.envs.simulator import Outcome, Restorable, Simulator
from dtune.functional.sampling import independent_noise
from dtune.models.distributions import TanhNormal
from dtune.models.policy import Policy, ReturnPredictor

MIN_ROWS = 16
"""Rows a policy is asked for at least."""


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


class Rollout:
    """Many walks in step. Collecting, growing groups, lookahead and evaluating are all `advance`.

    Walks `begin` at the start of fresh episodes, or `resume` at recorded points of old ones. A walk that has ended
    leaves the batch and costs nothing from then on; results stay in the rows the walks began in.

    Attributes:
        alive: `[n]` rows still walking.
        terminated: `[batch]` whether a walk's task has ended (never because time ran out).
        faulty: `[batch]` walks the simulator reported broken numbers for; they ended there.
        final_observations: `[batch, obs]` what ended walks saw last.
        snapshots: `[batch, steps, snapshot]` of the last `advance`; empty if it was not asked for them.
    """

    def __init__(
        self,
        policy: Policy,
        simulator: Simulator,
        observations: Float[Tensor, "batch obs"],
        returns_to_go: Float[Tensor, "batch"],
        timesteps: Int[Tensor, "batch"],
        history: Steps,
    ):
        self.policy, self.simulator = policy, simulator
        self.count = len(observations)
        self.alive = torch.arange(self.count)
        self.terminated = torch.zeros(self.count, dtype=torch.bool)
        self.faulty = torch.zeros(self.count, dtype=torch.bool)
        self.final_observations = observations.float()
        self.snapshots = torch.zeros(self.count, 0, 0, dtype=torch.float64)
        self._observations, self._history = observations.float(), history
        self._returns_to_go, self._timesteps = returns_to_go, timesteps

    @classmethod
    def begin(
        cls, policy: Policy, simulator: Simulator, count: int, return_to_go: float, generator: torch.Generator
    ) -> "Rollout":
        """Starts `count` fresh episodes, asking for `return_to_go` (reward units); a policy may predict its own."""
        observations = simulator.reset(count, generator)
        goal, clock = torch.full((count,), float(return_to_go)), torch.zeros(count, dtype=torch.long)
        nothing = empty_steps(count, policy.context_length - 1, observations.shape[1], policy.action_dim)
        rollout = cls(policy, simulator, observations, goal, clock, nothing)
        rollout._predict_return_to_go()
        return rollout

    @classmethod
    def resume(cls, policy: Policy, simulator: Restorable, points: ResetPoints) -> "Rollout":
        """Goes back to reset points, one walk each: physics, context, return-to-go (never predicted anew) and clock."""
        observations = simulator.restore(points.snapshots.numpy())
        return cls(policy, simulator, observations, points.returns_to_go, points.timesteps, points.history)

    @property
    def observations(self) -> Float[Tensor, "batch obs"]:
        """What each walk sees now, or saw last."""
        seen = self.final_observations.clone()
        seen[self.alive] = self._observations
        return seen

    @torch.no_grad()
    def advance(
        self,
        steps: int,
        *,
        generator: torch.Generator | None = None,
        draw: Callable[[tuple[int, ...], torch.Generator], Tensor] = independent_noise,
        act: Callable[[TanhNormal, Tensor], Tensor] = TanhNormal.sample_raw,
        snapshots: bool = False,
    ) -> Steps:
        """Takes up to `steps` steps.

        Args:
            steps: how many; walks whose episode ends sooner are masked from there.
            generator: draws the exploration noise, all of it ahead, so that a walk's noise does not depend on which
                others have ended. None: take the policy's mode instead of sampling.
            draw: gives the noise `[batch, steps, action]`, standard normal for each walk by itself.
            act: makes a raw action of the policy's distribution and the noise.
            snapshots: also keep the simulator's snapshots before each step (the simulator must be `Restorable`).

        Returns:
            The steps taken, `[batch, steps, ...]`, zeros and masked after a walk's end.
        """
        shape = (self.count, steps, self.policy.action_dim)
        noise = None if generator is None else draw(shape, generator)
        taken = empty_steps(self.count, steps, self._observations.shape[1], self.policy.action_dim)
        self.snapshots = torch.zeros(self.count, 0, 0, dtype=torch.float64)
        for time in range(steps):
            if not len(self.alive):
                break
            if snapshots:
                self._keep_snapshots(time, steps)
            self._take(time, taken, None if noise is None else noise[self.alive, time], act)
        return taken

    def _take(
        self,
        time: int,
        taken: Steps,
        noise: Float[Tensor, "alive action"] | None,
        act: Callable[[TanhNormal, Tensor], Tensor],
    ) -> None:
        """One step of every living walk, written into `taken` at `time`."""
        now = self._present()
        distribution = self._act(now)
        raw = distribution.mean if noise is None else act(distribution, noise)
        actions = raw.tanh()
        outcome = self.simulator.step(actions)
        now = replace(
            now,
            raw_actions=raw[:, None],
            actions=actions[:, None],
            rewards=outcome.rewards.float()[:, None],
            log_probs=distribution.base_log_prob(raw)[:, None],
        )
        everyone = len(self.alive) == self.count
        for name, values in vars(taken).items():
            values[slice(None) if everyone else self.alive, time] = getattr(now, name)[:, 0]
        self._move_on(now, outcome)

    def _act(self, now: Steps) -> TanhNormal:
        """The policy's distribution at the present step of each living walk."""
        return self.policy(self._window(now))[: len(now.mask), -1]

    @torch.no_grad()
    def _predict_return_to_go(self) -> None:
        """Lets a policy that predicts what it will earn condition on that from the present step on."""
        if isinstance(self.policy, ReturnPredictor) and len(self.alive):
            window = self._window(self._present())
            self._returns_to_go = self.policy.predict_return_to_go(window)[: len(self.alive), -1]

    def _window(self, now: Steps) -> Steps:
        """What the policy sees of the present step of each living walk, and spare rows up to `MIN_ROWS`.

        Matrix products of few rows take another path through the processor and round differently. Asking for at
        least `MIN_ROWS` rows makes a walk's actions the same, to the last bit, whoever walks beside it.
        """
        window = concatenate([self._history, now], 1) if self.policy.context_length > 1 else now
        count = len(now.mask)
        return window if count >= MIN_ROWS else window.map(lambda x: x[torch.arange(MIN_ROWS) % count])

    def _present(self) -> Steps:
        """The current step of the living, before an action is chosen."""
        nothing = empty_steps(len(self.alive), 1, self._observations.shape[1], self.policy.action_dim)
        return replace(
            nothing,
            observations=self._observations[:, None],
            returns_to_go=self._returns_to_go[:, None],
            timesteps=self._timesteps[:, None],
            mask=torch.ones_like(nothing.mask),
        )

    def _move_on(self, now: Steps, outcome: Outcome) -> None:
        """Makes what `outcome` says the present; the walks it ends leave, the others learn what to ask for next."""
        if self.policy.context_length > 1:
            self._history = concatenate([self._history, now], 1).slice_time(1)
        self._returns_to_go = self.policy.next_return_to_go(self._returns_to_go, now.rewards[:, 0])
        self._observations, self._timesteps = outcome.observations.float(), self._timesteps + 1
        ended = outcome.terminated | outcome.truncated
        if ended.any():
            self._let_go(ended, outcome)
        self._predict_return_to_go()

    def _let_go(self, ended: Bool[Tensor, "alive"], outcome: Outcome) -> None:
        """Writes down how walks ended, and leaves them."""
        gone, stay = self.alive[ended], (~ended).nonzero().squeeze(1)
        self.terminated[gone] = outcome.terminated[ended]
        self.faulty[gone] = outcome.faulty[ended]
        self.final_observations[gone] = self._observations[ended]
        self.alive = self.alive[stay]
        self.simulator.keep(stay)
        self._history = self._history.map(lambda x: x[stay])
        self._observations, self._timesteps = self._observations[stay], self._timesteps[stay]
        self._returns_to_go = self._returns_to_go[stay]

    def _keep_snapshots(self, time: int, steps: int) -> None:
        now = torch.from_numpy(cast(Restorable, self.simulator).snapshot())
        if not time:
            self.snapshots = torch.zeros(self.count, steps, now.shape[1], dtype=torch.float64)
        self.snapshots[self.alive, time] = now


def collect_episodes(
    policy: Policy,
    simulator: Simulator,
    count: int,
    return_to_go: float,
    generator: torch.Generator,
    *,
    sample: bool = True,
    act: Callable[[TanhNormal, Tensor], Tensor] = TanhNormal.sample_raw,
    snapshots: bool = False,
) -> tuple[Episodes, Episodes]:
    """Walks `count` fresh episodes to their ends.

    Args:
        policy: who acts.
        simulator: where; every episode ends at its horizon at the latest.
        count: how many, all at once.
        return_to_go: return asked for at the start, g_online, in environment reward units.
        generator: draws the starts, then the exploration noise.
        sample: draw actions from the policy; otherwise take its mode, as evaluations do.
        act: how they are drawn, see `Rollout.advance`.
        snapshots: keep what is needed to go back to any step.

    Returns:
        The sound episodes, and the faulty ones: of those, believe nothing but their lengths.
    """
    rollout = Rollout.begin(policy, simulator, count, return_to_go, generator)
    steps = rollout.advance(simulator.horizon, generator=generator if sample else None, act=act, snapshots=snapshots)
    recorded = rollout.snapshots if snapshots else torch.zeros(count, simulator.horizon, 0, dtype=torch.float64)
    episodes = Episodes(steps, recorded, rollout.final_observations, rollout.terminated)
    sound, faulty = ((rollout.faulty == fault).nonzero().squeeze(1) for fault in (False, True))
    return (episodes.take(sound) if len(faulty) else episodes), episodes.take(faulty)
