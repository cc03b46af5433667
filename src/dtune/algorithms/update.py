"""The clipped policy update the paper's methods share: surrogate, KL leash, entropy dual, one gradient step.

Everything below this floor maximises; here it is negated, differentiated and stepped.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dtune import parallel
from dtune.algorithms.dual import EntropyDual
from dtune.checks import above_zero, at_least, finite, not_negative, one_of
from dtune.data.steps import Steps, portions
from dtune.errors import ConfigError, NumericError
from dtune.functional.objectives import (
    clip_fraction,
    clipped_surrogate,
    masked_mean,
    sequence_ratio,
    token_ratio,
)
from dtune.models.distributions import TanhNormal
from dtune.models.lamb import Lamb
from dtune.models.policy import TrainablePolicy, at_last

Ratio = Literal["sequence", "geometric", "token"]
OptimizerName = Literal["lamb", "adamw"]

STEPS_AT_ONCE = 4096
"""Steps that the network reads at once, those of contexts included; a larger batch is gone through in portions, whose
gradients are summed. At the paper's sizes they need 1.2 GB."""


@dataclass(frozen=True, kw_only=True)
class UpdateConfig:
    """How the policy is moved. Defaults are Table 5's and Table 6's for MuJoCo."""

    optimizer: OptimizerName = "lamb"
    """LAMB moves every tensor by a fixed share of its norm (the paper's); AdamW moves small networks much faster."""
    learning_rate: float = 5e-5
    """Step size of the policy. Raising it learns faster and makes ratios and swings larger."""
    decay_updates: int = 0
    """Gradient steps over which the learning rate falls linearly to `final_learning_rate`; 0 keeps it constant."""
    final_learning_rate: float = 0.0
    """Learning rate after `decay_updates` gradient steps."""
    weight_decay: float = 1e-4
    """Decoupled weight decay."""
    grad_norm_clip: float = 0.5
    """Largest norm of the gradient over all parameters."""
    ratio: Ratio = "sequence"
    """Granularity of the importance ratio (Figs. 2c, 2e): the product over a sub-trajectory, its geometric mean
    (what TRL and verl call "sequence"), or one ratio an action."""
    clip_range: float = 0.2
    """How far a ratio may leave 1 before its gradient stops, ε. Raising it lets older data count."""
    clip_range_high: float | None = None
    """The same upwards, where that differs ("clip higher"): raising it alone lets unlikely actions that turned out
    well grow, and keeps entropy up. None: `clip_range`."""
    kl_coef: float = 1e-3
    """Weight of KL(π ‖ reference), β, per step in nats. Raising it slows the policy down."""
    reference_sync_interval: int = 4
    """Iterations between copies of the policy into the reference."""
    entropy_coef: float = 0.2
    """Initial dual variable of the entropy constraint, κ. Raising it keeps actions more random."""
    entropy_coef_learning_rate: float = 1e-4
    """Adam's step size on log κ."""
    target_entropy: float | None = None
    """Lower bound on the mean policy entropy, ρ, in nats summed over action dimensions. None: -dim(A)."""

    def __post_init__(self) -> None:
        finite(self)
        above_zero(self, "learning_rate", "grad_norm_clip", "entropy_coef")
        if not 0 < self.clip_range < 1:
            raise ConfigError(f"clip_range is a distance from 1, got {self.clip_range}: give one between 0 and 1")
        if self.clip_range_high is not None and self.clip_range_high <= 0:
            raise ConfigError(
                f"clip_range_high must be above 0, got {self.clip_range_high}: leave it out to use clip_range"
            )
        not_negative(
            self, "decay_updates", "final_learning_rate", "weight_decay", "kl_coef", "entropy_coef_learning_rate"
        )
        one_of(self, optimizer=get_args(OptimizerName), ratio=get_args(Ratio))
        at_least(self, 1, "reference_sync_interval")


def make_optimizer(
    policy: TrainablePolicy, kind: OptimizerName, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """LAMB or AdamW over all parameters of `policy`."""
    if kind == "lamb":
        return Lamb(policy.parameters(), lr=learning_rate, weight_decay=weight_decay)
    return torch.optim.AdamW(policy.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True)


@dataclass(frozen=True)
class Part:
    """The rows of a batch that this rank computes."""

    rows: slice | Int[Tensor, "rows"]
    """Where they stand in it."""
    of: int
    """Rows of the whole batch."""


class ClippedUpdate:
    """Moves `policy` uphill on Eq. 3 (or Eq. 5, with token ratios), one batch at a time.

    The policy stays in evaluation mode: dropout would make the ratio of unchanged weights differ from 1.
    """

    def __init__(self, policy: TrainablePolicy, config: UpdateConfig):
        self.policy, self.config = policy.eval(), config
        self.reference = deepcopy(policy).requires_grad_(False)
        self.optimizer = make_optimizer(policy, config.optimizer, config.learning_rate, config.weight_decay)
        target = -float(policy.action_dim) if config.target_entropy is None else config.target_entropy
        self.entropy_dual = EntropyDual(config.entropy_coef, target, config.entropy_coef_learning_rate)
        self.updates = 0

    def step(
        self,
        steps: Steps,
        advantages: Float[Tensor, "batch"] | Float[Tensor, "batch time"],
        generator: torch.Generator,
        fresh: Bool[Tensor, "batch"] | None = None,
        part: Part | None = None,
        reference: TanhNormal | None = None,
    ) -> dict[str, float]:
        """One gradient step; where there are several ranks, the same on all of them.

        Args:
            steps: rows of `context_length - 1` steps of history, then the actions to learn from.
            advantages: one a row (sequence ratios), or one an action (token ratios).
            generator: draws the one sample a step that estimates the entropy.
            fresh: rows that the present policy, unchanged, acted in; their ratios ought to be 1.
            part: which rows of the batch these are, where each rank has some; None: all.
            reference: what `refer` says of these rows; None: it is asked now.

        Returns:
            What happened, by metric key.

        Raises:
            NumericError: if the gradient is not finite; nothing has been changed then.
        """
        config, parameters = self.config, list(self.policy.parameters())
        self.optimizer.zero_grad()
        reference = reference or self.refer(steps)
        means, extremes = self._differentiate(steps, advantages, generator, fresh, part, reference)
        metrics = self._metrics(parallel.sum_gradients(parameters, means), parallel.largest(extremes))
        norm = nn.utils.clip_grad_norm_(parameters, config.grad_norm_clip)
        if not torch.isfinite(norm):
            raise NumericError(
                f"the policy's gradient stopped being finite at update {self.updates}: lower the learning rate"
                " (or the clip range) in a new run that begins with the last checkpoint"
            )
        metrics["train/learning_rate"] = self._set_learning_rate()
        self.optimizer.step()
        self.entropy_dual.step(torch.tensor(metrics["train/entropy"]))
        self.updates += 1
        return {**metrics, "train/grad_norm": norm.item(), "train/entropy_coef": self.entropy_dual.coef}

    @torch.no_grad()
    def refer(self, steps: Steps) -> TanhNormal:
        """What the reference would do where the actions to learn from were taken, `[batch, time, action]`.

        It stays so until `end_iteration`, however often the rows are learned from.
        """
        own = steps.slice_time(self.policy.context_length - 1)
        mean, std = torch.zeros_like(own.raw_actions), torch.ones_like(own.raw_actions)
        for rows in self._portions(own.mask):
            distribution = at_last(self.reference, self._windows(steps.map(itemgetter(rows))))
            mean[rows][own.mask[rows]], std[rows][own.mask[rows]] = distribution.mean, distribution.std
        return TanhNormal(mean, std)

    def _portions(self, mask: Bool[Tensor, "batch time"]) -> Iterator[slice]:
        """Rows that the network reads at once, by which of their actions are real."""
        return portions(mask.sum(1), max(1, STEPS_AT_ONCE // self.policy.context_length))

    def _windows(self, steps: Steps) -> Steps:
        """The window before each action, row by row; what is padded is left out and costs nothing."""
        real = steps.mask[:, self.policy.context_length - 1 :].flatten()
        windows = steps.windows(self.policy.context_length)
        return windows if real.all() else windows.map(lambda x: x[real])

    def _differentiate(
        self,
        steps: Steps,
        advantages: Tensor,
        generator: torch.Generator,
        fresh: Bool[Tensor, "batch"] | None,
        part: Part | None,
        reference: TanhNormal,
    ) -> tuple[Float[Tensor, "means"], Float[Tensor, "extremes"]]:
        """Leaves these rows' share of the gradient of Eq. 3 or 5, negated, in the parameters.

        Returns:
            Their shares of the batch's means, to be summed, and their extremes: see `_metrics`.
        """
        own = steps.slice_time(self.policy.context_length - 1)
        mask, shape = own.mask, own.raw_actions.shape
        part = part or Part(slice(None), len(mask))
        noise = torch.randn((part.of, *shape[1:]), generator=generator)[part.rows]
        counts = parallel.total(torch.tensor([len(mask), int(mask.sum())]))
        means, extremes = torch.zeros(5), torch.full((2,), -torch.inf)
        for rows in self._portions(mask):
            young = None if fresh is None else fresh[rows]
            portion = steps.map(itemgetter(rows))
            told = self._share(portion, advantages[rows], noise[rows], young, counts, reference[rows])
            means, extremes = means + told[0], extremes.maximum(told[1])
        return means, extremes

    def _share(
        self,
        steps: Steps,
        advantages: Tensor,
        noise: Float[Tensor, "batch time action"],
        fresh: Bool[Tensor, "batch"] | None,
        counts: Int[Tensor, "2"],
        reference: TanhNormal,
    ) -> tuple[Float[Tensor, "means"], Float[Tensor, "extremes"]]:
        """What `_differentiate` does, of some of its rows in a batch with `counts` rows and actions."""
        (rows, actions), config = counts, self.config
        own = steps.slice_time(self.policy.context_length - 1)
        mask = own.mask
        distribution = at_last(self.policy, self._windows(steps))

        def placed(values: Float[Tensor, "real"]) -> Float[Tensor, "batch time"]:
            return torch.zeros(mask.shape).masked_scatter(mask, values)

        log_probs = placed(distribution.base_log_prob(own.raw_actions[mask]))
        entropy = masked_mean(placed(distribution.entropy(noise[mask])), mask, actions)
        kl = masked_mean(placed(distribution.kl(reference[mask])), mask, actions)
        ratio, counted = self._ratio(log_probs, own)
        count, low, high = rows if ratio.ndim == 1 else actions, config.clip_range, config.clip_range_high
        weights = advantages if advantages.ndim == ratio.ndim else advantages[:, None].expand_as(ratio)
        surrogate = masked_mean(clipped_surrogate(ratio, weights, low, high), counted, count)
        (-(surrogate - config.kl_coef * kl) - self.entropy_dual.coef * entropy).backward()
        clipped = clip_fraction(ratio, low, counted, high, count)
        means = torch.stack([surrogate, ratio[counted].sum() / count, clipped, kl, entropy]).detach()
        among = counted & (torch.zeros_like(mask[:, 0]) if fresh is None else fresh).view(-1, *[1] * (ratio.ndim - 1))
        return means, torch.stack([_largest(ratio[counted]), _largest((ratio[among] - 1).abs())]).detach()

    def _ratio(
        self, log_probs: Float[Tensor, "batch time"], own: Steps
    ) -> tuple[Float[Tensor, "..."], Bool[Tensor, "..."]]:
        """Importance ratios, one a row or one an action, and which of them count."""
        mask, kind = own.mask, self.config.ratio
        if kind == "token":
            return token_ratio(log_probs, own.log_probs), mask
        ratio = sequence_ratio(log_probs, own.log_probs, mask, geometric_mean=kind == "geometric")
        return ratio, torch.ones_like(ratio, dtype=torch.bool)

    def _metrics(self, means: Float[Tensor, "means"], extremes: Float[Tensor, "extremes"]) -> dict[str, float]:
        """What `_differentiate` gives, of all ranks, by metric key."""
        surrogate, ratio, clipped, kl, entropy = means.tolist()
        largest, error = extremes.tolist()
        metrics = {
            "train/surrogate": surrogate,
            "train/ratio_mean": ratio,
            "train/ratio_max": largest,
            "train/clip_fraction": clipped,
            "train/kl": kl,
            "train/entropy": entropy,
            "train/entropy_target": self.entropy_dual.target,
        }
        return metrics if error == -torch.inf else metrics | {"train/fresh_ratio_error": error}

    def _set_learning_rate(self) -> float:
        """Linear decay over `decay_updates`, by updates done."""
        config = self.config
        rate = config.learning_rate
        if config.decay_updates:
            share = max(0.0, 1 - self.updates / config.decay_updates)
            rate = config.final_learning_rate + share * (config.learning_rate - config.final_learning_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def end_iteration(self, iteration: int) -> None:
        """Copies the policy into the reference after every `reference_sync_interval`-th iteration, counted from 1."""
        if iteration % self.config.reference_sync_interval == 0:
            self.reference.load_state_dict(self.policy.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """All but the policy itself."""
        return {
            "reference": self.reference.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "entropy_dual": self.entropy_dual.state_dict(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.reference.load_state_dict(state["reference"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.entropy_dual.load_state_dict(state["entropy_dual"])
        self.updates = state["updates"]


def _largest(values: Float[Tensor, "values"]) -> Float[Tensor, ""]:
    """-∞ of none."""
    return values.max() if len(values) else torch.tensor(-torch.inf)
