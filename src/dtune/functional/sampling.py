"""Where to look next, and with which noise: sampling distributions over steps, trajectories and exploration."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def reset_point_distribution(
    variance: Float[Tensor, "batch time action"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """Prefers the steps where the policy is least certain (Sec. 3.2): pₕ ∝ exp(σₕ²), σₕ² = meanᵢ σ²ₕᵢ.

    There is no temperature, as in the paper. With σ near 0.2 the distribution is nearly uniform; a step with
    one dimension at the upper bound of σ outweighs all others.

    Args:
        variance: variance of each action dimension under the policy, before squashing.
        mask: True on steps one may reset to.

    Returns:
        Probabilities that sum to 1 over the allowed steps of each row and are 0 on the others.

    Raises:
        ValueError: if a row allows no step at all.
    """
    empty = (~mask.any(-1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"rows {empty} have no step to reset to: leave out trajectories without allowed steps")
    return variance.mean(-1).masked_fill(~mask, float("-inf")).softmax(-1)


def draw_steps(
    probabilities: Float[Tensor, "batch time"], count: int, generator: torch.Generator
) -> Int64[Tensor, "batch count"]:
    """Draws `count` steps of each row, without replacement where the row has that many to offer.

    A row with fewer than `count` steps of non-zero probability is drawn from with replacement: a short
    trajectory still gives its share of reset points.

    Args:
        probabilities: of each step, non-negative; rows need not sum to 1.
        count: steps to draw a row, at least 1.
        generator: of the run; its device does the drawing, the result is on that of `probabilities`.

    Raises:
        ValueError: if a row is all zeros, negative or not finite somewhere.
    """
    weights = probabilities.to(generator.device, torch.float64)
    bad = ~((weights >= 0) & weights.isfinite()).all(-1) | (weights.sum(-1) == 0)
    if bad.any():
        rows = bad.nonzero().flatten().tolist()
        raise ValueError(f"probabilities of rows {rows} must be finite, non-negative and not all 0")
    drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
    enough = (weights > 0).sum(-1) >= count
    if enough.any():
        drawn[enough] = torch.multinomial(weights[enough], count, replacement=False, generator=generator)
    return drawn.to(probabilities.device)


def independent_noise(shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "*shape"]:
    """Standard normal exploration noise, `[walks, steps, action]`."""
    return torch.randn(shape, generator=generator)


def mirrored_noise(shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "*shape"]:
    """Standard normal noise in pairs of opposite sign: ε₂ᵢ₊₁ = -ε₂ᵢ, walk by walk.

    Each walk for itself is as random as before. Among a pair whatever of the return is even in the noise cancels in
    the gradient of the mean (antithetic sampling).

    Raises:
        ValueError: if the number of walks is odd.
    """
    if shape[0] % 2:
        raise ValueError(f"mirrored noise comes in pairs, so the number of walks must be even, got {shape[0]}")
    half = torch.randn((shape[0] // 2, *shape[1:]), generator=generator)
    return torch.stack((half, -half), 1).flatten(0, 1)


def shared_noise(
    shape: tuple[int, ...], generator: torch.Generator, *, group_size: int, scale: float = 1.0
) -> Float[Tensor, "*shape"]:
    """Normal noise of deviation `scale`, the same for each `group_size` walks in succession (common random numbers).

    Members of a group that meet the same chances differ only by what they did before; with chances of their own,
    those would drown it.

    Raises:
        ValueError: if the walks are not whole groups.
    """
    groups, rest = divmod(shape[0], group_size)
    if rest:
        raise ValueError(f"{shape[0]} walks are not whole groups of {group_size}")
    return scale * torch.randn((groups, *shape[1:]), generator=generator).repeat_interleave(group_size, 0)


def part_of_noise(
    shape: tuple[int, ...],
    generator: torch.Generator,
    *,
    draw: Callable[[tuple[int, ...], torch.Generator], Tensor],
    walks: int,
    own: slice,
) -> Float[Tensor, "*shape"]:
    """The noise of some of `walks` walks: all of it is drawn, so that nobody's depends on who else walks where.

    Args:
        shape: of their noise, `[walks, steps, action]`.
        generator: does the drawing.
        draw: gives the noise of all walks, as above.
        walks: how many there are.
        own: those to give it for.
    """
    return draw((walks, *shape[1:]), generator)[own]
