"""GRPO-DT: group relative policy optimisation of a decision transformer (Algorithm 1).

full trajectory     s₀ ─ s₁ ─ … ─ sₕ ─ … … … … … … … … … … … … … … … … … … … … ─ s_T
                                  ↑ reset point: snapshot of the simulator and return-to-go gₕ
G times from there                ├── sub-trajectory (sampled) ─┼── lookahead (mean action) ──┤
optimised                         ├──────── yes ────────────────┼─────────── no ──────────────┤
counted in the return (Eq. 2)     ├──────────────────────── yes ──────────────────────────────┤
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dtune import parallel
from dtune.algorithms.collect import collect_sound
from dtune.algorithms.members import optimise, own_members, remember
from dtune.algorithms.metrics import Metrics
from dtune.algorithms.points import Selection, draw_points
from dtune.algorithms.update import ClippedUpdate, UpdateConfig
from dtune.checks import at_least, comparable_group, finite, not_negative, one_of
from dtune.data.buffers import Fifo, SharedFifo
from dtune.data.steps import Steps, concatenate
from dtune.envs.collect import collect_episodes
from dtune.envs.rollout import Episodes, ResetPoints, Rollout
from dtune.envs.simulator import Restorable, Simulator, restorable
from dtune.errors import ConfigError
from dtune.functional.advantages import (
    AdvantageScale,
    Baseline,
    discounted_return,
    group_advantages,
    outside_margin,
    returns_to_go,
)
from dtune.functional.sampling import independent_noise, mirrored_noise, part_of_noise, shared_noise
from dtune.models.policy import TrainablePolicy


@dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    """Hyperparameters of GRPO-DT. Defaults are those Tables 5 and 6 give for Hopper."""

    return_to_go: float
    """Return asked for at the start of an episode, g_online, in environment reward units."""
    context_length: int = 1
    """Steps of history the policy reads while finetuned, c_online."""
    episodes_per_iteration: int = 1
    """Full trajectories collected each iteration."""
    collection_interval: int = 1
    """Iterations between collections, each of which makes up for all of them. Many walks at once take less time than in
    turns; a replay of as many trajectories is replaced as a whole then, and is as old on average."""
    replay_capacity: int = 32
    """Full trajectories remembered, 𝒯_replay."""
    reset_trajectories: int = 16
    """Full trajectories drawn from them each iteration, |B|, in proportion to their length."""
    reset_points: int = 4
    """Reset points on each of those, K."""
    reset_selection: Selection = "active"
    """Where: preferring steps at which the policy's variance is high, or anywhere (Fig. 2d), or at the start alone,
    which makes whole trajectories of sub-trajectories as long as the horizon (Fig. 2a)."""
    reset_context: Literal["fresh", "parent"] = "fresh"
    """What the policy remembers at a reset point when its context is longer than 1: nothing, or the parent's steps."""
    shared_start: bool = True
    """Whether a group's members start from one reset point, or from one each (the ablation of Fig. 2b)."""
    group_size: int = 8
    """Sub-trajectories that are compared with each other, G. Raising it makes advantages less noisy and costs steps."""
    subtrajectory_length: int = 15
    """Optimised steps of a sub-trajectory, L_traj. Shorter is finer credit assignment; the horizon gives Fig. 2a."""
    mirrored: bool = False
    """Draw the members' noise in pairs of opposite sign, so that what is even in it cancels; needs an even group."""
    lookahead_length: int = 400
    """Steps that only score it, L_eval. Longer is a better estimate and costs simulation."""
    lookahead_noise: float = 0.0
    """Scale of the lookahead's exploration noise, in the policy's own deviations, the same noise for all members of a
    group. 0 acts by the mean action (the paper), which prefers gaits that a little noise brings down; 1 scores members
    by the policy as it acts, which shakes what they did differently out of their returns."""
    lookahead_dtype: Literal["float32", "bfloat16"] = "float32"
    """Numbers the network computes with in the lookahead. bfloat16 is up to twice as fast where the processor has
    instructions for it and the network is large; it moves mean actions by about a hundredth, and nothing is learned
    from them. A network it moves further looks ahead in float32."""
    gamma: float = 0.995
    """Discount of rewards over a sub-trajectory and its lookahead."""
    return_margin: float = 2.0
    """Members whose return is this close to their group's mean are dropped, Δ_r, in reward units."""
    advantage_scale: AdvantageScale = "group"
    """What a member's distance from its group's mean is divided by: the deviation of its group (Eq. 2), or that of
    all of the iteration's groups together, so that groups in which more is at stake count for more; or nothing
    ("none", as Dr. GRPO does): advantages are then in reward units, and the learning rate has to fit them."""
    baseline: Baseline = "mean"
    """What a member is compared with: the mean of its group, itself included (Eq. 2), or that of the others (RLOO),
    which makes every advantage G/(G-1) times as large."""
    relabel: bool = False
    """Train on the returns achieved instead of those asked for: the mistake of Sec. 3.1, kept for Fig. 1."""
    subtrajectory_capacity: int = 2048
    """Sub-trajectories remembered, 𝒯_sub. Raising it reuses older data."""
    batch_size: int = 256
    """Sub-trajectories a gradient step."""
    passes: int = 1
    """Times each remembered sub-trajectory is used an iteration; 1 over a full buffer is the paper's 8 updates."""
    update: UpdateConfig = field(default_factory=UpdateConfig)
    """How the policy is moved."""

    def __post_init__(self) -> None:
        finite(self)
        comparable_group(self)
        if self.lookahead_length < 0:
            raise ConfigError(f"lookahead_length counts steps and cannot be negative, got {self.lookahead_length}")
        if self.return_margin < 0:
            raise ConfigError(f"return_margin is a distance and cannot be negative, got {self.return_margin}")
        if not 0 < self.gamma <= 1:
            raise ConfigError(f"gamma is a discount in (0, 1], got {self.gamma}")
        not_negative(self, "lookahead_noise")
        one_of(
            self,
            reset_selection=get_args(Selection),
            reset_context=("fresh", "parent"),
            advantage_scale=get_args(AdvantageScale),
            baseline=get_args(Baseline),
            lookahead_dtype=("float32", "bfloat16"),
        )
        at_least(
            self, 1, "context_length", "episodes_per_iteration", "collection_interval", "replay_capacity",
            "reset_trajectories", "reset_points", "subtrajectory_length", "subtrajectory_capacity", "batch_size",
            "passes",
        )  # fmt: skip


class GRPO:
    """Improves `policy` in place, one `iterate` at a time.

    Attributes:
        policy: the decision transformer being finetuned.
    """

    def __init__(self, policy: TrainablePolicy, config: GRPOConfig, generator: torch.Generator | None = None):
        self.policy, self.config = policy, config
        policy.context_length = config.context_length
        self.generator = generator or torch.Generator().manual_seed(0)
        self.update = ClippedUpdate(policy, config.update)
        self.replay, self.buffer = Fifo(config.replay_capacity), SharedFifo(config.subtrajectory_capacity)
        self.iteration = 0
        self.metrics = Metrics()

    def iterate(self, simulator: Simulator) -> dict[str, float]:
        """One iteration of Algorithm 1; comments name its lines.

        Raises:
            SimulatorError: if one cannot go back in `simulator`.
        """
        simulator = restorable(simulator)
        self.metrics.begin()
        if self.iteration % self.config.collection_interval == 0:
            self.replay.extend(self._collect(simulator).rows())  # 2
        episodes = Episodes.from_rows(self.replay.rows)
        points = self._choose_reset_points(episodes)  # 3, 4, 5
        members, returns, valid = self._grow_groups(simulator, points)  # 6
        scale, baseline = self.config.advantage_scale, self.config.baseline
        advantages = group_advantages(returns, valid=valid, scale=scale, baseline=baseline)  # 7
        keep = outside_margin(returns, self.config.return_margin, valid=valid)
        self.metrics.set("rollout/dropped", remember(self.buffer, members, advantages, keep, self.iteration))  # 8
        self._optimise()  # 9
        self.iteration += 1
        self.update.end_iteration(self.iteration)
        return self.metrics.end()

    def _collect(self, simulator: Restorable) -> Episodes:
        """Rolls out full trajectories under the current policy, asking for `return_to_go`."""
        config = self.config
        collect = partial(
            collect_episodes,
            self.policy,
            simulator,
            config.episodes_per_iteration * config.collection_interval,
            config.return_to_go,
            self.generator,
            snapshots=True,
            log_probs=False,  # nothing is learned from these themselves
        )
        return collect_sound(collect, self.metrics, remembered=len(self.replay))

    def _choose_reset_points(self, episodes: Episodes) -> ResetPoints:
        """Draws episodes in proportion to their length, and on each the steps to go back to; gives this rank's."""
        config = self.config
        starts, copies = (1, config.group_size) if config.shared_start else (config.group_size, 1)  # of a group
        each = config.reset_points * starts
        rows, steps = draw_points(
            self.policy,
            episodes,
            config.reset_trajectories,
            each,
            self.generator,
            config.reset_selection,
        )
        own = own_members(self._groups, starts)
        return ResetPoints.choose(
            episodes,
            rows.repeat_interleave(each)[own],
            steps.flatten()[own],
            self.policy.context_length - 1,
            fresh=config.reset_context == "fresh",
        ).repeat(copies)

    @property
    def _groups(self) -> int:
        """Groups an iteration, of all ranks."""
        return self.config.reset_trajectories * self.config.reset_points

    def _grow_groups(
        self, simulator: Restorable, points: ResetPoints
    ) -> tuple[Steps, Float[Tensor, "groups group"], Bool[Tensor, "groups group"]]:
        """Walks a sub-trajectory from each point and scores it.

        Returns:
            Sub-trajectories preceded by their context, a row each; of all ranks, discounted returns, one a member of
            each group, and False for members whose numbers the simulator does not vouch for.
        """
        config = self.config
        rollout = Rollout.resume(self.policy, simulator, points)
        own = own_members(self._groups, config.group_size)
        part = partial(part_of_noise, walks=self._groups * config.group_size, own=own)
        each = mirrored_noise if config.mirrored else independent_noise
        shared = partial(shared_noise, group_size=config.group_size, scale=config.lookahead_noise)
        sampled = rollout.advance(config.subtrajectory_length, generator=self.generator, draw=partial(part, draw=each))
        # relabelling needs the return of the whole trajectory, so it walks on to the end of the episode
        lookahead = rollout.advance(
            simulator.horizon if config.relabel else config.lookahead_length,
            generator=self.generator if config.lookahead_noise else None,
            draw=partial(part, draw=shared),
            log_probs=False,
            dtype=getattr(torch, config.lookahead_dtype),
        )
        walked = concatenate([sampled, lookahead], 1)
        counted = config.subtrajectory_length + config.lookahead_length
        returns = discounted_return(walked.rewards[:, :counted], walked.mask[:, :counted], config.gamma)
        if config.relabel:
            achieved = returns_to_go(walked.rewards, walked.mask)[:, : config.subtrajectory_length]
            sampled = replace(sampled, returns_to_go=achieved)
        self.metrics.count_groups(sampled, lookahead, int(rollout.faulty.sum()))
        told = parallel.gather_rows(
            {"returns": returns, "valid": ~rollout.faulty},
            [count * config.group_size for count in parallel.counts(self._groups)],
        )
        scores, valid = (value.view(-1, config.group_size) for value in told.values())
        return concatenate([points.history, sampled], 1), scores, valid

    def _optimise(self) -> None:
        """Learns from the members remembered, and tells what came of it."""
        passes, batch_size = self.config.passes, self.config.batch_size
        for told in optimise(
            self.buffer, self.update, passes=passes, batch_size=batch_size, iteration=self.iteration,
            generator=self.generator,
        ):  # fmt: skip
            self.metrics.add_update(told)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what the next iteration does, except the simulator."""
        return {
            "policy": self.policy.state_dict(),
            "update": self.update.state_dict(),
            "replay": self.replay.state_dict(),
            "buffer": self.buffer.state_dict(),
            "generator": self.generator.get_state(),
            "iteration": self.iteration,
            "metrics": self.metrics.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name in ("policy", "update", "replay", "buffer", "metrics"):
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        self.iteration = state["iteration"]
