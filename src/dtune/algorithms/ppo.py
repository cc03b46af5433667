"""PPO-DT: proximal policy optimisation of a decision transformer (Algorithm 2, App. B.2)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dtune import parallel
from dtune.algorithms.collect import collect_sound
from dtune.algorithms.metrics import Metrics
from dtune.algorithms.update import ClippedUpdate, Part, UpdateConfig
from dtune.checks import above_zero, at_least, finite
from dtune.data.buffers import Fifo
from dtune.data.steps import Steps
from dtune.envs.collect import collect_episodes
from dtune.envs.rollout import Episodes
from dtune.envs.simulator import Simulator
from dtune.errors import ConfigError, NumericError
from dtune.functional.advantages import generalized_advantages, returns_to_go
from dtune.functional.objectives import value_loss
from dtune.models.critics import ValueNetwork, initialise_linear
from dtune.models.device import device_of
from dtune.models.policy import TrainablePolicy


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Hyperparameters of PPO-DT. Defaults are those Tables 5 and 7 give for Hopper."""

    return_to_go: float
    """Return asked for at the start of an episode, g_online, in environment reward units."""
    context_length: int = 1
    """Steps of history the policy reads while finetuned, c_online."""
    window_length: int | None = None
    """Actions in a training window, c_train, each with a history of its own; None: `context_length`. Beyond the
    context it matters for `update.ratio="sequence"`, whose ratio is the product over a window."""
    episodes_per_iteration: int = 8
    """Full trajectories collected each iteration, K_PPO."""
    replay_capacity: int = 32
    """Full trajectories remembered, 𝒯_replay; the paper's is four iterations'."""
    gamma: float = 0.99
    """Discount factor, γ."""
    gae_lambda: float = 0.95
    """Bias against variance of the advantages, λ: 0 trusts the value network, 1 only rewards."""
    bootstrap_time_limits: bool = True
    """Whether V stands for what a time limit cut off; terminations are never bootstrapped."""
    relabel: bool = False
    """Train on the returns achieved instead of those asked for: the mistake of Sec. 3.1, kept for Fig. 1."""
    batch_size: int = 256
    """Windows a gradient step, at least 2: its advantages are normalised over them."""
    updates_per_iteration: int = 8
    """Gradient steps an iteration, of the policy and of the value network."""
    value_learning_rate: float = 1e-3
    """AdamW's step size for the value network."""
    value_width: int = 256
    """Units in each of its two hidden layers."""
    value_layer_norm: bool = False
    """LayerNorm in the value network (the paper: for Adroit and AntMaze)."""
    value_scale: float = 1.0
    """Reward units one output of the value network stands for."""
    update: UpdateConfig = field(default_factory=lambda: UpdateConfig(ratio="token", entropy_coef=0.02))
    """How the policy is moved. Eq. 5 has a ratio an action ("token"); with "sequence" or "geometric", one a window,
    the window's advantage is the mean over its actions."""

    def __post_init__(self) -> None:
        finite(self)
        at_least(self, 1, "context_length", "episodes_per_iteration", "replay_capacity", "updates_per_iteration")
        if self.window_length is not None and self.window_length < 1:
            raise ConfigError(
                f"window_length must be at least 1, got {self.window_length}: leave it out to use c_online"
            )
        if self.batch_size < 2:
            raise ConfigError(f"batch_size must be at least 2 to normalise advantages over, got {self.batch_size}")
        if not (0 < self.gamma <= 1 and 0 <= self.gae_lambda <= 1):
            raise ConfigError(f"gamma and gae_lambda are shares in [0, 1], got {self.gamma} and {self.gae_lambda}")
        above_zero(self, "value_learning_rate", "value_width", "value_scale")


class PPO:
    """Improves `policy` in place, one `iterate` at a time. Needs no going back.

    Attributes:
        policy: the decision transformer being finetuned.
        value: V(s), learned beside it; None before the first episodes show what observations look like.
    """

    value: ValueNetwork | None = None

    def __init__(self, policy: TrainablePolicy, config: PPOConfig, generator: torch.Generator | None = None):
        self.policy, self.config = policy, config
        policy.context_length = config.context_length
        self.generator = generator or torch.Generator().manual_seed(0)
        self.update = ClippedUpdate(policy, config.update)
        self.replay = Fifo(config.replay_capacity)
        self.iteration = 0
        self.metrics = Metrics()

    def iterate(self, simulator: Simulator) -> dict[str, float]:
        """One iteration of Algorithm 2; comments name its lines."""
        self.metrics.begin()
        self.replay.extend(self._collect(simulator))  # 2
        episodes = Episodes.from_rows(self.replay.rows)
        if self.value is None:
            observations = episodes.steps.observations[episodes.steps.mask]
            self.value = self._make_value(observations.shape[1])
            self.value.set_statistics(observations)
        advantages, targets = self._advantages(episodes)  # 3
        row, step = episodes.steps.mask.nonzero(as_tuple=True)
        for update in range(self.config.updates_per_iteration):
            # a trajectory in proportion to its length, then any of its steps: uniform over all steps
            drawn = torch.randint(len(row), (self.config.batch_size,), generator=self.generator)  # 4, 5
            self._optimise(episodes, advantages, targets, row[drawn], step[drawn], unchanged=not update)  # 6
        self.iteration += 1
        self.update.end_iteration(self.iteration)
        return self.metrics.end()

    def _make_value(self, observation_dim: int) -> ValueNetwork:
        """A value network, and the optimizer that goes with it."""
        config = self.config
        value = ValueNetwork(
            observation_dim, width=config.value_width, layer_norm=config.value_layer_norm, scale=config.value_scale
        )
        initialise_linear(value, self.generator)
        value.to(device_of(self.policy))
        self.value_optimizer = torch.optim.AdamW(value.parameters(), lr=config.value_learning_rate, fused=True)
        return value

    def _collect(self, simulator: Simulator) -> dict[str, Tensor]:
        """Rolls out full trajectories under the current policy, asking for `return_to_go`."""
        config = self.config
        collect = partial(
            collect_episodes, self.policy, simulator, config.episodes_per_iteration, config.return_to_go, self.generator
        )
        episodes = collect_sound(collect, self.metrics, remembered=len(self.replay))
        rows = episodes.rows()
        if config.relabel:
            rows["returns_to_go"] = returns_to_go(episodes.steps.rewards, episodes.steps.mask)
        return {**rows, "iteration": torch.full((len(rows["mask"]),), self.iteration)}

    @torch.no_grad()
    def _advantages(self, episodes: Episodes) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
        """Advantages by GAE (Eq. 4) and value targets Â + V, of all of the replay under the present V."""
        steps, config = episodes.steps, self.config
        assert self.value is not None
        values = torch.zeros_like(steps.rewards)
        values[steps.mask] = self.value(steps.observations[steps.mask])
        bootstrap = self.value(episodes.final_observations) * ~episodes.terminated
        bootstrap = bootstrap * config.bootstrap_time_limits
        advantages = generalized_advantages(
            steps.rewards, values, bootstrap, steps.mask, config.gamma, config.gae_lambda
        )
        return advantages, advantages + values

    def _optimise(
        self,
        episodes: Episodes,
        advantages: Tensor,
        targets: Tensor,
        row: Tensor,
        step: Tensor,
        *,
        unchanged: bool,
    ) -> None:
        """One gradient step of the policy (Eq. 5) and one of the value network (Eq. 6); each rank does a part of it."""
        assert self.value is not None
        context = self.policy.context_length
        length = self.config.window_length or context
        before = torch.arange(2 - context - length, 1) + step[:, None]  # history, then a window of `length` actions
        steps = episodes.steps.gather(row, before)
        own = steps.slice_time(context - 1)
        index = before[:, context - 1 :].clamp(min=0)
        weights, goals = advantages[row[:, None], index], targets[row[:, None], index]
        if self.config.update.ratio == "token":
            chosen = weights[own.mask]
        else:  # one ratio a window, and one advantage: the mean over its actions
            chosen = weights = (weights * own.mask).sum(1) / own.mask.sum(1)
        weights = (weights - chosen.mean()) / (chosen.std() + 1e-8)
        fresh = self.replay.rows["iteration"][row] == self.iteration if unchanged else None
        part = Part(parallel.share(len(row)), len(row))
        mine, weights = steps.map(lambda x: x[part.rows]), weights[part.rows]
        metrics = self.update.step(mine, weights, self.generator, None if fresh is None else fresh[part.rows], part)
        mine = mine.slice_time(context - 1)
        loss = self._learn_value(mine, goals[part.rows], own.mask.sum())
        self.metrics.add_update({**metrics, "train/value_loss": loss})

    def _learn_value(self, own: Steps, goals: Float[Tensor, "batch time"], count: Int[Tensor, ""]) -> float:
        """One gradient step of the value network on this rank's part of a batch that has `count` steps; the loss."""
        assert self.value is not None
        loss = value_loss(self.value(own.observations), goals, own.mask, count)
        self.value_optimizer.zero_grad()
        loss.backward()
        loss = parallel.sum_gradients(list(self.value.parameters()), loss.detach()[None])
        if not torch.isfinite(loss):
            raise NumericError(
                f"the value network's loss stopped being finite in iteration {self.iteration + 1}: lower"
                " value_learning_rate, or raise value_scale, in a new run that begins with the last checkpoint"
            )
        self.value_optimizer.step()
        return loss.item()

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what the next iteration does, except the simulator."""
        value = None
        if self.value is not None:
            value = {"network": self.value.state_dict(), "optimizer": self.value_optimizer.state_dict()}
        return {
            "policy": self.policy.state_dict(),
            "value": value,
            "update": self.update.state_dict(),
            "replay": self.replay.state_dict(),
            "generator": self.generator.get_state(),
            "iteration": self.iteration,
            "metrics": self.metrics.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.value = None
        if state["value"] is not None:
            network = state["value"]["network"]
            self.value = self._make_value(len(network["observation_mean"]))
            self.value.load_state_dict(network)
            self.value_optimizer.load_state_dict(state["value"]["optimizer"])
        for name in ("policy", "update", "replay", "metrics"):
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        self.iteration = state["iteration"]
