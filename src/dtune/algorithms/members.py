"""Members of groups: remembered with their advantages, and learned from."""

from collections.abc import Iterator
from operator import itemgetter

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dtune import parallel
from dtune.algorithms.update import ClippedUpdate, Part
from dtune.data.buffers import SharedFifo
from dtune.data.steps import Steps


def own_members(groups: int, group_size: int) -> slice:
    """Which of the members of `groups` groups are this rank's: those of whole groups."""
    own = parallel.share(groups)
    return slice(own.start * group_size, own.stop * group_size)


def remember(
    buffer: SharedFifo,
    members: Steps,
    advantages: Float[Tensor, "groups group"],
    keep: Bool[Tensor, "groups group"],
    iteration: int,
) -> float:
    """Stores the members to `keep`; the oldest fall out.

    Args:
        buffer: where.
        members: what this rank's own did, a row each, group by group.
        advantages: of all ranks' members, unitless.
        keep: False for members within the margin of their group's mean, or not vouched for.
        iteration: the present one, from 0.

    Returns:
        Share of members dropped.
    """
    groups, group_size = keep.shape
    own, chosen = own_members(groups, group_size), keep.flatten()
    kept = chosen[own].nonzero().squeeze(1)
    rows = {name: value[kept] for name, value in vars(members).items()}
    rows |= {"advantages": advantages.flatten()[own][kept].float(), "iteration": torch.full((len(kept),), iteration)}
    buffer.extend(rows, parallel.owners(groups).repeat_interleave(group_size)[chosen])
    return 1 - int(chosen.sum()) / keep.numel()


def optimise(
    buffer: SharedFifo, update: ClippedUpdate, *, passes: int, batch_size: int, iteration: int,
    generator: torch.Generator,
) -> Iterator[dict[str, float]]:  # fmt: skip
    """Passes over the remembered members in random order, maximising Eq. 3.

    A batch is drawn of all ranks' members; each rank computes its own of them, and they sum the gradients. The
    reference is asked about each member once.

    Args:
        buffer: filled by `remember`.
        update: of the policy.
        passes: times each member is used.
        batch_size: members a gradient step, at most: the steps of a pass have as many as each other, give or take one.
        iteration: the present one: the ratios of its members are watched at the first step, where they ought to be 1.
        generator: draws the order, and noise for entropies.

    Yields:
        What happened in each gradient step, by metric key.
    """
    if not len(buffer):
        return
    rows, unchanged = buffer.rows, True
    advantages, born = rows.pop("advantages"), rows.pop("iteration")
    members = Steps(**rows)
    reference = update.refer(members)
    for _ in range(passes):
        for index in torch.randperm(len(buffer), generator=generator).tensor_split(-(-len(buffer) // batch_size)):
            places, own = buffer.find(index)
            fresh = born[places] == iteration if unchanged else None
            batch, part = members.map(itemgetter(places)), Part(own, len(index))
            yield update.step(batch, advantages[places], generator, fresh, part, reference[places])
            unchanged = False
