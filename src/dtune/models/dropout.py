"""Dropout whose random numbers cost little.

On a CPU PyTorch draws a number of its generator for every element, one after the other: a fifth of a pretraining step,
and more where products are fast. Here four elements share the 64 bits of one draw.
"""

from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

_LEVELS = 2**16
"""Values of the bits that an element is given."""


def dropout(x: Float[Tensor, "*shape"], probability: float) -> Float[Tensor, "*shape"]:
    """x m / (1 - p), m ~ Bernoulli(1 - p) for each element, drawn from the global generator of x's device.

    Args:
        x: what is dropped from.
        probability: p, in [0, 1); on a CPU rounded to a multiple of 2⁻¹⁶.
    """
    if x.device.type != "cpu":
        return nn.functional.dropout(x, probability)
    dropped = min(round(probability * _LEVELS), _LEVELS - 1)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = draws.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - _LEVELS // 2
    return x * kept.to(x.dtype).mul_(_LEVELS / (_LEVELS - dropped))


@final
class Dropout(nn.Module):
    """`dropout` in training mode, nothing otherwise."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """See `dropout`."""
        return dropout(x, self.p) if self.training and self.p else x


def attention(
    query: Float[Tensor, "batch heads asking part"],
    key: Float[Tensor, "batch heads tokens part"],
    value: Float[Tensor, "batch heads tokens part"],
    visible: Bool[Tensor, "batch 1 asking tokens"] | None,
    *,
    causal: bool,
    drop: float,
) -> Float[Tensor, "batch heads asking part"]:
    """dropout(softmax(Q Kᵀ / √d)) V over the tokens `visible` to each that asks.

    Args:
        query: Q.
        key: K.
        value: V.
        visible: what each sees; None: all, or if `causal` itself and all before it.
        causal: see there; only without `visible`.
        drop: the probability of dropping a weight.
    """
    if not drop or query.device.type != "cpu":
        return scaled_dot_product_attention(query, key, value, visible, drop, is_causal=causal)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if causal:
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if visible is not None:
        scores = scores + torch.zeros(visible.shape).masked_fill_(~visible, -torch.inf)
    return dropout(scores.softmax(-1), drop) @ value
