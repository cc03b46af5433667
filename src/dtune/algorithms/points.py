"""Where on remembered episodes to look again (Algorithm 1, lines 3 to 5)."""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dtune import parallel
from dtune.envs.rollout import MAX_ROWS, Episodes
from dtune.functional.sampling import draw_steps, reset_point_distribution
from dtune.models.policy import TrainablePolicy, actor_of

Selection = Literal["active", "uniform", "start"]


def draw_points(
    policy: TrainablePolicy,
    episodes: Episodes,
    count: int,
    each: int,
    generator: torch.Generator,
    selection: Selection,
) -> tuple[Int64[Tensor, "count"], Int64[Tensor, "count each"]]:
    """Draws `count` episodes in proportion to their length, with replacement, and `each` steps on every one.

    Args:
        policy: whose variance is asked for; in evaluation mode.
        episodes: to draw from, at least one.
        count: draws of an episode.
        each: steps a draw, without replacement where as many may be drawn.
        generator: draws both.
        selection: "active" prefers steps at which the policy's variance is high (Sec. 3.2), "uniform" takes any,
            "start" the first alone.

    Returns:
        The episode of each draw, and its steps: rank 0's, because they follow from probabilities that were computed.
    """
    rows = torch.multinomial(episodes.lengths.float(), count, replacement=True, generator=generator)
    allowed = episodes.steps.mask.clone()
    variance = torch.zeros(*allowed.shape, policy.action_dim)
    if selection == "active":
        variance = _variance(policy, episodes, rows)
    elif selection == "start":
        allowed[:, 1:] = False
    probabilities = reset_point_distribution(variance[rows], allowed[rows])
    return parallel.from_first(rows), parallel.from_first(draw_steps(probabilities, each, generator))


@torch.no_grad()
def _variance(policy: TrainablePolicy, episodes: Episodes, rows: Int64[Tensor, "drawn"]) -> Float[Tensor, "..."]:
    """The present policy's variance at every step of the drawn episodes, `[episodes, time, action]`; 0 elsewhere.

    Each rank asks about a part of the steps.
    """
    mask = episodes.steps.mask
    variance = torch.zeros(*mask.shape, policy.action_dim)
    drawn = torch.zeros(len(mask), dtype=torch.bool)
    drawn[rows] = True
    row, step = (mask & drawn[:, None]).nonzero(as_tuple=True)
    before = torch.arange(1 - policy.context_length, 1) + step[:, None]
    actor = actor_of(policy)
    for some in torch.arange(len(row)).split(MAX_ROWS)[parallel.rank() :: parallel.ranks()]:
        variance[row[some], step[some]] = actor(episodes.steps.gather(row[some], before[some])).std.square()
    return parallel.total(variance)  # of zeros, but for one rank's
