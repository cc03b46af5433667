"""ODT+TD3: the online decision transformer with TD3's gradient beside its own (Yan et al., 2024).

while not finished:
    1   τ ← walk with tanh μ + noise, asking for g_online;  𝒯 ← 𝒯 ∪ {τ}, as in ODT
    2   repeat 300 times:
    3       d times: windows of 𝒯, returns-to-go being *achieved* ones (hindsight); a step of Q₁ and Q₂ on them
    4       max  c · E[-(tanh μ(context) - a)²]  +  α · E[Q₁(s, tanh μ(context))]  on the last of those windows
    5       slow copies of Q₁, Q₂ and μ move by a share of τ

Relabelling is a feature here: imitation needs what was earned, and a critic has no importance ratios that it could
break (Sec. 3.1). docs/algorithms/odt_td3.md lists what is kept of the original code and what is not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dtune.algorithms.collect import collect_dataset
from dtune.algorithms.metrics import Metrics
from dtune.algorithms.supervised import SupervisedConfig, SupervisedUpdate, online_imitation, training
from dtune.algorithms.td3 import CriticConfig, TD3Critic
from dtune.checks import at_least, finite, not_negative
from dtune.data.datasets import Dataset, drop_lowest_return
from dtune.data.steps import Steps
from dtune.data.trajectories import TrajectoryReplay
from dtune.data.transitions import Transitions, sample_transitions
from dtune.envs.simulator import Simulator
from dtune.functional.objectives import masked_mean
from dtune.models.distributions import TanhNormal
from dtune.models.policy import TrainablePolicy, at_context


@dataclass(frozen=True, kw_only=True)
class ODTTD3Config:
    """Hyperparameters of ODT+TD3. Defaults are those Yan et al. (2024) give for Hopper."""

    return_to_go: float
    """Return asked for in evaluations, in environment reward units."""
    online_return_to_go: float | None = None
    """Return asked for while exploring; the authors ask for twice as much as in evaluations. None: the same."""
    context_length: int = 5
    """Steps of history the policy reads when it acts. What it is trained on is `update.context_length`."""
    episodes_per_iteration: int = 1
    """Trajectories collected each iteration, at least."""
    min_steps: int = 0
    """Steps collected each iteration, at least: 1,000 where a trajectory may be a few steps long."""
    replay_capacity: int = 1000
    """Trajectories remembered, 𝒯, offline ones included. Raising it keeps old data longer."""
    pretraining_updates: int = 5000
    """Gradient steps of the pretraining, which the warm-up of the learning rate goes on from."""
    stochastic: bool = False
    """Imitate by likelihood under an entropy constraint, and explore by sampling, as ODT does; otherwise by squared
    errors of the mode, and by noise on it. The critics judge the mode in both."""
    exploration_noise: float = 0.1
    """Deviation of that noise on actions, which lie in [-1, 1]."""
    rl_coef: float = 0.1
    """Weight of Q₁ in the policy's objective, α. 0 leaves imitation alone, and trains no critics."""
    supervised_coef: float = 1.0
    """Weight of imitation in it, c."""
    time_limits_end: bool = True
    """Whether online trajectories that the clock cut count as terminated for the critics, as in the original code;
    otherwise their last step is left out."""
    update: SupervisedConfig = field(default_factory=online_imitation)
    """How windows are drawn and the policy is moved; its entropy constraint is for `stochastic`."""
    critic: CriticConfig = field(default_factory=CriticConfig)
    """How the critics are learned, on batches of `update.batch_size` windows."""

    def __post_init__(self) -> None:
        finite(self)
        at_least(self, 1, "context_length", "episodes_per_iteration", "replay_capacity")
        at_least(self, 0, "min_steps", "pretraining_updates")
        not_negative(self, "exploration_noise", "rl_coef", "supervised_coef")


class ODTTD3:
    """Improves `policy` in place, one `iterate` at a time. Needs no going back, but offline data.

    Attributes:
        policy: the decision transformer being finetuned; in evaluation mode between steps.
        critic: Q₁ and Q₂, learned from `dataset` in the first iteration and from the replay in every one.
        replay: the trajectories that both learn from.
    """

    def __init__(
        self,
        policy: TrainablePolicy,
        config: ODTTD3Config,
        dataset: Dataset,
        generator: torch.Generator | None = None,
    ):
        self.policy, self.config, self.dataset = policy.eval(), config, drop_lowest_return(dataset)
        policy.context_length = config.context_length
        self.generator = generator or torch.Generator().manual_seed(0)
        self.update = SupervisedUpdate(policy, config.update, config.pretraining_updates)
        self.critic = TD3Critic(policy, config.critic, dataset, self.generator)
        self.replay = TrajectoryReplay(config.replay_capacity, self.dataset)
        self.iteration = 0
        self.metrics = Metrics()

    def iterate(self, simulator: Simulator) -> dict[str, float]:
        """One iteration; comments name the lines above."""
        config, fit = self.config, self.config.update
        self.metrics.begin()
        if config.rl_coef and not self.iteration:
            self.critic.learn_offline(
                self.policy, self.dataset, self.dataset.returns_to_go(), batch_size=fit.batch_size,
                length=fit.context_length, history=0, generator=self.generator,
            )  # fmt: skip
        self._collect(simulator)  # 1
        with at_context(self.policy, fit.context_length):
            for _ in range(fit.updates_per_iteration):  # 2
                self.metrics.add_update(self._improve())
        self.metrics.set("count/critic_steps", self.critic.updates)
        self.metrics.set("train/replay_trajectories", len(self.replay))
        self.metrics.set("train/replay_return", self.replay.dataset.returns.mean().item())
        self.iteration += 1
        return self.metrics.end()

    def _collect(self, simulator: Simulator) -> None:
        """Walks trajectories under the current policy, asking for `online_return_to_go`, and remembers them."""
        config = self.config
        walked = collect_dataset(
            self.policy,
            simulator,
            self.metrics,
            self.generator,
            return_to_go=config.return_to_go if config.online_return_to_go is None else config.online_return_to_go,
            episodes=config.episodes_per_iteration,
            min_steps=config.min_steps,
            act=TanhNormal.sample_raw
            if config.stochastic
            else partial(TanhNormal.perturbed_raw, std=config.exploration_noise),
        )
        if config.time_limits_end:
            ended = walked.terminated.clone()
            ended[walked.starts + walked.lengths - 1] = True
            walked = replace(walked, terminated=ended)
        self.replay.extend(walked)

    def _improve(self) -> dict[str, float]:
        """Steps of the critics, and one of the policy on the last of their batches."""
        config = self.config
        metrics: dict[str, float] = {}
        for _ in range(config.critic.policy_interval if config.rl_coef else 1):  # 3
            batch = self._draw()
            if config.rl_coef:
                metrics = self.critic.step(batch, self.generator)
        noise = torch.randn(batch.steps.actions.shape, generator=self.generator)
        with training(self.policy, self.generator):
            distribution = self.policy(batch.steps)
        objective, told = self._objective(batch.steps, distribution)  # 4
        entropy = masked_mean(distribution.entropy(noise), batch.steps.mask)
        if config.stochastic:
            objective = objective + config.supervised_coef * self.update.entropy_dual.coef * entropy
        told |= {"train/entropy": entropy.item(), **self.update.climb(objective)}
        if config.stochastic:
            self.update.entropy_dual.step(entropy)
            told["train/entropy_coef"] = self.update.entropy_dual.coef
        if config.rl_coef:
            self.critic.follow(self.policy)  # 5
        return metrics | told

    def _draw(self) -> Transitions:
        """Windows as ODT draws them: by length, beginning anywhere, with what was earned as return-to-go."""
        dataset, fit = self.replay.dataset, self.config.update
        return sample_transitions(dataset, dataset.returns_to_go(), fit.batch_size, fit.context_length, self.generator)

    def _objective(self, steps: Steps, distribution: TanhNormal) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """What the policy climbs on these windows but for its entropy, and metrics."""
        config, mask = self.config, steps.mask
        if config.stochastic:
            imitation = masked_mean(distribution.log_prob(self.update.imitated(steps)), mask)
        else:
            imitation = -masked_mean((distribution.mode - steps.actions).square().mean(-1), mask)
        objective, metrics = config.supervised_coef * imitation, {"train/imitation_loss": -imitation.item()}
        if config.rl_coef:
            value = masked_mean(self.critic.network(steps.observations, distribution.mode)[0], mask)
            objective = objective + config.rl_coef * value
            metrics["train/policy_value"] = value.item()
        return objective, metrics

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


_PARTS = ("policy", "update", "critic", "replay", "metrics")
