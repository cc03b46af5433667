"""A policy walking through a simulator: two ways in, one way forward."""

from collections.abc import Callable
from operator import itemgetter
from typing import cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dtune.data.steps import Steps, concatenate, empty_steps
from dtune.envs.drive import Walk, alone, alternate, side_by_side
from dtune.envs.episodes import Episodes, ResetPoints
from dtune.envs.simulator import Divisible, Outcome, Restorable, Simulator, restorable
from dtune.functional.sampling import independent_noise
from dtune.models.device import is_large, lives_elsewhere
from dtune.models.distributions import TanhNormal
from dtune.models.policy import ActingPolicy, Actor, Policy, ReturnPredictor, actor_of, at_last, check_observes

__all__ = ["MIN_ROWS", "Episodes", "ResetPoints", "Rollout"]

MIN_ROWS = 16
"""Rows a policy is asked for at least."""
MIN_STEPS = 4
"""Steps that are worth dividing walks for."""
MAX_ROWS = 4096
"""Rows a policy is asked for at most, where many steps are looked at together: larger results leave the caches."""


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
        check_observes(policy, observations.shape[1])
        self.policy, self.simulator = policy, simulator
        self.count = len(observations)
        self.alive = torch.arange(self.count)
        self.terminated = torch.zeros(self.count, dtype=torch.bool)
        self.faulty = torch.zeros(self.count, dtype=torch.bool)
        self.final_observations = observations.float()
        self.snapshots = torch.zeros(self.count, 0, 0, dtype=torch.float64)
        self._predictor = policy if isinstance(policy, ReturnPredictor) else None
        self._fast = policy if isinstance(policy, ActingPolicy) else None
        self._observations, self._history = observations.float(), history
        self._returns_to_go, self._timesteps = returns_to_go, timesteps
        self._settle()

    @classmethod
    def begin(
        cls, policy: Policy, simulator: Simulator, count: int, return_to_go: float, generator: torch.Generator,
        own: slice = slice(None),
    ) -> "Rollout":  # fmt: skip
        """Starts `own` of `count` fresh episodes, asking for `return_to_go` (reward units); a policy may predict it."""
        observations = simulator.reset(count, generator)[own]
        if len(observations) < count:
            simulator.keep(torch.arange(count)[own])
            count = len(observations)
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
        log_probs: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> Steps:
        """Takes up to `steps` steps.

        Args:
            steps: how many; walks whose episode ends sooner are masked from there.
            generator: draws the exploration noise, all of it ahead, so that a walk's noise does not depend on which
                others have ended. None: take the policy's mode instead of sampling.
            draw: gives the noise `[batch, steps, action]`, standard normal for each walk by itself.
            act: makes a raw action of the policy's distribution and the noise.
            snapshots: also keep the simulator's snapshots before each step (the simulator must be `Restorable`).
            log_probs: give the policy's log-probabilities, for importance ratios. Of an `ActingPolicy` they cost
                looking at every step again; without, they are zeros.
            dtype: in which a policy may compute that can act in several, see `ActingPolicy`.

        Returns:
            The steps taken, `[batch, steps, ...]`, zeros and masked after a walk's end.
        """
        if snapshots:
            restorable(self.simulator)
        shape = (self.count, steps, self.policy.action_dim)
        noise = None if generator is None else draw(shape, generator)
        living, before, actor = self.alive, self._history, actor_of(self.policy, dtype)
        parts = self._parts() if steps >= MIN_STEPS else []
        if parts:
            walks = [
                part._walk(steps, None if noise is None else noise[rows], actor, act, snapshots) for rows, part in parts
            ]
            drive = alternate if lives_elsewhere(self.policy) else side_by_side
            taken = self._join(parts, drive(walks, [part.simulator for _, part in parts]), steps)
        else:
            taken = alone(self._walk(steps, noise, actor, act, snapshots), self.simulator.step)
        if log_probs and self._fast is not None:
            self._add_log_probs(taken, living, before)
        return taken

    def _walk(
        self,
        steps: int,
        noise: Float[Tensor, "batch steps action"] | None,
        actor: Actor,
        act: Callable[[TanhNormal, Tensor], Tensor],
        snapshots: bool,
    ) -> Walk:
        """Asks for the outcomes of actions, for all living walks at a time; in the end, returns the steps taken."""
        taken = empty_steps(self.count, steps, self._observations.shape[1], self.policy.action_dim)
        self.snapshots = torch.zeros(self.count, 0, 0, dtype=torch.float64)
        columns = {name: values.unbind(1) for name, values in vars(taken).items()}
        for time in range(steps):
            if not self.alive.numel():
                break
            if snapshots:
                self._keep_snapshots(time, steps)
            distribution = actor(self._window())[: self.alive.numel()]
            raw = distribution.mean if noise is None else act(distribution, noise[self.alive, time])
            now = {"raw_actions": raw, "actions": raw.tanh()}
            if self._fast is None:
                now["log_probs"] = distribution.base_log_prob(raw)
            outcome = yield now["actions"].clone()  # a simulator may do with its own what it likes
            assert outcome is not None
            self._take({name: column[time] for name, column in columns.items()}, now, outcome)
        return taken

    def _take(self, taken: dict[str, Tensor], now: dict[str, Tensor], outcome: Outcome) -> None:
        """One step of every living walk, `now`, with what came of it, written into `taken`: by name, a row each."""
        count = self.alive.numel()
        now |= {
            "observations": self._observations,
            "rewards": outcome.rewards.float(),
            "returns_to_go": self._returns_to_go,
            "timesteps": self._timesteps,
            "mask": self._unknown["mask"][:count, 0],
        }
        for name, values in now.items():
            if count == self.count:
                taken[name].copy_(values)
            else:
                taken[name].index_copy_(0, self.alive, values)
        if self.policy.context_length > 1:
            unknown = {name: values[:count] for name, values in self._unknown.items()}
            step = Steps(**unknown | {name: values[:, None] for name, values in now.items()})
            self._history = concatenate([self._history.slice_time(1), step], 1)
        self._move_on(now["rewards"], outcome)

    def _parts(self) -> "list[tuple[Tensor, Rollout]]":
        """The living walks as several rollouts, and their rows, where that is faster; nothing comes out differently.

        A network that is not on the CPU can work while the physics do: two parts that take turns. A large one on the
        CPU walks with each of the simulator's threads: parts that know nothing of each other.
        """
        many, simulator = len(self.alive), self.simulator
        if many < 2 * MIN_ROWS or not isinstance(simulator, Divisible):
            return []
        away = lives_elsewhere(self.policy)
        count = 2 if away else simulator.threads if self._fast and is_large(self.policy) else 1
        count = min(count, many // MIN_ROWS)
        if count < 2:
            return []
        twins = simulator.twins(count, simulator.threads if away else 1)
        if not twins:
            return []
        recorded, parts = simulator.snapshot(), []
        for first, twin in zip(range(count), twins, strict=True):
            own = torch.arange(first, many, count)  # every so many, because members of a group end alike
            twin.restore(recorded[own.numpy()])
            part = Rollout(
                self.policy, twin, self._observations[own], self._returns_to_go[own], self._timesteps[own],
                self._history.map(itemgetter(own)),
            )  # fmt: skip
            parts.append((self.alive[own], part))
        return parts

    def _join(self, parts: "list[tuple[Tensor, Rollout]]", walked: list[Steps], steps: int) -> Steps:
        """Goes on from where `parts` have come; the steps they took."""
        taken = empty_steps(self.count, steps, self._observations.shape[1], self.policy.action_dim)
        width = max(part.snapshots.shape[2] for _, part in parts)
        self.snapshots = torch.zeros(self.count, steps if width else 0, width, dtype=torch.float64)
        for (rows, part), own in zip(parts, walked, strict=True):
            for name, values in vars(own).items():
                getattr(taken, name)[rows] = values
            if part.snapshots.numel():
                self.snapshots[rows] = part.snapshots
            ended = torch.ones(len(rows), dtype=torch.bool).index_fill_(0, part.alive, 0)
            for name in ("terminated", "faulty", "final_observations"):
                getattr(self, name)[rows[ended]] = getattr(part, name)[ended]
        self.alive, order = torch.cat([rows[part.alive] for rows, part in parts]).sort()
        for name in ("_observations", "_returns_to_go", "_timesteps"):
            setattr(self, name, torch.cat([getattr(part, name) for _, part in parts])[order])
        self._history = concatenate([part._history for _, part in parts], 0).map(itemgetter(order))
        recorded = np.concatenate([cast(Restorable, part.simulator).snapshot() for _, part in parts])
        cast(Restorable, self.simulator).restore(recorded[order.numpy()])
        self._settle()
        return taken

    def _window(self) -> Steps:
        """The last steps of the living and the present one, whose action is not chosen yet; with spare rows.

        Matrix products of few rows take another path through the processor and round differently. Asking for at
        least `MIN_ROWS` rows makes a walk's actions the same, to the last bit, whoever walks beside it.
        """
        now = Steps(
            observations=self._accompanied(self._observations)[:, None],
            returns_to_go=self._accompanied(self._returns_to_go)[:, None],
            timesteps=self._accompanied(self._timesteps)[:, None],
            **self._unknown,
        )
        return concatenate([self._history.map(self._accompanied), now], 1) if self.policy.context_length > 1 else now

    def _accompanied(self, values: Tensor) -> Tensor:
        """Rows of the living, and copies of some up to `MIN_ROWS`."""
        return values if self._company is None else values[self._company]

    @torch.no_grad()
    def _add_log_probs(self, taken: Steps, living: Int[Tensor, "living"], before: Steps) -> None:
        """Writes down the likelihood of every action taken, from the window that an update will cut for it.

        Args:
            taken: steps, whose log-probabilities are still missing.
            living: rows that walked in the first of them.
            before: what these had done before that.
        """
        context, walked = self.policy.context_length, concatenate([before, taken.map(lambda x: x[living])], 1)
        row, step = taken.mask[living].nonzero(as_tuple=True)
        for index in torch.arange(len(row)).split(MAX_ROWS) if len(row) else ():
            count, at = len(index), index if len(index) >= MIN_ROWS else torch.arange(MIN_ROWS) % len(index) + index[0]
            windows = walked.gather(row[at], step[at, None] + torch.arange(context))
            distribution = at_last(self.policy, windows)[:count]
            rows = row[index]
            taken.log_probs[living[rows], step[index]] = distribution.base_log_prob(
                walked.raw_actions[rows, step[index] + context - 1]
            )

    @torch.no_grad()
    def _predict_return_to_go(self) -> None:
        """Lets a policy that predicts what it will earn condition on that from the present step on."""
        if self._predictor is not None and len(self.alive):
            window = self._window()
            self._returns_to_go = self._predictor.predict_return_to_go(window)[: len(self.alive), -1]

    def _move_on(self, rewards: Float[Tensor, "alive"], outcome: Outcome) -> None:
        """Makes what `outcome` says the present; the walks it ends leave, the others learn what to ask for next."""
        self._returns_to_go = self.policy.next_return_to_go(self._returns_to_go, rewards)
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
        self._settle()

    def _settle(self) -> None:
        """Lays out what is the same in every step of the walks now living: what is not known yet, and spare rows."""
        count = len(self.alive)
        self._company = torch.arange(MIN_ROWS) % count if 0 < count < MIN_ROWS else None
        nothing = vars(empty_steps(max(count, MIN_ROWS), 1, 0, self.policy.action_dim))
        self._unknown = {name: nothing[name] for name in ("raw_actions", "actions", "rewards", "log_probs")}
        self._unknown["mask"] = torch.ones(max(count, MIN_ROWS), 1, dtype=torch.bool)

    def _keep_snapshots(self, time: int, steps: int) -> None:
        now = torch.from_numpy(cast(Restorable, self.simulator).snapshot())
        if not time:
            self.snapshots = torch.zeros(self.count, steps, now.shape[1], dtype=torch.float64)
        self.snapshots[self.alive, time] = now
