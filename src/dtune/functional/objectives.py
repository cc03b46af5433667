"""Policy-gradient objectives: pure functions of log-probabilities, advantages and values.

Policy objectives are to be *maximised*; nothing here negates, the caller does. What is to be minimised says
so. Shapes: `batch` sub-trajectories of `time` actions. Log-probabilities are in nats, summed over action
dimensions.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to ± this before `exp`: one stale sequence of many dimensions must not overflow.
Beyond it the ratio is constant, so such a sample no longer pulls on the policy."""


def token_ratio(
    log_probs: Float[Tensor, "batch time"],
    old_log_probs: Float[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """One importance ratio an action: wₕ = π(aₕ) / π_old(aₕ) (Eqs. 1 and 5).

    Args:
        log_probs: log-likelihood of each action under the policy being trained.
        old_log_probs: the same under the policy that sampled the actions; a constant.
    """
    return (log_probs - old_log_probs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def sequence_ratio(
    log_probs: Float[Tensor, "batch time"],
    old_log_probs: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    geometric_mean: bool = False,
) -> Float[Tensor, "batch"]:
    """One importance ratio a sub-trajectory: w = Πₕ π(aₕ) / π_old(aₕ) (Eq. 3).

    Args:
        log_probs: log-likelihood of each action under the policy being trained.
        old_log_probs: the same under the policy that sampled the actions; a constant.
        mask: True on the actions to count; a row of none has ratio 1.
        geometric_mean: take the |τ|-th root, as GSPO does (Zheng et al., 2025). TRL and verl call that
            the "sequence" level; the paper drops the root (Fig. 2e), and so do we by default.
    """
    log_ratio = (log_probs - old_log_probs).masked_fill(~mask, 0).sum(-1, dtype=torch.float64)
    if geometric_mean:
        log_ratio = log_ratio / mask.sum(-1).clamp(min=1)
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp().to(log_probs.dtype)


def clipped_surrogate(
    ratio: Float[Tensor, "*batch"],
    advantages: Float[Tensor, "*batch"],
    clip_range: float,
    clip_range_high: float | None = None,
) -> Float[Tensor, "*batch"]:
    """min(wÂ, clip(w, 1 - ε, 1 + ε')Â), elementwise; to be maximised (Eqs. 1, 3 and 5, where ε' = ε).

    The gradient stops only where a step would overshoot: above 1 + ε' for a good action, below 1 - ε for a bad
    one. For Â < 0 the value is unbounded below as w grows, as in the paper.

    Args:
        ratio: importance ratios w, of actions or of sequences.
        advantages: Â, unitless, in the same shape (a sequence's advantage is repeated for token ratios).
        clip_range: ε in (0, 1).
        clip_range_high: ε' > 0, the upper bound's own; None: ε. Above ε ("clip higher") it lets unlikely actions
            that turned out well grow further before their gradient stops.
    """
    clipped = ratio.clamp(1 - clip_range, 1 + (clip_range if clip_range_high is None else clip_range_high))
    return (ratio * advantages).minimum(clipped * advantages)


def clip_fraction(
    ratio: Float[Tensor, "*batch"],
    clip_range: float,
    mask: Bool[Tensor, "*batch"],
    clip_range_high: float | None = None,
    count: Int[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Share of the ratios outside [1 - ε, 1 + ε'], among those where `mask` is True; ε' = ε where None.

    Counts both sides whatever the advantage's sign, so it bounds from above the share without gradient. `count` is as
    in `masked_mean`.
    """
    high = clip_range if clip_range_high is None else clip_range_high
    outside = (ratio - 1 > high) | (1 - ratio > clip_range)
    return masked_mean(outside.to(ratio.dtype), mask, count)


def masked_mean(
    values: Float[Tensor, "*batch"], mask: Bool[Tensor, "*batch"], count: Int[Tensor, ""] | None = None
) -> Float[Tensor, ""]:
    """Mean over the entries where `mask` is True, each counted once whatever its row; 0 if there are none.

    Args:
        values: of any shape.
        mask: True on the entries to count.
        count: entries of the whole batch, where these are a part of it: the parts' results sum to its mean.
    """
    return values.masked_fill(~mask, 0).sum() / (mask.sum() if count is None else count).clamp(min=1)


def value_loss(
    values: Float[Tensor, "*batch"],
    targets: Float[Tensor, "*batch"],
    mask: Bool[Tensor, "*batch"],
    count: Int[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error of the value network over real steps; to be *minimised* (Eq. 6).

    Args:
        values: V(sₕ), in environment reward units.
        targets: Âₕ + V_old(sₕ), in the same units; taken as constants.
        mask: True on the steps to count.
        count: steps of the whole batch, where these are a part of it, as in `masked_mean`.
    """
    return masked_mean((values - targets.detach()).square(), mask, count)


def entropy_dual(
    coef: Float[Tensor, ""], entropy: Float[Tensor, ""], target: float | Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """κ(H - ρ): what the dual variable of the entropy constraint H ≥ ρ *minimises* (Sec. 3.2).

    Its gradient in κ is H - ρ: descending it, κ grows while the policy is less random than asked for, and
    falls otherwise. The policy for its part maximises κH with κ held constant; that term is not in here.

    Args:
        coef: κ ≥ 0; pass the `exp` of a logarithm being optimised, as ODT does, and it stays positive.
        entropy: H, in nats, summed over action dimensions, averaged over steps; taken as a constant.
        target: ρ, in nats, summed over action dimensions.
    """
    return coef * (entropy.detach() - target)
