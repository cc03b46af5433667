"""ODT+TD3: the online decision transformer with TD3's gradient beside its own (Yan et al., 2024).

max  c_sup · E[-|tanh μ(context) - a|²]  +  α · E[Q₁(s, tanh μ(context))]

over windows whose returns-to-go are *hindsight*: what was earned, not what was asked for. Imitation needs that; a
critic does not mind, because it has no importance ratios (Sec. 3.1).

Kept of the original code: a multilayer perceptron for a critic; no normalisation of Q; windows that begin anywhere, so
that every context up to `window_length` is trained; an online episode that the clock has cut counts as ended
(`time_limits_end`); dropout while training (`dropout`); a warm-up of the learning rate that pretraining has begun
(`warmup_begin`); slow copies that are made afresh when the online phase begins; a replay counted in trajectories that
begins with the best offline ones.

Not kept: padding that counted in means, and was seen by the slow policy; recorded episodes' last steps without their
successor as if there were one (left out of the critics' loss here); deviations in rewards between return tokens and
critics' units (tokens are raw here, `critic.reward_scale` and `reward_shift` are the critics' own); a deterministic
head (the mode of the pretrained policy stands for it); critics pretrained beside the policy (here they follow the
pretrained one); a limit on transitions (here on iterations); environment seeds that are the same in every run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dtune.algorithms.metrics import Metrics
from dtune.algorithms.td3 import CriticConfig, TD3Critic
from dtune.algorithms.update import EntropyDual, OptimizerName, make_optimizer
from dtune.data.datasets import Dataset, recorded
from dtune.data.steps import Steps
from dtune.data.trajectories import TrajectoryReplay
from dtune.data.transitions import Transitions, sample_transitions
from dtune.envs.rollout import collect_episodes
from dtune.envs.simulator import Simulator
from dtune.errors import ConfigError, NumericError
from dtune.functional.objectives import masked_mean
from dtune.models.distributions import TanhNormal
from dtune.models.policy import TrainablePolicy


@dataclass(frozen=True, kw_only=True)
class ODTTD3Config:
    """Hyperparameters of ODT+TD3. Defaults are those Yan et al. (Table 9) give for Hopper."""

    return_to_go: float
    """Return asked for at the start of an online episode, in environment reward units; theirs is twice an expert's."""
    context_length: int = 5
    """Steps of history the policy reads when it acts, T_eval."""
    window_length: int = 20
    """Steps in a training window, T_train."""
    stochastic: bool = False
    """Likelihoods, an entropy constraint and sampled actions, as ODT has them, instead of squared errors and noise on
    the mode. The critics judge the mode in both."""
    exploration_noise: float = 0.1
    """Deviation of the noise on actions, which lie in [-1, 1], while collecting; `stochastic` does without."""
    episodes_per_iteration: int = 1
    """Full trajectories collected at a time."""
    steps_per_iteration: int = 1
    """More are collected until they have as many steps together; theirs is 1,000 on random datasets."""
    time_limits_end: bool = True
    """Whether online episodes cut by the clock count as terminated; otherwise their last step is left out of the
    critics' loss."""
    replay_capacity: int = 1000
    """Trajectories remembered: at first the best offline ones, which newer ones replace."""
    rl_coef: float = 0.1
    """Weight of Q₁ in the policy's objective, α; 0 leaves supervised learning, and no critics."""
    supervised_coef: float = 1.0
    """Weight of imitation in it."""
    updates_per_iteration: int = 300
    """Gradient steps of the policy an iteration; the critics take `critic.policy_interval` times as many."""
    batch_size: int = 256
    """Windows a gradient step."""
    dropout: bool = True
    """Whether the policy drops while it is trained; its slow copy and acting never do."""
    optimizer: OptimizerName = "lamb"
    """LAMB is theirs; AdamW moves small networks much faster."""
    learning_rate: float = 1e-4
    """Step size of the policy after warm-up."""
    warmup_updates: int = 10_000
    """Gradient steps over which the learning rate rises linearly from 0."""
    warmup_begin: int = 5_000
    """How many of those pretraining has taken."""
    weight_decay: float = 5e-4
    """Decoupled weight decay."""
    grad_norm_clip: float = 0.25
    """Largest norm of the gradient over all parameters."""
    entropy_coef: float = 0.1
    """Initial dual variable of the entropy constraint, λ; for `stochastic`."""
    entropy_coef_learning_rate: float = 1e-4
    """Adam's step size on log λ."""
    target_entropy: float | None = None
    """Lower bound on the mean policy entropy, in nats summed over action dimensions. None: -dim(A)."""
    critic: CriticConfig = field(default_factory=CriticConfig)
    """How the critics are learned."""

    def __post_init__(self) -> None:
        counts = (
            "context_length", "window_length", "episodes_per_iteration", "steps_per_iteration", "replay_capacity",
            "updates_per_iteration", "batch_size",
        )  # fmt: skip
        for name in counts:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "grad_norm_clip", "entropy_coef"):
            if not getattr(self, name) > 0:  # said so, NaN is refused as well
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}: set a positive number")
        not_negative = (
            "exploration_noise", "rl_coef", "supervised_coef", "warmup_updates", "warmup_begin", "weight_decay",
            "entropy_coef_learning_rate",
        )  # fmt: skip
        for name in not_negative:
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} cannot be negative, got {getattr(self, name)}: 0 turns it off")
        if self.optimizer not in get_args(OptimizerName):
            choices = ", ".join(get_args(OptimizerName))
            raise ConfigError(f"optimizer must be one of {choices}, got {self.optimizer!r}")


class ODTTD3:
    """Improves `policy` in place, one `iterate` at a time. Needs no going back, but offline data.

    Attributes:
        policy: the decision transformer being finetuned; in evaluation mode between iterations.
        critic: Q₁ and Q₂, learned from `dataset` in the first iteration and from the replay in every one.
    """

    def __init__(
        self,
        policy: TrainablePolicy,
        config: ODTTD3Config,
        dataset: Dataset,
        generator: torch.Generator | None = None,
    ):
        self.policy, self.config, self.dataset = policy.eval(), config, dataset
        policy.context_length = config.context_length
        self.generator = generator or torch.Generator().manual_seed(0)
        self.optimizer = make_optimizer(policy, config.optimizer, config.learning_rate, config.weight_decay)
        target = -float(policy.action_dim) if config.target_entropy is None else config.target_entropy
        self.entropy_dual = EntropyDual(config.entropy_coef, target, config.entropy_coef_learning_rate)
        self.critic = TD3Critic(policy, config.critic, dataset, self.generator)
        self.replay = TrajectoryReplay(config.replay_capacity, dataset)
        self.iteration = self.updates = 0
        self.metrics = Metrics()

    def iterate(self, simulator: Simulator) -> dict[str, float]:
        """Collects, then takes `updates_per_iteration` steps of the policy between those of the critics."""
        config = self.config
        self.metrics.begin()
        if config.rl_coef and not self.iteration:
            self.critic.learn_offline(
                self.policy,
                self.dataset,
                self.dataset.returns_to_go(),
                batch_size=config.batch_size,
                length=config.window_length,
                history=0,
                generator=self.generator,
            )
        self._collect(simulator)
        self.policy.train(config.dropout)
        try:
            for _ in range(config.updates_per_iteration):
                self.metrics.add_update(self._update())
        finally:
            self.policy.eval()
        self.metrics.set("count/critic_steps", self.critic.updates)
        self.iteration += 1
        return self.metrics.end()

    def _collect(self, simulator: Simulator) -> None:
        """Rolls out full trajectories under the current policy, asking for `return_to_go`, and remembers them."""
        config, steps = self.config, 0
        act = partial(TanhNormal.perturbed_raw, std=config.exploration_noise)
        while steps < config.steps_per_iteration:
            episodes, faulty = collect_episodes(
                self.policy,
                simulator,
                config.episodes_per_iteration,
                config.return_to_go,
                self.generator,
                act=TanhNormal.sample_raw if config.stochastic else act,
            )
            self.metrics.count_episodes(episodes, faulty)
            ended = episodes.terminated | config.time_limits_end
            self.replay.extend(recorded(episodes.steps, ended, self.dataset.name))
            steps += int(episodes.lengths.sum() + faulty.lengths.sum())

    def _update(self) -> dict[str, float]:
        """`policy_interval` steps of the critics, and one of the policy on the last of their batches."""
        config, dataset = self.config, self.replay.dataset
        metrics: dict[str, float] = {}
        for _ in range(config.critic.policy_interval if config.rl_coef else 1):
            batch = sample_transitions(
                dataset, dataset.returns_to_go(), config.batch_size, config.window_length, self.generator
            )
            if config.rl_coef:
                metrics = self.critic.step(batch, self.generator)
        metrics |= self._improve(batch)
        if config.rl_coef:
            self.critic.follow(self.policy)
        return metrics

    def _improve(self, batch: Transitions) -> dict[str, float]:
        """One gradient step of the policy."""
        config = self.config
        objective, entropy, metrics = self._objective(batch.steps)
        self.optimizer.zero_grad()
        (-objective).backward()
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), config.grad_norm_clip)
        if not torch.isfinite(norm):
            raise NumericError(
                f"the policy's gradient stopped being finite at update {self.updates}: lower learning_rate or rl_coef"
                " and go on from the last checkpoint"
            )
        self.updates += 1
        rate = config.learning_rate * min(1.0, (config.warmup_begin + self.updates) / max(1, config.warmup_updates))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        if config.stochastic:
            self.entropy_dual.step(entropy)
            metrics["train/entropy_coef"] = self.entropy_dual.coef
        return {**metrics, "train/grad_norm": norm.item(), "train/learning_rate": rate}

    def _objective(self, steps: Steps) -> tuple[Float[Tensor, ""], Float[Tensor, ""], dict[str, float]]:
        """What the policy climbs on these windows; its entropy; metrics."""
        config, mask = self.config, steps.mask
        with torch.random.fork_rng(devices=[]):  # dropout knows only the global generator: seed it from ours
            torch.manual_seed(int(torch.randint(2**62, (), generator=self.generator)))
            distribution = self.policy(steps)
        entropy = masked_mean(distribution.entropy(torch.randn(steps.actions.shape, generator=self.generator)), mask)
        metrics = {"train/entropy": entropy.item()}
        if config.stochastic:
            imitation = masked_mean(distribution.log_prob(steps.raw_actions), mask)
            objective = config.supervised_coef * (imitation + self.entropy_dual.coef * entropy)
        else:
            imitation = -masked_mean((distribution.mode - steps.actions).square().mean(-1), mask)
            objective = config.supervised_coef * imitation
        metrics["train/imitation_loss"] = -imitation.item()
        if config.rl_coef:
            value = masked_mean(self.critic.network(steps.observations, distribution.mode)[0], mask)
            objective = objective + config.rl_coef * value
            metrics["train/policy_value"] = value.item()
        return objective, entropy, metrics

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what the next iteration does, except the simulator and the dataset."""
        parts = {name: getattr(self, name).state_dict() for name in _PARTS}
        return {
            **parts, "generator": self.generator.get_state(), "iteration": self.iteration, "updates": self.updates,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name in _PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        self.iteration, self.updates = state["iteration"], state["updates"]


_PARTS = ("policy", "optimizer", "entropy_dual", "critic", "replay", "metrics")
