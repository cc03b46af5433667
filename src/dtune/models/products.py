"""Products with weight matrices on a CPU, by the faster of two libraries.

PyTorch sends float32 products to its BLAS. Where that is Intel's MKL on another maker's processor, oneDNN, which comes
with PyTorch as well, is faster; it also keeps weights packed and applies the activation on the way out. Below some size
its calls cost more than they save. Which of them is used depends on the weight alone, never on how many rows it is
multiplied with: a row's result is the same, to the last bit, in any company of at least 16 rows.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Activation = Literal["silu", "relu", "gelu", "gelu_tanh"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
}
_FUSED = {None: ("none", ""), "silu": ("swish", ""), "relu": ("relu", ""), "gelu": ("gelu", "none"),
          "gelu_tanh": ("gelu", "tanh")}  # fmt: skip
"""What oneDNN calls them."""
assert {*get_args(Activation), None} == {*_FUSED}

LARGE = 2**15
"""Numbers in a weight from which on oneDNN is worth its calls."""

_onednn: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_pack: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
_bfloat16: Callable[[], bool] | None = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)


def linear(x: Float[Tensor, "... of"], weight: Float[Tensor, "to of"], bias: Float[Tensor, "to"]) -> Tensor:
    """x Wᵀ + b, differentiable once."""
    if _suits_onednn(x, weight) and x.numel() and not torch.is_autocast_enabled(x.device.type):
        return _Linear.apply(x, weight, bias)
    return functional.linear(x, weight, bias)


def packed(
    weight: Float[Tensor, "to of"],
    bias: Float[Tensor, "to"],
    dtype: torch.dtype = torch.float32,
    activation: Activation | None = None,
) -> Callable[[Float[Tensor, "rows of"]], Float[Tensor, "rows to"]]:
    """x ↦ activation(x Wᵀ + b), without gradients, for a weight that does not change while the function is used.

    Args:
        weight: W.
        bias: b.
        dtype: that of the factors, to which `x` is rounded if need be, and of the result. Sums are in float32.
        activation: None for none.
    """
    weight, bias = weight.detach().to(dtype), bias.detach().to(dtype)
    if _suits_onednn(weight, weight) and _pack is not None and _onednn is not None:
        name, algorithm = _FUSED[activation]
        options: tuple[Any, ...] = (_pack(weight, 512), bias, name, [], algorithm)
        multiply = _onednn
        return _rounding(lambda x: multiply(x, *options), dtype)
    transposed = weight.t()
    if activation is None:
        return _rounding(lambda x: torch.addmm(bias, x, transposed), dtype)
    activate = ACTIVATIONS[activation]
    return _rounding(lambda x: activate(torch.addmm(bias, x, transposed)), dtype)


def _rounding(multiply: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """`multiply`, and before it the rounding of a float32 factor, where there is any to do."""
    return multiply if dtype == torch.float32 else lambda x: multiply(x.to(dtype))


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is there for such factors, and faster than what PyTorch would call."""
    return (
        _onednn is not None
        and bool(torch.backends.mkldnn.enabled)
        and weight.numel() >= LARGE
        and x.device.type == "cpu"
        and x.dtype == weight.dtype
        and (x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and _bfloat16 is not None and _bfloat16()))
    )


class _Linear(torch.autograd.Function):
    """x Wᵀ + b, and its gradients, by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rows = x.flatten(0, -2).contiguous()  # where rows lie apart, oneDNN is many times slower
        ctx.save_for_backward(rows, weight)
        return _product(rows, weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wanted, grad = ctx.needs_input_grad, grads[0].flatten(0, -2).contiguous()
        return (
            _product(grad, weight.t()).view(*grads[0].shape[:-1], -1) if wanted[0] else None,
            _product(grad.t(), x.t()) if wanted[1] else None,
            grad.sum(0) if wanted[2] else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    assert _onednn is not None
    return _onednn(x, weight, bias, "none", [], "")
