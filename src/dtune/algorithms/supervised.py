"""Supervised learning of a decision transformer: pretraining as Zheng et al. (2022) do it.

max E[log π(a | context)] under H(π) ≥ ρ, on windows whose returns-to-go are hindsight. A policy that predicts its
return-to-go (Reinformer) learns that beside it, by expectile regression.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dtune.algorithms.dual import EntropyDual
from dtune.algorithms.metrics import Metrics
from dtune.algorithms.update import OptimizerName, make_optimizer
from dtune.checks import above_zero, at_least, finite, not_negative, one_of
from dtune.data.datasets import Dataset
from dtune.data.steps import Steps
from dtune.envs.simulator import Simulator
from dtune.errors import ConfigError, NumericError
from dtune.functional.bellman import expectile_loss
from dtune.functional.objectives import masked_mean
from dtune.models.device import device_of
from dtune.models.policy import ReturnPredictor, TrainablePolicy, check_learns_from


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig:
    """Hyperparameters of pretraining. Defaults are Yan et al.'s for Hopper with the paper's changes (Table 5)."""

    context_length: int = 20
    """Steps in a training window, c_offline."""
    optimizer: OptimizerName = "lamb"
    """LAMB is the paper's; AdamW moves small networks much faster."""
    learning_rate: float = 1e-4
    """Step size after warm-up."""
    warmup_updates: int = 10_000
    """Gradient steps over which the learning rate rises linearly from 0."""
    weight_decay: float = 1e-4
    """Decoupled weight decay."""
    grad_norm_clip: float = 0.5
    """Largest norm of the gradient over all parameters."""
    batch_size: int = 256
    """Windows a gradient step."""
    updates_per_iteration: int = 250
    """Gradient steps an iteration; only how often progress is recorded and saved depends on it."""
    action_limit: float = 1.0
    """Actions are imitated as if inside ± this. 1 pulls them in by 1e-6 only, as online-dt does, so that one at its
    bound is 7.25 before tanh; where many are, the policy learns a deviation so wide that most of what is drawn of it
    lies at the bounds too, and walks drawn of it earn little. Lower, it draws nearer to its mean."""
    entropy_coef: float = 0.1
    """Initial dual variable of the entropy constraint, λ."""
    entropy_coef_learning_rate: float = 1e-4
    """Adam's step size on log λ."""
    target_entropy: float | None = None
    """Lower bound on the mean policy entropy, in nats summed over action dimensions. None: -dim(A)."""
    return_expectile: float = 0.99
    """Which expectile of the returns achieved a policy that predicts its return-to-go learns: near 1, the best."""

    def __post_init__(self) -> None:
        finite(self)
        at_least(self, 1, "context_length", "batch_size", "updates_per_iteration")
        above_zero(self, "learning_rate", "grad_norm_clip", "entropy_coef")
        not_negative(self, "warmup_updates", "weight_decay", "entropy_coef_learning_rate")
        if not 0 < self.action_limit <= 1:
            raise ConfigError(f"action_limit is the largest action imitated, in (0, 1], got {self.action_limit}")
        if not 0 < self.return_expectile < 1:
            raise ConfigError(f"return_expectile is a share in (0, 1), got {self.return_expectile}: 0.5 is the mean")
        one_of(self, optimizer=get_args(OptimizerName))


def online_imitation() -> SupervisedConfig:
    """How ODT and ODT+TD3 imitate while online, as Yan et al. (2024) have it for Hopper."""
    return SupervisedConfig(weight_decay=5e-4, grad_norm_clip=0.25, updates_per_iteration=300)


class SupervisedUpdate:
    """Makes what is in windows more likely, one batch at a time, with dropout that belongs to the run.

    Args:
        policy: the decision transformer; in evaluation mode between steps.
        config: how it is moved. Batches and windows are the caller's.
        updates: gradient steps made before, which the warm-up counts.
    """

    def __init__(self, policy: TrainablePolicy, config: SupervisedConfig, updates: int = 0):
        self.policy, self.config, self.updates = policy, config, updates
        self.optimizer = make_optimizer(policy, config.optimizer, config.learning_rate, config.weight_decay)
        target = -float(policy.action_dim) if config.target_entropy is None else config.target_entropy
        self.entropy_dual = EntropyDual(config.entropy_coef, target, config.entropy_coef_learning_rate)

    def step(self, windows: Steps, generator: torch.Generator) -> dict[str, float]:
        """One gradient step.

        Args:
            windows: what is `imitated` of them is to become likely where `mask` is True, given the `returns_to_go`.
            generator: draws dropout, and the one sample a step that estimates the entropy.

        Returns:
            What happened, by metric key.

        Raises:
            NumericError: if the gradient is not finite; nothing has been changed then.
        """
        noise = torch.randn(windows.raw_actions.shape, generator=generator)
        with training(self.policy, generator):
            distribution = self.policy(windows)
            return_loss = self._return_loss(windows)
        log_likelihood = masked_mean(distribution.log_prob(self.imitated(windows)), windows.mask)
        entropy = masked_mean(distribution.entropy(noise), windows.mask)
        metrics = self.climb(log_likelihood + self.entropy_dual.coef * entropy - return_loss)
        if isinstance(self.policy, ReturnPredictor):
            metrics["train/return_loss"] = return_loss.item()
        self.entropy_dual.step(entropy)
        return {
            "train/negative_log_likelihood": -log_likelihood.item(),
            "train/entropy": entropy.item(),
            "train/entropy_target": self.entropy_dual.target,
            "train/entropy_coef": self.entropy_dual.coef,
            **metrics,
        }

    def imitated(self, windows: Steps) -> Float[Tensor, "batch time action"]:
        """The raw actions to become likely: those taken, inside ± atanh(`action_limit`)."""
        limit = self.config.action_limit
        bound = math.atanh(limit) if limit < 1 else math.inf
        return windows.raw_actions.clamp(-bound, bound)

    def _return_loss(self, windows: Steps) -> Float[Tensor, ""]:
        """The expectile loss of predicted returns, E |τ - 1[u < 0]| u² with u = (g - ĝ) / mean|g|; 0 without them."""
        if not isinstance(self.policy, ReturnPredictor):
            return torch.zeros(())
        achieved, mask = windows.returns_to_go, windows.mask
        unit = masked_mean(achieved.abs(), mask).clamp(min=1e-6)  # all rewards may be 0
        errors = (achieved - self.policy.predict_return_to_go(windows)) / unit
        return masked_mean(expectile_loss(errors, self.config.return_expectile), mask)

    def climb(self, objective: Float[Tensor, ""]) -> dict[str, float]:
        """One gradient step uphill on `objective`, clipped, at the rate of the warm-up.

        Raises:
            NumericError: if the gradient is not finite; nothing has been changed then.
        """
        self.optimizer.zero_grad()
        (-objective).backward()
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.grad_norm_clip)
        if not torch.isfinite(norm):
            raise NumericError(
                f"the gradient stopped being finite at supervised update {self.updates}: lower the learning rate"
            )
        rate = self.config.learning_rate * min(1.0, (self.updates + 1) / max(1, self.config.warmup_updates))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.updates += 1
        return {"train/grad_norm": norm.item(), "train/learning_rate": rate}

    def state_dict(self) -> dict[str, Any]:
        """All but the policy itself."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "entropy_dual": self.entropy_dual.state_dict(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.entropy_dual.load_state_dict(state["entropy_dual"])
        self.updates = state["updates"]


@contextmanager
def training(policy: TrainablePolicy, generator: torch.Generator) -> Iterator[None]:
    """Dropout on, drawn from `generator`; off again afterwards. The global generators are left as they were."""
    policy.train()
    gpus = [device.index for device in [device_of(policy)] if device.type == "cuda"]
    try:
        with torch.random.fork_rng(devices=gpus):  # dropout knows only global generators: seed them from ours
            seed = int(torch.randint(2**62, (), generator=generator))
            torch.random.default_generator.manual_seed(seed)
            if gpus:
                torch.cuda.manual_seed_all(seed)
            yield
    finally:
        policy.eval()


class Supervised:
    """Fits `policy` in place to a dataset.

    Attributes:
        policy: the decision transformer; in evaluation mode between iterations.
    """

    def __init__(
        self,
        policy: TrainablePolicy,
        config: SupervisedConfig,
        dataset: Dataset,
        generator: torch.Generator | None = None,
    ):
        check_learns_from(policy, dataset)
        self.policy, self.config, self.dataset = policy.eval(), config, dataset
        policy.context_length = config.context_length
        self.generator = generator or torch.Generator().manual_seed(0)
        self.update = SupervisedUpdate(policy, config)
        self.metrics = Metrics()

    def iterate(self, simulator: Simulator | None = None) -> dict[str, float]:  # noqa: ARG002  it walks nowhere
        """`updates_per_iteration` gradient steps."""
        config = self.config
        self.metrics.begin()
        for _ in range(config.updates_per_iteration):
            windows = self.dataset.sample_windows(config.batch_size, config.context_length, self.generator)
            self.metrics.add_update(self.update.step(windows, self.generator))
        return self.metrics.end()

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what the next iteration does, except the dataset."""
        return {
            "policy": self.policy.state_dict(),
            "update": self.update.state_dict(),
            "generator": self.generator.get_state(),
            "metrics": self.metrics.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name in ("policy", "update", "metrics"):
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["generator"])
