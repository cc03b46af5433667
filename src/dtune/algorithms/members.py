"""Members of groups: remembered with their advantages, and learned from."""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dtune.algorithms.update import ClippedUpdate
from dtune.data.buffers import Fifo
from dtune.data.steps import Steps


def remember(
    buffer: Fifo,
    members: Steps,
    advantages: Float[Tensor, "groups group"],
    keep: Bool[Tensor, "groups group"],
    iteration: int,
) -> float:
    """Stores the members to `keep`; the oldest fall out.

    Args:
        buffer: where.
        members: what they did, a row each, group by group.
        advantages: of each, unitless.
        keep: False for members within the margin of their group's mean, or not vouched for.
        iteration: the present one, from 0.

    Returns:
        Share of members dropped.
    """
    kept = keep.flatten().nonzero().squeeze(1)
    rows = {name: value[kept] for name, value in vars(members).items()}
    buffer.extend(
        {**rows, "advantages": advantages.flatten()[kept].float(), "iteration": torch.full((len(kept),), iteration)}
    )
    return 1 - len(kept) / keep.numel()


def optimise(
    buffer: Fifo, update: ClippedUpdate, *, passes: int, batch_size: int, iteration: int, generator: torch.Generator
) -> Iterator[dict[str, float]]:
    """Passes over the remembered members in random order, maximising Eq. 3.

    Args:
        buffer: filled by `remember`.
        update: of the policy.
        passes: times each member is used.
        batch_size: members a gradient step.
        iteration: the present one: the ratios of its members are watched at the first step, where they ought to be 1.
        generator: draws the order, and noise for entropies.

    Yields:
        What happened in each gradient step, by metric key.
    """
    unchanged = True
    for _ in range(passes):
        order = torch.randperm(len(buffer), generator=generator)
        for index in order.split(batch_size) if len(order) else ():
            rows = buffer.take(index)
            advantages, born = rows.pop("advantages"), rows.pop("iteration")
            yield update.step(Steps(**rows), advantages, generator, born == iteration if unchanged else None)
            unchanged = False
