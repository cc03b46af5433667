"""A policy of four numbers whose every derivative can be written down, and steps to move it by."""

import math
from dataclasses import replace

import torch
from learners import seeded
from torch import nn

from dtune.algorithms.update import UpdateConfig
from dtune.data.steps import Steps
from dtune.models.distributions import TanhNormal


class Constant(nn.Module):
    """The same Gaussian whatever it sees."""

    context_length, action_dim = 1, 2

    def __init__(self, mean: float = 0.0, std: float = 1.0):
        super().__init__()
        self.mean = nn.Parameter(torch.full((2,), mean))
        self.log_std = nn.Parameter(torch.full((2,), math.log(std)))

    def forward(self, context: Steps) -> TanhNormal:
        shape = (*context.mask.shape, 2)
        return TanhNormal(self.mean.expand(shape), self.log_std.exp().expand(shape))

    def next_return_to_go(self, returns_to_go: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
        return returns_to_go - rewards


def config(**changes) -> UpdateConfig:
    """Of plain AdamW, with entropy and leash as good as off."""
    plain = UpdateConfig(
        optimizer="adamw", learning_rate=1e-2, weight_decay=0.0, kl_coef=0.0, entropy_coef=1e-12, grad_norm_clip=1e9
    )
    return replace(plain, **changes)


def acted(policy, rows: int = 8, time: int = 3, history: int = 0, seed: int = 0) -> Steps:
    """Steps some policy took: `history` of them for context, `time` to learn from."""
    generator, total = seeded(seed), history + time
    raw = torch.randn(rows, total, 2, generator=generator)
    flat = torch.zeros(rows, total)
    steps = Steps(
        observations=torch.randn(rows, total, 2, generator=generator),
        raw_actions=raw,
        actions=raw.tanh(),
        rewards=flat,
        returns_to_go=torch.randn(rows, total, generator=generator),
        log_probs=flat,
        timesteps=torch.arange(total).expand(rows, -1),
        mask=flat == 0,
    )
    with torch.no_grad():
        likelihoods = policy(steps.windows(history + 1))[:, -1].base_log_prob(raw[:, history:].flatten(0, 1))
    return replace(steps, log_probs=torch.cat([flat[:, :history], likelihoods.view(rows, time)], 1))


def hide(steps: Steps, after: list[int]) -> Steps:
    """Masks each row from some step on."""
    return replace(steps, mask=steps.timesteps < torch.tensor(after)[:, None])
