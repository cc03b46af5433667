"""Returns and advantages: pure functions of rewards and values.

Shapes: `batch` trajectories or groups, `time` steps, `group` members of one group. A step is real where its
`mask` is True; whatever stands in padding, NaN included, never reaches a result.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

AdvantageScale = Literal["group", "batch", "none"]
Baseline = Literal["mean", "leave_one_out"]

EQUAL_RETURNS = 1e-6
"""A group whose standard deviation is at most this share of its largest |return| is a group of equal returns:
dividing by it would blow rounding, or a simulator's last digits, up to advantages of one."""


def returns_to_go(
    rewards: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"] | None = None
) -> Float[Tensor, "batch time"]:
    """Sums the rewards from each step to the end (Sec. 2): gₕ = Σ_{h' ≥ h} r_{h'}, without discount.

    This is *hindsight*: what the trajectory earned, not what the policy was asked for. Training an
    importance-weighted objective on it is the mistake of Sec. 3.1; only the supervised methods call this.

    Args:
        rewards: in environment units.
        mask: True on steps that happened; None where all of them did.

    Returns:
        In environment units and in the type of `rewards` (summed in float64); 0 on padding.
    """
    if mask is None:
        mask = torch.ones_like(rewards, dtype=torch.bool)
    earned = rewards.double().masked_fill(~mask, 0)
    return earned.flip(-1).cumsum(-1).flip(-1).masked_fill(~mask, 0).to(rewards.dtype)


def discounted_return(
    rewards: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    gamma: float,
) -> Float64[Tensor, "batch"]:
    """Sums rewards discounted from the first column: R = Σⱼ γʲ rⱼ (Sec. 3.2).

    A sub-trajectory and its lookahead are one row: the discount runs on across the border between them.

    Args:
        rewards: in environment units.
        mask: True on steps that happened; False after a row's episode ended.
        gamma: discount factor in [0, 1].

    Returns:
        In environment units, in float64: members of a group are compared by the difference of such sums.
    """
    discounts = gamma ** torch.arange(rewards.shape[-1], dtype=torch.float64, device=rewards.device)
    return (rewards.double().masked_fill(~mask, 0) * discounts).sum(-1)


def group_advantages(
    returns: Float[Tensor, "batch group"],
    eps: float = 1e-8,
    valid: Bool[Tensor, "batch group"] | None = None,
    *,
    scale: AdvantageScale = "group",
    baseline: Baseline = "mean",
) -> Float[Tensor, "batch group"]:
    """Standardises returns within each group (Eq. 2): Âᵢ = (Rᵢ - mean(R)) / std(R).

    Args:
        returns: one return for each member of each group, in environment reward units.
        eps: added to the standard deviation.
        scale: divide by the deviation of the member's own group, as Eq. 2 does, or by that of all groups together,
            pooled: then a group in which more is at stake counts for more. "none" divides by nothing (as Dr. GRPO
            does) and leaves reward units.
        baseline: "mean" of all members, as in Eq. 2, or the mean of the *others*, for which the gradient is unbiased
            (RLOO): Rᵢ - mean(R₋ᵢ) = n/(n-1) · (Rᵢ - mean(R)), for n valid members.
        valid: False on members to leave out (a simulator that failed, say): they count in neither the mean
            nor the standard deviation, may be NaN, and get advantage 0. None where all members count.

    Returns:
        Advantages, unitless (but for "none"), of mean 0 in every group. The standard deviation is the unbiased one.
        They are exactly 0 in groups of equal returns (see `EQUAL_RETURNS`) and of fewer than two valid members.

    Raises:
        ValueError: if groups have fewer than two members, which leaves no baseline.
    """
    if returns.shape[-1] < 2:
        raise ValueError(f"a group needs at least 2 members to form a baseline, got {returns.shape[-1]}")
    valid = torch.ones_like(returns, dtype=torch.bool) if valid is None else valid
    centred, std, equal = _centre(returns, valid)
    advantages = centred
    if scale == "group":
        advantages = centred / (std + eps)
    elif scale == "batch":
        pooled = (centred.square().sum() / (valid.sum(-1) - 1).clamp(min=0).sum().clamp(min=1)).sqrt()
        advantages = centred / (pooled + eps)
    if baseline == "leave_one_out":
        members = valid.sum(-1, keepdim=True)
        advantages = advantages * members / (members - 1).clamp(min=1)
    return advantages.masked_fill(equal, 0)


def outside_margin(
    returns: Float[Tensor, "batch group"],
    margin: float,
    valid: Bool[Tensor, "batch group"] | None = None,
) -> Bool[Tensor, "batch group"]:
    """Marks the members to learn from: |Rᵢ - mean(R)| > Δ_r (App. B.1).

    Args:
        returns: one return for each member of each group, in environment reward units.
        margin: Δ_r, in the units of `returns`. Strict: 0 drops the members that equal their group's mean,
            as all do in a group of equal returns (see `EQUAL_RETURNS`); a negative one drops nobody.
        valid: False on members to leave out: they do not count in the mean and are never marked.
    """
    valid = torch.ones_like(returns, dtype=torch.bool) if valid is None else valid
    centred, _, equal = _centre(returns, valid)
    # What rounding can put between a mean and its members: three times 0.1 has mean 0.10000000000000002.
    rounding = torch.finfo(returns.dtype).eps * returns.shape[-1] * returns.masked_fill(~valid, 0).abs()
    outside = centred.masked_fill(equal, 0).abs() > margin + rounding.amax(-1, keepdim=True)
    return outside & valid


def _centre(
    returns: Float[Tensor, "batch group"], valid: Bool[Tensor, "batch group"]
) -> tuple[Float[Tensor, "batch group"], Float[Tensor, "batch 1"], Bool[Tensor, "batch 1"]]:
    """Rᵢ - mean(R) over valid members, 0 on the others; their standard deviation; whether all are equal."""
    counted, count = returns.masked_fill(~valid, 0), valid.sum(-1, keepdim=True)
    centred = (counted - counted.sum(-1, keepdim=True) / count.clamp(min=1)).masked_fill(~valid, 0)
    # a group of one has no spread: 0 / 1 rather than 0 / 0
    std = (centred.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return centred, std, std <= EQUAL_RETURNS * counted.abs().amax(-1, keepdim=True)


def generalized_advantages(
    rewards: Float[Tensor, "batch time"],
    values: Float[Tensor, "batch time"],
    bootstrap: Float[Tensor, "batch"],
    mask: Bool[Tensor, "batch time"],
    gamma: float,
    gae_lambda: float,
) -> Float[Tensor, "batch time"]:
    """Generalised advantage estimation (Eq. 4): Âₕ = Σₗ (γλ)ˡ δₕ₊ₗ with δₕ = rₕ + γV(sₕ₊₁) - V(sₕ).

    Computed backwards, Âₕ = δₕ + γλÂₕ₊₁, in a loop over time for all rows at once. The value target of Eq. 6
    is `advantages + values`.

    Args:
        rewards: in environment units.
        values: V(sₕ) at every step, in the units of `rewards`; taken as constants (no gradient flows).
        bootstrap: V of the observation after each row's last real step: 0 where the episode terminated,
            V(final observation) where a time limit or the end of the recording cut it.
        mask: True on a row's real steps, which are consecutive; padding may stand before and after them.
        gamma: discount factor in [0, 1].
        gae_lambda: λ in [0, 1]; 0 trusts V (one step), 1 trusts the rewards (Monte Carlo).

    Returns:
        In the units of `rewards`; 0 on padding. Not normalised (App. B.2 does so over a batch).
    """
    values, following = values.detach(), bootstrap.detach()
    advantage = torch.zeros_like(following)
    advantages = torch.zeros_like(values)
    for h in reversed(range(rewards.shape[-1])):
        real = mask[:, h]
        delta = rewards[:, h] + gamma * following - values[:, h]
        advantage = torch.where(real, delta + gamma * gae_lambda * advantage, 0)
        following = torch.where(real, values[:, h], following)
        advantages[:, h] = advantage
    return advantages
