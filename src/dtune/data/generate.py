"""Episodes of uniform random actions: the paper's *random* datasets, which need no download."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from dtune.errors import SimulatorError


@runtime_checkable
class StepOutcome(Protocol):
    """What one step of all environments brings, one row each."""

    @property
    def observations(self) -> Float64[Tensor, "envs obs"]: ...  # noqa: D102
    @property
    def rewards(self) -> Float64[Tensor, "envs"]: ...  # noqa: D102
    @property
    def terminated(self) -> Bool[Tensor, "envs"]: ...  # noqa: D102
    @property
    def truncated(self) -> Bool[Tensor, "envs"]: ...  # noqa: D102
    @property
    def faulty(self) -> Bool[Tensor, "envs"]: ...  # noqa: D102


@runtime_checkable
class Walkable(Protocol):
    """As much of a simulator as recording needs."""

    observation_dim: int
    action_dim: int
    horizon: int

    def reset(self, count: int, generator: torch.Generator) -> Float64[Tensor, "count obs"]:
        """Starts fresh episodes in place of all others."""
        ...

    def step(self, actions: Float32[Tensor, "envs action"]) -> StepOutcome:
        """Advances every row by one step."""
        ...

    def keep(self, rows: Int64[Tensor, "kept"]) -> None:
        """Goes on with `rows` only."""
        ...


def record_random(
    simulator: Walkable,
    *,
    episodes: int,
    generator: torch.Generator,
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """Records whole episodes of actions drawn evenly from [-1, 1], as D4RL's random datasets.

    Episodes are started `batch` at a time, and every one started is walked to its end: stopping at a number
    of finished ones would favour short episodes. One in which the physics failed is left out and replaced.

    Args:
        simulator: anything with `reset`, `step` and `keep`; its present episodes are forgotten.
        episodes: how many, all of them finished.
        generator: the source of the starts and the actions. Same state, same `batch`: same episodes.
        batch: walked side by side.
        progress: told how many are recorded, after every batch.

    Returns:
        Columns in D4RL's layout, episode after episode, for `make_dataset` or `write_hdf5`: float32
        `observations`, `next_observations`, `actions` and `rewards`; bool `terminals` and `timeouts`.

    Raises:
        SimulatorError: if an episode outlasts the horizon, or the physics failed in a whole batch.
    """
    rounds: list[dict[str, Tensor]] = []
    recorded = 0
    while recorded < episodes:
        columns, whole = _walk(simulator, min(batch, episodes - recorded), generator)
        if whole == 0:
            raise SimulatorError(
                "The physics failed in every episode of a batch of random actions: nothing can be recorded "
                "from such a simulator, so check it first."
            )
        rounds.append(columns)
        recorded += whole
        if progress is not None:
            progress(recorded)
    return {key: torch.cat([columns[key] for columns in rounds]) for key in rounds[0]}


def _walk(simulator: Walkable, count: int, generator: torch.Generator) -> tuple[dict[str, Tensor], int]:
    """Walks `count` episodes to their ends; the columns of those that did not fail, and their number."""
    observations = simulator.reset(count, generator)
    alive = torch.arange(count)  # the episode each present row belongs to
    failed = torch.zeros(count, dtype=torch.bool)
    walked: list[dict[str, Tensor]] = []
    while len(alive):
        if len(walked) == simulator.horizon:
            raise SimulatorError(
                f"{len(alive)} episodes went on after the horizon of {simulator.horizon} steps: a simulator "
                "has to truncate them there."
            )
        actions = 2 * torch.rand(len(alive), simulator.action_dim, generator=generator) - 1
        outcome = simulator.step(actions)
        failed[alive] |= outcome.faulty
        walked.append(
            {
                "episode": alive,
                "observations": observations.float(),
                "next_observations": outcome.observations.float(),
                "actions": actions,
                "rewards": outcome.rewards.float(),
                "terminals": outcome.terminated,
                "timeouts": outcome.truncated & ~outcome.terminated,
            }
        )
        rows = (~(outcome.terminated | outcome.truncated)).nonzero().squeeze(1)
        if 0 < len(rows) < len(alive):
            simulator.keep(rows)
        alive, observations = alive[rows], outcome.observations[rows]
    columns = {key: torch.cat([step[key] for step in walked]) for key in walked[0]}
    episode = columns.pop("episode")
    order = episode.argsort(stable=True)  # rows came in order of time: stable keeps that within an episode
    order = order[~failed[episode[order]]]
    return {key: value[order] for key, value in columns.items()}, int((~failed).sum())
