"""Q-guided GRPO-DT: groups of actions, scored by a critic instead of by going back (Sec. 3.3.1).

full trajectory     s₀ ─ s₁ ─ … ─ sₕ ─ … ─ s_T        visited state and what was asked for there, (sₕ, gₕ)
                                  │
G actions from there              ├── a₁   Q(sₕ, a₁)      never executed: Q says what they would earn
                                  ├── a₂   Q(sₕ, a₂)
                                  └── …    …              advantages within the group (Eq. 2), one ratio an action
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from dtune import parallel
from dtune.algorithms.collect import collect_sound
from dtune.algorithms.members import optimise, own_members, remember
from dtune.algorithms.metrics import Metrics
from dtune.algorithms.points import draw_points
from dtune.algorithms.td3 import CriticConfig, TD3Critic
from dtune.algorithms.update import ClippedUpdate, UpdateConfig
from dtune.checks import at_least, comparable_group, finite, one_of
from dtune.data.buffers import Fifo, SharedFifo
from dtune.data.datasets import Dataset, drop_lowest_return, recorded
from dtune.data.steps import Steps
from dtune.data.trajectories import TrajectoryReplay
from dtune.data.transitions import asked_returns_to_go, sample_transitions
from dtune.envs.collect import collect_episodes
from dtune.envs.rollout import Episodes
from dtune.envs.simulator import Simulator
from dtune.errors import ConfigError
from dtune.functional.advantages import AdvantageScale, Baseline, group_advantages, outside_margin
from dtune.functional.sampling import independent_noise, mirrored_noise
from dtune.models.policy import TrainablePolicy


@dataclass(frozen=True, kw_only=True)
class QGuidedConfig:
    """Hyperparameters of Q-guided GRPO-DT. Defaults are those App. B.1 gives for Ant, and Table 5's."""

    return_to_go: float
    """Return asked for at the start of an episode, g_online, in environment reward units."""
    context_length: int = 1
    """Steps of history the policy reads while finetuned, c_online."""
    episodes_per_iteration: int = 1
    """Full trajectories collected each iteration."""
    replay_capacity: int = 32
    """Full trajectories remembered to draw states from, 𝒯_replay."""
    state_trajectories: int = 16
    """Full trajectories drawn from them each iteration, |B|, in proportion to their length."""
    states: int = 4
    """Visited states on each of those, K."""
    state_selection: Literal["active", "uniform"] = "active"
    """Which: preferring states at which the policy's variance is high, or any."""
    group_size: int = 8
    """Actions compared with each other at a state, G."""
    mirrored: bool = False
    """Draw their noise in pairs of opposite sign, so that what is even in it cancels; needs an even group."""
    value: Literal["first", "min"] = "first"
    """What an action is worth: Q₁, which TD3's own policy climbs, or the smaller of both, which errs downwards."""
    advantage_scale: AdvantageScale = "group"
    """What an action's distance from its group's mean is divided by, as in GRPO-DT."""
    baseline: Baseline = "mean"
    """What an action is compared with, as in GRPO-DT."""
    return_margin: float | None = None
    """Actions whose value is this close to their group's mean are dropped, Δ_r, in the critics' reward units; None
    drops none."""
    action_capacity: int = 2048
    """Actions remembered, 𝒯_sub. Raising it reuses older data, and older values."""
    batch_size: int = 256
    """Actions a gradient step of the policy."""
    passes: int = 1
    """Times each remembered action is used an iteration."""
    critic: CriticConfig = field(default_factory=CriticConfig)
    """How the critics are learned."""
    critic_updates: int = 600
    """Critic steps an iteration."""
    critic_batch_size: int = 256
    """Transitions a critic step."""
    critic_replay_capacity: int = 1000
    """Trajectories the critics learn from: at first the best offline ones, which newer ones replace."""
    critic_returns_to_go: Literal["asked", "hindsight"] = "asked"
    """What the policy is asked for where the critics follow it, in offline episodes as well: g_online less what was
    earned before, so that Q is the value of the policy being finetuned; or what was earned later, as Yan et al. do."""
    update: UpdateConfig = field(
        default_factory=lambda: UpdateConfig(ratio="token", learning_rate=1e-5, clip_range=0.3, entropy_coef=1e-2)
    )
    """How the policy is moved. A sub-trajectory is one action: all kinds of ratio are the same."""

    def __post_init__(self) -> None:
        finite(self)
        at_least(
            self, 1, "context_length", "episodes_per_iteration", "replay_capacity", "state_trajectories", "states",
            "action_capacity", "batch_size", "passes", "critic_updates", "critic_batch_size", "critic_replay_capacity",
        )  # fmt: skip
        comparable_group(self)
        if self.return_margin is not None and self.return_margin < 0:
            raise ConfigError(f"return_margin is a distance and cannot be negative, got {self.return_margin}")
        one_of(
            self,
            state_selection=("active", "uniform"),
            value=("first", "min"),
            advantage_scale=get_args(AdvantageScale),
            baseline=get_args(Baseline),
            critic_returns_to_go=("asked", "hindsight"),
        )


class QGuidedGRPO:
    """Improves `policy` in place, one `iterate` at a time. Needs no going back, but offline data.

    Attributes:
        policy: the decision transformer being finetuned.
        critic: Q₁ and Q₂, learned from `dataset` in the first iteration and from the replay in every one.
    """

    def __init__(
        self,
        policy: TrainablePolicy,
        config: QGuidedConfig,
        dataset: Dataset,
        generator: torch.Generator | None = None,
    ):
        self.policy, self.config, self.dataset = policy, config, drop_lowest_return(dataset)
        policy.context_length = config.context_length
        self.generator = generator or torch.Generator().manual_seed(0)
        self.update = ClippedUpdate(policy, config.update)
        self.critic = TD3Critic(policy, config.critic, dataset, self.generator)
        self.transitions = TrajectoryReplay(config.critic_replay_capacity, self.dataset)
        self.replay, self.buffer = Fifo(config.replay_capacity), SharedFifo(config.action_capacity)
        self.iteration = 0
        self.metrics = Metrics()

    def iterate(self, simulator: Simulator) -> dict[str, float]:
        """One iteration; comments name the lines of Algorithm 1 that it follows."""
        self.metrics.begin()
        if not self.iteration:
            self._learn_offline()
        self._collect(simulator)  # 2
        self._learn_values()
        contexts = self._choose_states(Episodes.from_rows(self.replay.rows))  # 3, 4, 5
        members, values = self._try_actions(contexts)  # 6
        self._remember(members, values)  # 7, 8
        self._optimise()  # 9
        self.iteration += 1
        self.update.end_iteration(self.iteration)
        return self.metrics.end()

    def _learn_offline(self) -> None:
        """The critics' first phase: the offline data alone, under the pretrained policy."""
        self.critic.learn_offline(
            self.policy,
            self.dataset,
            self._conditions(self.dataset),
            batch_size=self.config.critic_batch_size,
            length=1,
            history=self.policy.context_length - 1,
            generator=self.generator,
        )

    def _collect(self, simulator: Simulator) -> None:
        """Rolls out full trajectories under the current policy, asking for `return_to_go`."""
        config = self.config
        collect = partial(
            collect_episodes,
            self.policy,
            simulator,
            config.episodes_per_iteration,
            config.return_to_go,
            self.generator,
            log_probs=False,
        )
        episodes = collect_sound(collect, self.metrics, remembered=len(self.replay))
        self.replay.extend(episodes.rows())
        self.transitions.extend(recorded(episodes.steps, episodes.terminated, self.dataset.name))

    def _learn_values(self) -> None:
        """`critic_updates` steps of the critics on transitions of old and new episodes."""
        config, dataset = self.config, self.transitions.dataset
        conditions, told = self._conditions(dataset), []
        for _ in range(config.critic_updates):
            batch = sample_transitions(
                dataset,
                conditions,
                config.critic_batch_size,
                1,
                self.generator,
                history=self.policy.context_length - 1,
            )
            told.append(self.critic.step(batch, self.generator))
            if self.critic.updates % config.critic.policy_interval == 0:
                self.critic.follow(self.policy)
        for key in told[0]:
            self.metrics.set(key, sum(metrics[key] for metrics in told) / len(told))
        self.metrics.set("count/critic_steps", self.critic.updates)

    def _conditions(self, dataset: Dataset) -> Float32[Tensor, "steps"]:
        """The returns-to-go under which the slow policy copy acts in the critics' targets."""
        if self.config.critic_returns_to_go == "hindsight":
            return dataset.returns_to_go()
        return asked_returns_to_go(dataset, self.config.return_to_go)

    def _choose_states(self, episodes: Episodes) -> Steps:
        """Draws episodes in proportion to their length, and visited states on each, with what led there as context."""
        config = self.config
        rows, steps = draw_points(
            self.policy,
            episodes,
            config.state_trajectories,
            config.states,
            self.generator,
            config.state_selection,
        )
        before = torch.arange(1 - self.policy.context_length, 1) + steps.flatten()[:, None]
        return episodes.steps.gather(rows.repeat_interleave(config.states), before)

    @torch.no_grad()
    def _try_actions(self, contexts: Steps) -> tuple[Steps, Float[Tensor, "groups group"]]:
        """Draws `group_size` actions at the last step of each context, and asks the critics for their worth.

        Returns:
            The contexts, one a member, with the member's action as their last; Q of it, in the critics' reward units.
        """
        config = self.config
        members = contexts.map(lambda x: x.repeat_interleave(config.group_size, 0))
        distribution = self.policy(members)[:, -1]
        draw = mirrored_noise if config.mirrored else independent_noise
        raw = distribution.sample_raw(draw(tuple(distribution.mean.shape), self.generator))
        own = {"raw_actions": raw, "actions": raw.tanh(), "log_probs": distribution.base_log_prob(raw)}
        members = replace(
            members, **{name: torch.cat([getattr(members, name)[:, :-1], x[:, None]], 1) for name, x in own.items()}
        )
        both = self.critic.network(members.observations[:, -1], members.actions[:, -1])
        values = (both[0] if config.value == "first" else both.amin(0)).double().view(-1, config.group_size)
        values = parallel.from_first(values)  # of other processors' critics some member might not be within the margin
        self.metrics.set("rollout/value", values.mean().item())
        self.metrics.set("rollout/value_spread", values.std(1).mean().item())
        return members, values

    def _remember(self, members: Steps, values: Float[Tensor, "groups group"]) -> None:
        """Stores members with their advantages (Eq. 2), but those within the margin; each rank its share of them."""
        config, own = self.config, own_members(*values.shape)
        advantages = group_advantages(values, scale=config.advantage_scale, baseline=config.baseline)
        keep = torch.ones_like(values, dtype=torch.bool)
        if config.return_margin is not None:
            keep = outside_margin(values, config.return_margin)
        self.metrics.set(
            "rollout/dropped", remember(self.buffer, members.map(lambda x: x[own]), advantages, keep, self.iteration)
        )

    def _optimise(self) -> None:
        """Learns from the actions remembered, and tells what came of it."""
        passes, batch_size = self.config.passes, self.config.batch_size
        for told in optimise(
            self.buffer, self.update, passes=passes, batch_size=batch_size, iteration=self.iteration,
            generator=self.generator,
        ):  # fmt: skip
            self.metrics.add_update(told)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what the next iteration does, except the simulator and the dataset."""
        parts = {name: getattr(self, name).state_dict() for name in _PARTS}
        return {**parts, "generator": self.generator.get_state(), "iteration": self.iteration}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name in _PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        self.iteration = state["iteration"]


_PARTS = ("policy", "update", "critic", "transitions", "replay", "buffer", "metrics")
