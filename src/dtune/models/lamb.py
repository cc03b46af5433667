"""LAMB as the online decision transformer used it."""

import math
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from dtune.errors import ConfigError

Tensors = list[Tensor] | tuple[Tensor, ...]  # what torch._foreach_* take and give


@final
class Lamb(Optimizer):
    """Adam whose step on each tensor is as long as the tensor's own norm, times the learning rate.

    You et al., 2019, "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", Algorithm 2.
    For a tensor w with gradient g at step t:

        m ← β₁m + (1 - β₁)g         v ← β₂v + (1 - β₂)g²
        u = (m / (1 - β₁ᵗ)) / (√(v / (1 - β₂ᵗ)) + ε) + λw
        w ← w - lr · (‖w‖ / ‖u‖) · u

    The variant is that of online-dt's copy (NVIDIA's and timm's are alike), hence: weight decay λ is added to
    the update, not to the gradient; the trust ratio ‖w‖ / ‖u‖ is 1 where either norm is 0, is not clipped,
    and is taken *only when λ ≠ 0*: without weight decay this is plain Adam. Biases and LayerNorms are decayed
    and scaled like any tensor, unless given a group of their own. Tensors without a gradient are skipped.

    One default differs: the original also clips the global gradient norm at 1.0 by itself. Here that is
    `max_grad_norm`, off by default: clipping at 0.5 before the step (0.25 in online-dt) makes it idle.
    A group counts the steps in which at least one of its tensors had a gradient; t is the group's.

    Args:
        params: tensors or groups of them, as for any PyTorch optimiser.
        lr: learning rate; with the trust ratio, the share of its norm that a tensor moves each step.
        betas: (β₁, β₂), decay of the running means of the gradient and of its square, in [0, 1).
        eps: ε, added to the root of the second moment.
        weight_decay: λ.
        max_grad_norm: rescale the gradients, all groups taken together, to at most this norm first. The
            gradients themselves are left as they are.

    Raises:
        ConfigError: if a number is outside its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = None,
    ):
        if not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"Lamb's betas are decay rates in [0, 1), got {betas}")
        if min(lr, eps, weight_decay) < 0:
            raise ConfigError(f"Lamb needs lr, eps and weight_decay of 0 or more, got {lr}, {eps} and {weight_decay}")
        if max_grad_norm is not None and max_grad_norm <= 0:
            raise ConfigError(f"Lamb's max_grad_norm must be above 0, got {max_grad_norm}; None turns it off")
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**settings, "max_grad_norm": max_grad_norm, "step": 0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step; returns what `closure`, which recomputes the gradients, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale = self._gradient_scale()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                grads = [p.grad for p in params]
                group["step"] += 1
                self._update(params, grads if scale == 1 else torch._foreach_mul(grads, scale), group)
        return loss

    def _gradient_scale(self) -> float:
        """What to multiply the gradients of all groups by, so that their norm is at most `max_grad_norm`."""
        limit = self.param_groups[0]["max_grad_norm"]  # in a group so that state_dict carries it
        if limit is None:
            return 1.0
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads).item()
        return limit / norm if norm > limit else 1.0

    def _update(self, params: list[Tensor], grads: Tensors, group: dict[str, Any]) -> None:
        """Moves `params` of one group; a handful of kernels whatever their number."""
        (beta1, beta2), step = group["betas"], group["step"]
        means = [self._moment(p, "mean") for p in params]
        squares = [self._moment(p, "square") for p in params]
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)

        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, math.sqrt(1 - beta2**step))
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(means, 1 - beta1**step)
        torch._foreach_div_(updates, roots)
        if group["weight_decay"] != 0:
            torch._foreach_add_(updates, params, alpha=group["weight_decay"])
            torch._foreach_mul_(updates, _trust_ratios(params, updates))
        torch._foreach_add_(params, updates, alpha=-group["lr"])

    def _moment(self, param: Tensor, name: str) -> Tensor:
        """A running mean of `param`'s gradients, zeros before its first step."""
        if name not in self.state[param]:
            self.state[param][name] = torch.zeros_like(param, memory_format=torch.preserve_format)
        return self.state[param][name]


def _trust_ratios(params: Tensors, updates: Tensors) -> tuple[Tensor, ...]:
    """‖w‖ / ‖u‖ of each tensor; 1 where either is 0, so that tensors initialised to 0 can leave it."""
    weight_norms = torch.stack(torch._foreach_norm(params))
    update_norms = torch.stack(torch._foreach_norm(updates))
    usable = (weight_norms > 0) & (update_norms > 0)
    return torch.where(usable, weight_norms / update_norms, 1).unbind()
