"""Implicit Q-learning (Kostrikov et al., 2022), offline first and then online.

one update, on a batch of transitions:
    1   V ← min E[|τ - 1[u < 0]| u²],  u = min(Q₁', Q₂')(s, a) - V(s)                   (its Eq. 5)
    2   π ← max E[min(exp(β A), 100) log π(a | s)],  A = min(Q₁', Q₂')(s, a) - V(s)     (its Eq. 7)
    3   Q ← min E[(r + γ (1 - terminated) V(s') - Q(s, a))²]                            (its Eq. 6)
    4   Q' ← (1 - polyak) Q' + polyak Q

offline: updates on the dataset. Online: a step of the environment joins the replay, an update follows, and so on.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from dtune.algorithms.collect import joined
from dtune.algorithms.metrics import Metrics
from dtune.algorithms.supervised import training
from dtune.checks import at_least, finite, one_of
from dtune.data.datasets import Dataset
from dtune.data.experience import TransitionReplay, return_unit
from dtune.data.steps import concatenate, empty_steps
from dtune.envs.rollout import Episodes, Rollout
from dtune.envs.simulator import Simulator
from dtune.errors import ConfigError, NumericError
from dtune.functional.bellman import advantage_weights, expectile_loss, soft_update, td_target, twin_loss
from dtune.models.critics import TwinCritic, ValueNetwork, initialise_linear
from dtune.models.device import device_of
from dtune.models.perceptron_policy import PerceptronPolicy, PerceptronPolicyConfig, explore, log_likelihood
from dtune.models.policy import check_learns_from

RewardScaling = Literal["both", "offline", "none"]


@dataclass(frozen=True, kw_only=True)
class IQLConfig:
    """Hyperparameters of online IQL. Defaults are those of its authors for MuJoCo."""

    return_to_go: float = 0.0
    """Return asked for in evaluations; a perceptron takes no notice."""
    expectile: float = 0.7
    """Which expectile of Q the value is, τ: 0.5 is the mean, near 1 the best action in the data."""
    inverse_temperature: float = 3.0
    """How strongly better actions are preferred, β; 0 imitates all alike."""
    gamma: float = 0.99
    """Discount factor, γ."""
    polyak: float = 0.005
    """Share of the critics that moves into the target critics each update."""
    learning_rate: float = 3e-4
    """Adam's step size, of all three networks."""
    batch_size: int = 256
    """Transitions an update."""
    width: int = 256
    """Units in each of the two hidden layers of every network."""
    dropout: float = 0.0
    """Dropout in the policy while it is trained (0.1 for Adroit)."""
    replay_capacity: int = 2_000_000
    """Transitions remembered; the whole dataset is the first of them."""
    reward_scaling: RewardScaling = "both"
    """Which rewards are multiplied by 1000 / (best - worst return of the dataset): those of the dataset and of the
    run, those of the dataset alone (as the original code does for Hopper and Walker2d), or none."""
    reward_shift: float = 0.0
    """Added to every reward after scaling (AntMaze: -1, so that waiting costs something)."""
    pretraining_updates: int = 5000
    """Updates on the dataset before the first online step."""
    updates_per_offline_iteration: int = 1000
    """Of those, updates an iteration: only how often progress is recorded and saved depends on it."""
    episodes_at_once: int = 1
    """Episodes walked side by side, with an update for each of their steps. 1 is the original."""
    updates_per_step: int = 1
    """Updates behind each online step of the environment; 0 only collects."""
    min_steps: int = 1000
    """Environment steps an iteration, at least: it ends with the episode that reaches them."""

    def __post_init__(self) -> None:
        finite(self)
        at_least(self, 1, "batch_size", "width", "replay_capacity", "updates_per_offline_iteration", "episodes_at_once")
        at_least(self, 1, "min_steps")
        at_least(self, 0, "pretraining_updates", "updates_per_step")
        if not (0 < self.expectile < 1 and 0 < self.polyak <= 1 and 0 <= self.gamma <= 1):
            raise ConfigError(
                "expectile, polyak and gamma are shares of 1, the first below it, got"
                f" {self.expectile}, {self.polyak} and {self.gamma}"
            )
        if not (self.learning_rate > 0 and self.inverse_temperature >= 0):
            raise ConfigError(
                "learning_rate must be above 0 and inverse_temperature at least 0, got"
                f" {self.learning_rate} and {self.inverse_temperature}"
            )
        one_of(self, reward_scaling=get_args(RewardScaling))


def make_policy(
    config: IQLConfig, observation_dim: int, action_dim: int, generator: torch.Generator
) -> PerceptronPolicy:
    """The untrained policy that IQL begins with."""
    shape = PerceptronPolicyConfig(
        observation_dim=observation_dim, action_dim=action_dim, width=config.width, dropout=config.dropout
    )
    return PerceptronPolicy(shape, generator)


class IQL:
    """Improves `policy` in place, one `iterate` at a time. Needs no going back.

    Attributes:
        policy: the perceptron being trained.
        value, critic, target: V, (Q₁, Q₂) and (Q₁', Q₂'), in scaled reward units.
        replay: what they learn from.
        updates: how many there have been, offline ones included.
    """

    def __init__(
        self, policy: PerceptronPolicy, config: IQLConfig, dataset: Dataset, generator: torch.Generator | None = None
    ):
        sizes = (policy.config.observation_dim, policy.action_dim)
        check_learns_from(policy, dataset)
        self.policy, self.config = policy.eval(), config
        self.generator = generator or torch.Generator().manual_seed(0)
        self.value = ValueNetwork(sizes[0], width=config.width, activation=torch.nn.ReLU)
        self.critic = TwinCritic(*sizes, width=config.width)
        for network in (self.value, self.critic):
            initialise_linear(network, self.generator)
            network.to(device_of(policy))
        self.target = deepcopy(self.critic).requires_grad_(False)
        self.optimizers = {
            name: torch.optim.Adam(getattr(self, name).parameters(), lr=config.learning_rate, fused=True)
            for name in ("value", "policy", "critic")
        }
        scale = 1.0 if config.reward_scaling == "none" else 1000 * return_unit(dataset)
        self._online_scale = scale if config.reward_scaling == "both" else 1.0
        self.replay = TransitionReplay(config.replay_capacity, dataset, scale)
        self.updates = 0
        self.metrics = Metrics()

    def iterate(self, simulator: Simulator) -> dict[str, float]:
        """Some updates on the dataset while pretraining lasts; afterwards some episodes, with an update a step."""
        config = self.config
        self.metrics.begin()
        offline = min(config.updates_per_offline_iteration, config.pretraining_updates - self.updates)
        if offline > 0:
            self._learn(offline)
            return self.metrics.end()
        parts: list[tuple[Episodes, Episodes]] = []
        walked = 0
        while walked < config.min_steps:
            parts.append(self._walk(simulator))
            walked += sum(int(episodes.lengths.sum()) for episodes in parts[-1])
        self.metrics.count_episodes(*(joined(episodes) for episodes in zip(*parts, strict=True)))
        return self.metrics.end()

    def _walk(self, simulator: Simulator) -> tuple[Episodes, Episodes]:
        """Walks episodes to their ends, sampling, and learns on the way; the sound ones and the faulty ones."""
        count, taken = self.config.episodes_at_once, []
        rollout = Rollout.begin(self.policy, simulator, count, self.config.return_to_go, self.generator)
        while len(rollout.alive):
            taken.append(rollout.advance(1, generator=self.generator, act=explore))
            sound = taken[-1].mask[:, 0] & ~rollout.faulty
            self.replay.extend(
                {
                    "observations": taken[-1].observations[sound, 0],
                    "actions": taken[-1].actions[sound, 0],
                    "rewards": taken[-1].rewards[sound, 0] * self._online_scale,
                    "terminated": rollout.terminated[sound],  # not where only time ran out
                    "next_observations": rollout.observations[sound],
                }
            )
            self._learn(self.config.updates_per_step * int(sound.sum()))
        rest = empty_steps(count, simulator.horizon - len(taken), simulator.observation_dim, simulator.action_dim)
        steps, snapshots = concatenate([*taken, rest], 1), torch.zeros(count, simulator.horizon, 0, dtype=torch.float64)
        episodes = Episodes(steps, snapshots, rollout.final_observations, rollout.terminated)
        return episodes.take((~rollout.faulty).nonzero().squeeze(1)), episodes.take(rollout.faulty.nonzero().squeeze(1))

    def _learn(self, updates: int) -> None:
        for _ in range(updates):
            batch = self.replay.sample(self.config.batch_size, self.generator)
            batch["rewards"] = batch["rewards"] + self.config.reward_shift
            self.metrics.add_update(self._update(batch))
            self.updates += 1

    def _update(self, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """One step of each network; comments name the lines above."""
        config = self.config
        observations, actions = batch["observations"], batch["actions"]
        with torch.no_grad():
            q = self.target(observations, actions).amin(0)
        value_loss = expectile_loss(q - self.value(observations), config.expectile).mean()
        self._step("value", value_loss)  # 1
        with torch.no_grad():
            advantages = q - self.value(observations)
            following = self.value(batch["next_observations"])
        weights = advantage_weights(advantages, config.inverse_temperature)
        with training(self.policy, self.generator):
            distribution = self.policy.act(observations)
        likelihood = log_likelihood(distribution, actions)
        self._step("policy", -(weights * likelihood).mean())  # 2
        targets = td_target(batch["rewards"], batch["terminated"], following, config.gamma)
        values = self.critic(observations, actions)
        critic_loss = twin_loss(values, targets, torch.ones_like(targets, dtype=torch.bool))
        self._step("critic", critic_loss)  # 3
        soft_update(list(self.target.parameters()), list(self.critic.parameters()), config.polyak)  # 4
        return {
            "train/value_loss": value_loss.item(),
            "train/critic_loss": critic_loss.item(),
            "train/log_likelihood": likelihood.mean().item(),
            "train/q": values.mean().item(),
            "train/advantage": advantages.mean().item(),
            "train/weight": weights.mean().item(),
            "train/policy_std": distribution.std.mean().item(),
        }

    def _step(self, name: str, loss: Float[Tensor, ""]) -> None:
        if not torch.isfinite(loss):
            raise NumericError(
                f"the loss of IQL's {name} stopped being finite at update {self.updates}: lower learning_rate or"
                " inverse_temperature, or scale the rewards, in a new run"
            )
        self.optimizers[name].zero_grad()
        loss.backward()
        self.optimizers[name].step()

    def _parts(self) -> Iterable[tuple[str, Any]]:
        own = {name: getattr(self, name) for name in ("policy", "value", "critic", "target", "replay", "metrics")}
        return (own | {f"{name}_optimizer": optimizer for name, optimizer in self.optimizers.items()}).items()

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what the next iteration does, except the simulator and the offline dataset."""
        state = {name: part.state_dict() for name, part in self._parts()}
        return {**state, "updates": self.updates, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name, part in self._parts():
            part.load_state_dict(state[name])
        self.updates = state["updates"]
        self.generator.set_state(state["generator"])
