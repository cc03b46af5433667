"""What an exported policy computes: one action a window, of plain tensors."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dtune.data.steps import Steps
from dtune.models.policy import Policy, ReturnPredictor

INPUTS = ("observations", "returns_to_go", "actions", "timesteps", "mask")
"""Fields of `Steps` that an acting policy reads: the inputs of the exported network, in this order."""

OUTPUTS = ("action", "mean", "std", "return_to_go")
"""What it gives, at the last step of each window."""


class Portable(nn.Module):
    """A policy as a function of tensors, for those who act with it and do not train it.

    Args:
        policy: any `Policy` that is an `nn.Module`. A `ReturnPredictor` is asked first what to condition on.
    """

    def __init__(self, policy: Policy):
        super().__init__()
        self.policy = policy
        self._condition: Callable[[Steps], Steps] = _asked_for
        if isinstance(policy, ReturnPredictor):
            predict = policy.predict_return_to_go
            self._condition = lambda context: replace(
                context, returns_to_go=torch.cat([context.returns_to_go[:, :-1], predict(context)[:, -1:]], 1)
            )
        self.eval()

    def forward(
        self,
        observations: Float[Tensor, "batch time obs"],
        returns_to_go: Float[Tensor, "batch time"],
        actions: Float[Tensor, "batch time action"],
        timesteps: Int[Tensor, "batch time"],
        mask: Bool[Tensor, "batch time"],
    ) -> tuple[
        Float[Tensor, "batch action"],
        Float[Tensor, "batch action"],
        Float[Tensor, "batch action"],
        Float[Tensor, "batch"],
    ]:
        """The policy at the last step of each window, everything in environment units.

        Args:
            observations: of the last steps, the present one at the end.
            returns_to_go: what each of them was conditioned on; at the end what to ask for now.
            actions: taken at each of them; that of the last step is not known yet, and not read.
            timesteps: their positions in the episode, from 0.
            mask: False on padding, in front, before the episode began.

        Returns:
            The mean action tanh(μ), μ and σ before tanh, and the return-to-go that was conditioned on: the one given,
            or the policy's own prediction.
        """
        context = self._condition(
            Steps(
                observations=observations,
                raw_actions=actions,
                actions=actions,
                rewards=returns_to_go,
                returns_to_go=returns_to_go,
                log_probs=returns_to_go,
                timesteps=timesteps,
                mask=mask,
            )
        )
        now = self.policy(context)[:, -1]
        return now.mode, now.mean, now.std, context.returns_to_go[:, -1]


def _asked_for(context: Steps) -> Steps:
    return context
