"""The paper's eight tasks and seventeen datasets: the only file, with the presets, that knows their names."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from dtune.envs.adroit import Door, Hammer, Pen
from dtune.envs.antmaze import AntMaze
from dtune.envs.locomotion import HOPPER, WALKER2D, Ant
from dtune.envs.mujoco import MujocoSimulator
from dtune.envs.rules import Task
from dtune.errors import ConfigError, meant

Returns = TypeVar("Returns", float, np.ndarray, Tensor)


@dataclass(frozen=True, kw_only=True)
class Success:
    """When an episode counts as a success: its goal is met for long enough, which its rewards tell."""

    reward: float
    """Every step at the goal earns more than this, and no other step does."""
    steps: int
    """Steps at the goal of which more are needed."""


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """What is fixed about a task by D4RL."""

    name: str
    """What users call it."""
    horizon: int
    """Steps after which an episode is truncated."""
    observation_dim: int
    """Numbers in one observation."""
    action_dim: int
    """Numbers in one action."""
    return_scale: float = 0.001
    """Returns-to-go are multiplied by it before a model sees them."""
    reference_min: float
    """Raw return of D4RL's random policy: score 0."""
    reference_max: float
    """Raw return of D4RL's expert: score 100."""
    make: Callable[[], Task]
    """Gives the world's rules."""
    camera: str | None = "track"
    """Camera of the world that films an episode; None: from above, the whole of it."""
    goal: tuple[int, int] | None = None
    """Columns of the task's memory with x and y (m) of a goal that the world does not show."""
    success: Success | None = None
    """D4RL's rule for it; None where a task is never done."""


_UMAZE = TaskInfo(
    name="antmaze-umaze",
    horizon=700,
    observation_dim=29,
    action_dim=8,
    return_scale=1.0,
    reference_min=0.0,
    reference_max=1.0,
    make=AntMaze,
    camera=None,
    goal=(0, 1),
    success=Success(reward=0.5, steps=0),
)

TASKS: dict[str, TaskInfo] = {
    info.name: info
    for info in (
        TaskInfo(
            name="hopper",
            horizon=1000,
            observation_dim=11,
            action_dim=3,
            reference_min=-20.272305,
            reference_max=3234.3,
            make=lambda: HOPPER,
        ),
        TaskInfo(
            name="walker2d",
            horizon=1000,
            observation_dim=17,
            action_dim=6,
            reference_min=1.629008,
            reference_max=4592.3,
            make=lambda: WALKER2D,
        ),
        TaskInfo(
            name="ant",
            horizon=1000,
            observation_dim=27,  # without D4RL's 84 zeros
            action_dim=8,
            reference_min=-325.6,
            reference_max=3879.7,
            make=Ant,
        ),
        TaskInfo(
            name="door",
            horizon=200,
            observation_dim=39,
            action_dim=28,
            reference_min=-56.512833,
            reference_max=2880.5693087298737,
            make=Door,
            camera="vil_camera",
            success=Success(reward=15.0, steps=25),  # the hinge past 1.35 rad: 20, else 10 at most
        ),
        TaskInfo(
            name="pen",
            horizon=100,
            observation_dim=45,
            action_dim=24,
            reference_min=96.262799,
            reference_max=3076.8331017826877,
            make=Pen,
            camera="vil_camera",
            success=Success(reward=30.0, steps=20),  # held, and turned as the other: 60 and more, else 11 at most
        ),
        TaskInfo(
            name="hammer",
            horizon=200,
            observation_dim=46,
            action_dim=26,
            reference_min=-274.856578,
            reference_max=12794.134825156867,
            make=Hammer,
            camera="vil_camera",
            success=Success(reward=60.0, steps=25),  # the nail within 1 cm: 102 less the ways to go, else 27 at most
        ),
        _UMAZE,
        replace(_UMAZE, name="antmaze-umaze-diverse"),  # other data; D4RL evaluates both in one world
    )
}

_LOCOMOTION = {
    f"{task}-{data}-v2": task
    for task in ("hopper", "walker2d", "ant")
    for data in ("random", "medium", "medium-replay")
}
_ADROIT = {f"{task}-{data}-v1": task for task in ("door", "pen", "hammer") for data in ("human", "cloned")}
_ANTMAZE = {f"{task}-v2": task for task in ("antmaze-umaze", "antmaze-umaze-diverse")}

DATASETS: dict[str, str] = _LOCOMOTION | _ADROIT | _ANTMAZE
"""Tables 2-4: the name of each dataset and the task it is of."""


def task_info(name: str) -> TaskInfo:
    """Looks a task up by its own name or by that of one of its datasets.

    Raises:
        ConfigError: if there is no such name.
    """
    found = TASKS.get(DATASETS.get(name, name))
    if found is None:
        hint = meant(name, [*TASKS, *DATASETS])
        known = f"neither a task ({', '.join(TASKS)}) nor a dataset ({', '.join(DATASETS)})"
        raise ConfigError(f"{name!r} is {known}{hint}.")
    return found


def succeeded(
    name: str, rewards: Float[Tensor, "episodes time"], mask: Bool[Tensor, "episodes time"]
) -> Bool[Tensor, "episodes"] | None:
    """Which episodes D4RL's rule of a task calls a success; None where it has none.

    Args:
        name: a key of `TASKS` or of `DATASETS`.
        rewards: in environment units.
        mask: which steps are real.

    Raises:
        ConfigError: if there is no such name.
    """
    rule = task_info(name).success
    return None if rule is None else ((rewards > rule.reward) & mask).sum(1) > rule.steps


def make_simulator(name: str, threads: int = 1) -> MujocoSimulator:
    """Builds the simulator of a task, by its name or that of one of its datasets.

    Args:
        name: a key of `TASKS` or of `DATASETS`.
        threads: threads that step the physics. Results do not depend on it.

    Raises:
        ConfigError: if there is no such name, or a package it needs is not installed.
    """
    return MujocoSimulator(task_info(name).make(), threads)


def normalized_score(name: str, returns: Returns) -> Returns:
    """D4RL's score: 100·(R - R_random) / (R_expert - R_random).

    Args:
        name: a key of `TASKS` or of `DATASETS`.
        returns: raw, undiscounted returns of whole episodes, in environment units; one, or any shape of them.

    Returns:
        Scores of the same shape: 0 is D4RL's random policy, 100 its expert.

    Raises:
        ConfigError: if there is no such name.
    """
    info = task_info(name)
    return 100.0 * (returns - info.reference_min) / (info.reference_max - info.reference_min)
