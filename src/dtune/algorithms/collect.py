"""Walks for methods that keep what was done and earned, not what was asked for."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from dtune.algorithms.metrics import Metrics
from dtune.data.datasets import Dataset, recorded
from dtune.envs.collect import collect_episodes
from dtune.envs.rollout import Episodes
from dtune.envs.simulator import Simulator
from dtune.errors import FaultsError
from dtune.models.distributions import TanhNormal
from dtune.models.policy import Policy

ROUNDS = 4
"""Rounds without a sound episode, one behind the other, that are one too many."""


def collect_sound(collect: Callable[[], tuple[Episodes, Episodes]], metrics: Metrics, *, remembered: int) -> Episodes:
    """Walks once, and again as long as there is no sound episode to learn from, neither new nor remembered.

    Args:
        collect: gives the sound and the faulty ones of some episodes.
        metrics: told of all that was walked.
        remembered: episodes there are already.

    Returns:
        The sound ones of the last round.

    Raises:
        FaultsError: if there are too many faults, or `ROUNDS` rounds in a row brought no sound episode.
    """
    for _ in range(ROUNDS):
        sound, faulty = collect()
        metrics.count_episodes(sound, faulty)
        if len(sound) or remembered:
            return sound
        metrics.refuse_faults()
    raise _none_sound()


def collect_dataset(
    policy: Policy,
    simulator: Simulator,
    metrics: Metrics,
    generator: torch.Generator,
    *,
    return_to_go: float,
    episodes: int = 1,
    min_steps: int = 0,
    act: Callable[[TanhNormal, Tensor], Tensor] = TanhNormal.sample_raw,
) -> Dataset:
    """Walks full episodes, and counts them.

    Args:
        policy: who acts, by sampling.
        simulator: where.
        metrics: told of all that was walked.
        generator: draws starts and exploration noise.
        return_to_go: return asked for at the start of each, in environment reward units.
        episodes: how many at least.
        min_steps: steps that their sound ones have at least, together. What is missing is walked in rounds, of as
            many episodes as would be needed if all were as long as the longest so far, doubling their number at most.
        act: how actions are drawn, see `Rollout.advance`.

    Returns:
        The sound episodes.

    Raises:
        FaultsError: if `ROUNDS` rounds in a row brought no sound episode.
    """
    parts: list[tuple[Episodes, Episodes]] = []
    count, vain = episodes, 0
    while count > 0:
        sound, faulty = collect_episodes(policy, simulator, count, return_to_go, generator, act=act, log_probs=False)
        parts.append((sound, faulty))
        together = [joined([part[which] for part in parts]) for which in (0, 1)]
        vain = 0 if len(sound) else vain + 1
        if vain and vain < ROUNDS:
            continue
        if vain:
            raise _none_sound()
        missing = min_steps - int(together[0].lengths.sum())
        needed = math.ceil(missing / int(together[0].lengths.max())) if missing > 0 else 0
        count = min(needed, len(together[0]))
    metrics.count_episodes(*together)
    return recorded(together[0].steps, together[0].terminated, "the run's own episodes")


def _none_sound() -> FaultsError:
    return FaultsError(
        f"no episode of {ROUNDS} rounds was sound, all met NaN or a simulator warning: check the environment,"
        " or lower the learning rate; the last checkpoint is intact"
    )


def joined(parts: Iterable[Episodes]) -> Episodes:
    """All episodes of `parts`, in one."""
    rows = [part.rows() for part in parts]
    return Episodes.from_rows({name: torch.cat([part[name] for part in rows]) for name in rows[0]})
