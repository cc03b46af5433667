"""Learning of values from transitions: TD3's and IQL's targets and losses, pure functions of tensors.

All losses here are to be *minimised*. Rewards and values are in one unit, whichever the caller chose. `terminated` is
the task's own end: a time limit is not one, unless the caller says so.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def smoothed_actions(
    actions: Float[Tensor, "*batch action"],
    noise: Float[Tensor, "*batch action"],
    *,
    std: float = 0.2,
    limit: float = 0.5,
) -> Float[Tensor, "*batch action"]:
    """Target policy smoothing (Fujimoto et al., 2018): clip(a + clip(σε, ±c), ±1).

    Args:
        actions: of the target policy, in [-1, 1].
        noise: standard normal, ε.
        std: σ.
        limit: c, where the noise is cut off.
    """
    return (actions + (std * noise).clamp(-limit, limit)).clamp(-1, 1)


def td_target(
    rewards: Float[Tensor, "*batch"],
    terminated: Bool[Tensor, "*batch"],
    next_values: Float[Tensor, "*batch"],
    gamma: float,
) -> Float[Tensor, "*batch"]:
    """y = r + γ (1 - terminated) V(s'); for TD3, V(s') is the smaller of the two target critics at the smoothed action.

    Returns:
        Targets, constants for the gradient. Where the task has ended, `next_values` may be anything, NaN too.
    """
    return rewards + gamma * next_values.detach().masked_fill(terminated, 0)


def twin_loss(
    values: Float[Tensor, "2 *batch"], targets: Float[Tensor, "*batch"], mask: Bool[Tensor, "*batch"]
) -> Float[Tensor, ""]:
    """Σⱼ mean (Qⱼ - y)², the mean over the entries where `mask` is True; 0 if there are none."""
    errors = (values - targets.detach()).square().sum(0)
    return errors.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)


def expectile_loss(errors: Float[Tensor, "*batch"], expectile: float) -> Float[Tensor, "*batch"]:
    """|τ - 1[u < 0]| u², elementwise: its minimum over v of u = x - v is the τ-expectile of x (IQL's Eq. 5).

    Args:
        errors: u, what was seen minus what is predicted.
        expectile: τ in (0, 1); 0.5 gives half the squared error, and near 1 the largest x.
    """
    return torch.where(errors < 0, 1 - expectile, expectile) * errors.square()


def advantage_weights(
    advantages: Float[Tensor, "*batch"], inverse_temperature: float, limit: float = 100.0
) -> Float[Tensor, "*batch"]:
    """min(exp(β A), limit): how much a recorded action counts (advantage-weighted regression, IQL's Eq. 7).

    Args:
        advantages: A = Q(s, a) - V(s), constants for the gradient.
        inverse_temperature: β ≥ 0; 0 imitates all actions alike.
        limit: largest weight.
    """
    return (inverse_temperature * advantages.detach()).clamp(max=torch.tensor(limit).log().item()).exp()


@torch.no_grad()
def soft_update(target: list[Tensor], source: list[Tensor], polyak: float) -> None:
    """θ' ← (1 - τ) θ' + τ θ, tensor by tensor, in place.

    Args:
        target: tensors moved, θ'.
        source: tensors followed, θ, in the same order.
        polyak: τ in [0, 1]; 1 copies.
    """
    for tensor, followed in zip(target, source, strict=True):
        tensor.lerp_(followed, polyak)
