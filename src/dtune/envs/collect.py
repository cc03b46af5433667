"""Full episodes: walked to their ends, and shared by all ranks."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dtune import parallel
from dtune.envs.episodes import Episodes
from dtune.envs.rollout import Rollout
from dtune.envs.simulator import Simulator
from dtune.functional.sampling import independent_noise, part_of_noise
from dtune.models.distributions import TanhNormal
from dtune.models.policy import Policy


def collect_episodes(
    policy: Policy,
    simulator: Simulator,
    count: int,
    return_to_go: float,
    generator: torch.Generator,
    *,
    sample: bool = True,
    act: Callable[[TanhNormal, Tensor], Tensor] = TanhNormal.sample_raw,
    snapshots: bool = False,
    log_probs: bool = True,
) -> tuple[Episodes, Episodes]:
    """Walks `count` fresh episodes to their ends; several ranks share them, and all have all of them afterwards.

    Args:
        policy: who acts.
        simulator: where; every episode ends at its horizon at the latest.
        count: how many, all at once.
        return_to_go: return asked for at the start, g_online, in environment reward units.
        generator: draws the starts, then the exploration noise.
        sample: draw actions from the policy; otherwise take its mode, as evaluations do.
        act: how they are drawn, see `Rollout.advance`.
        snapshots: keep what is needed to go back to any step.
        log_probs: keep what importance ratios need, see `Rollout.advance`.

    Returns:
        The sound episodes, and the faulty ones: of those, believe nothing but their lengths.
    """
    own = parallel.share(count)
    rollout = Rollout.begin(policy, simulator, count, return_to_go, generator, own)
    steps = rollout.advance(
        simulator.horizon,
        generator=generator if sample else None,
        draw=partial(part_of_noise, draw=independent_noise, walks=count, own=own),
        act=act,
        snapshots=snapshots,
        log_probs=log_probs,
    )
    recorded = rollout.snapshots if snapshots else torch.zeros(len(steps.mask), simulator.horizon, 0).double()
    episodes = Episodes(steps, recorded, rollout.final_observations, rollout.terminated)
    rows = parallel.gather_rows({**episodes.rows(), "faulty": rollout.faulty}, parallel.counts(count))
    episodes, broken = Episodes.from_rows(rows), rows["faulty"]
    sound, faulty = ((broken == fault).nonzero().squeeze(1) for fault in (False, True))
    return (episodes.take(sound) if len(faulty) else episodes), episodes.take(faulty)
