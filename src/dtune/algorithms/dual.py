"""The entropy constraint of Sec. 3.2 and the dual variable that enforces it."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dtune.functional.objectives import entropy_dual


class EntropyDual:
    """The dual variable κ of the constraint H(π) ≥ ρ: it grows while the entropy is below its bound.

    min over κ ≥ 0 of κ (H - ρ), by Adam on log κ.
    """

    def __init__(self, initial: float, target: float, learning_rate: float):
        self.target = target
        self.log_coef = torch.tensor(float(initial)).log().requires_grad_()
        self.optimizer = torch.optim.Adam([self.log_coef], lr=learning_rate, fused=True)

    @property
    def coef(self) -> float:
        """κ."""
        return self.log_coef.exp().item()

    def step(self, entropy: Float[Tensor, ""]) -> None:
        """One step for the entropy now measured, in nats."""
        self.optimizer.zero_grad()
        entropy_dual(self.log_coef.exp(), entropy.detach(), self.target).backward()
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """κ and its optimizer."""
        return {"log_coef": self.log_coef.detach(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.log_coef.data.copy_(state["log_coef"])
        self.optimizer.load_state_dict(state["optimizer"])
