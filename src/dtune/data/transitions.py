"""What a critic learns from: windows of recorded episodes, and the same windows one step later."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from dtune.data.datasets import ACTION_LIMIT, Dataset
from dtune.data.steps import Steps


@dataclass(frozen=True)
class Transitions:
    """Windows of steps, and what a policy sees one step after each of them. Padding is masked, on either side.

    steps       [s₃ a₃] [s₄ a₄] [s₅ a₅]
    following   [s₄ a₄] [s₅ a₅] [s₆ a₆]     behind an episode's last step there is none: masked
    """

    steps: Steps
    following: Steps
    history: int  # the first steps of both are context only
    terminated: Bool[Tensor, "batch own"]  # the task ended with this step; of those behind the context
    known: Bool[Tensor, "batch own"]  # real, and its successor was recorded or never existed: it has a target

    @property
    def own(self) -> Steps:
        """The steps to learn from."""
        return self.steps.slice_time(self.history)


def sample_transitions(
    dataset: Dataset,
    returns_to_go: Float32[Tensor, "steps"],
    count: int,
    length: int,
    generator: torch.Generator,
    *,
    history: int = 0,
) -> Transitions:
    """Draws windows that begin anywhere in any episode, every step being as likely as any other.

    The last step of an episode that the clock cut has no successor in the data: it is not `known`.

    Args:
        dataset: the episodes.
        returns_to_go: what the policy is to be conditioned on at each step of them, in environment units:
            `dataset.returns_to_go()` is hindsight, `asked_returns_to_go` what it is asked for when it acts.
        count: windows.
        length: steps of a window from its beginning on; those behind the end of the episode are padding.
        generator: draws the beginnings.
        history: steps before the beginning that come along as context; before the episode's first, padding.

    Returns:
        Windows of `history + length` steps. `log_probs` are zeros.
    """
    row = torch.randint(dataset.steps, (count,), generator=generator)
    episode = torch.searchsorted(dataset.starts, row, right=True) - 1
    start, left = dataset.starts[episode][:, None], dataset.lengths[episode][:, None]
    step = row[:, None] - start + torch.arange(-history, length + 1)
    inside = (step >= 0) & (step < left)
    step = step.where(inside, 0)
    index = start + step

    def gather(rows: Tensor) -> Tensor:
        taken = rows[index]
        return taken.masked_fill(~inside.view(*inside.shape, *[1] * (taken.ndim - 2)), 0)

    actions = gather(dataset.actions)
    whole = Steps(
        observations=gather(dataset.observations),
        raw_actions=actions.clamp(-ACTION_LIMIT, ACTION_LIMIT).atanh(),
        actions=actions,
        rewards=gather(dataset.rewards),
        returns_to_go=gather(returns_to_go),
        log_probs=torch.zeros(inside.shape),
        timesteps=step,
        mask=inside,
    )
    terminated = gather(dataset.terminated)[:, history:-1]
    return Transitions(
        steps=whole.slice_time(0, -1),
        following=whole.slice_time(1),
        history=history,
        terminated=terminated,
        known=inside[:, history:-1] & (inside[:, history + 1 :] | terminated),
    )


def asked_returns_to_go(dataset: Dataset, return_to_go: float) -> Float32[Tensor, "steps"]:
    """What is left of `return_to_go` at each step: g₀ - Σ of the rewards before it, in environment units.

    That is what a decision transformer, asked for g₀ at the beginning, is conditioned on there.
    """
    surplus = return_to_go - dataset.returns
    return (dataset.returns_to_go().double() + surplus.repeat_interleave(dataset.lengths)).float()
