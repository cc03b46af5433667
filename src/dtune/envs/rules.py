"""What the rules of a MuJoCo world are made of, and what the worlds share."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import mujoco
import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Shaped

from dtune.errors import ConfigError, SimulatorError


class Moment(NamedTuple):
    """All that a task's rules read, one row an environment. Positions and velocities may be views."""

    qpos: Float64[np.ndarray, "envs nq"]
    """Generalised positions (m, rad, quaternions)."""
    qvel: Float64[np.ndarray, "envs nv"]
    """Generalised velocities (m/s, rad/s)."""
    memory: Float64[np.ndarray, "envs memory"]
    """What the rules need beside positions and velocities; see `Task.remember`."""


@runtime_checkable
class Task(Protocol):
    """The rules of one world, vectorised over rows. A frozen object: all that changes is in the `Moment`."""

    @property
    def frame_skip(self) -> int:
        """Physics substeps in one environment step."""
        ...

    @property
    def horizon(self) -> int:
        """Steps in an episode that does not end by itself."""
        ...

    @property
    def observation_dim(self) -> int:
        """Numbers in one observation."""
        ...

    @property
    def action_dim(self) -> int:
        """Numbers in one action."""
        ...

    @property
    def memory_dim(self) -> int:
        """Columns of `Moment.memory`, which are part of a snapshot."""
        ...

    @property
    def derived(self) -> tuple[str, ...]:
        """Names of the derived MjData fields that `remember` reads, such as `xpos`."""
        ...

    @property
    def expanded(self) -> tuple[str, ...]:
        """Names of the MjModel fields that differ between rows, such as `body_pos`, for `configure`."""
        ...

    def model(self) -> mujoco.MjModel:
        """Loads the world."""
        ...

    def draw(self, model: mujoco.MjModel, count: int, generator: torch.Generator) -> Moment:
        """Draws the starts of `count` episodes; memory columns that `remember` fills may hold anything."""
        ...

    def memory(self, count: int, fields: Mapping[str, np.ndarray]) -> Float64[np.ndarray, "count memory"]:
        """The memory of rows that start at recorded states, from the task's own `fields` (a goal, a target).

        Raises:
            ConfigError: if a field is missing, or is none of this task's.
            SimulatorError: if a field is of another size, or a number is not finite.
        """
        ...

    def configure(self, memory: Float64[np.ndarray, "envs memory"], expanded: Mapping[str, np.ndarray]) -> None:
        """Writes each row's own values into the `expanded` model fields, `[envs, ...]` each."""
        ...

    def remember(
        self, memory: Float64[np.ndarray, "envs memory"], derived: Mapping[str, np.ndarray]
    ) -> Float64[np.ndarray, "envs memory"]:
        """The memory after the physics have run: `memory` before, and the `derived` fields `[envs, ...]` now.

        As in MuJoCo's own step, derived fields are one substep older than the state after a step, and of the
        same time after a start. A state does not tell the lag, so what is read of them is remembered.
        """
        ...

    def controls(self, actions: Float32[np.ndarray, "envs action"]) -> Shaped[np.ndarray, "envs nu"]:
        """The actuators' controls for `actions`."""
        ...

    def observe(self, now: Moment) -> Float64[np.ndarray, "envs obs"]:
        """Observations, as an array of their own."""
        ...

    def reward(
        self, before: Moment, actions: Float32[np.ndarray, "envs action"], now: Moment
    ) -> Float64[np.ndarray, "envs"]:
        """Rewards of the step from `before` to `now`, as an array of their own."""
        ...

    def terminated(self, now: Moment) -> Bool[np.ndarray, "envs"]:
        """Whether the task itself has ended, by the rules: time is the engine's business."""
        ...


def load_model(path: Path) -> mujoco.MjModel:
    """Loads a world with the contacts it had when D4RL recorded it."""
    return halve_margins(mujoco.MjModel.from_xml_path(str(path)))


def halve_margins(model: mujoco.MjModel) -> mujoco.MjModel:
    """Gives a world, in place, the contacts it had when D4RL recorded it."""
    # MuJoCo >= 3.5 sums the margins of two geoms where it took their maximum before: halved, their sum is the
    # old distance again. Unhalved, replayed transitions miss by 0.13 (Ant, median) instead of 5e-6.
    model.geom_margin[:] *= 0.5
    return model


def uniform(
    low: float, high: float, count: int, size: int, generator: torch.Generator
) -> Float64[np.ndarray, "count size"]:
    """Draws from U(low, high)."""
    return (low + (high - low) * torch.rand(count, size, dtype=torch.float64, generator=generator)).numpy()


def blank_memory(count: int, columns: int, fields: Mapping[str, np.ndarray]) -> Float64[np.ndarray, "count columns"]:
    """The memory of a task whose recorded states are positions and velocities alone.

    Raises:
        ConfigError: if `fields` has any.
    """
    if fields:
        raise ConfigError(f"this task's states are qpos and qvel alone, so {', '.join(fields)} cannot be placed.")
    return np.zeros((count, columns))


def recorded_field(
    count: int, fields: Mapping[str, np.ndarray], name: str, size: int, *, implied: tuple[str, ...] = ()
) -> Float64[np.ndarray, "count size"]:
    """Takes the one field that a task's recorded states have beside positions and velocities.

    Args:
        count: rows.
        fields: what the caller gave.
        name: the field's name among the infos of D4RL's files.
        size: numbers a row.
        implied: fields that D4RL's files have as well, but that follow from the others; ignored.

    Raises:
        ConfigError: if it is missing, or there are fields that are none of the task's.
        SimulatorError: if its size is another, or a number is not finite.
    """
    unknown = [given for given in fields if given not in (name, *implied)]
    if unknown or name not in fields:
        wrong = f"{', '.join(unknown)} cannot be placed" if unknown else f"{name} is missing"
        raise ConfigError(f"{wrong}: this task's states are qpos, qvel and {name}, as in the infos of D4RL's files.")
    values = np.array(fields[name], dtype=np.float64)
    if values.shape != (count, size):
        raise SimulatorError(f"{name} has shape {values.shape}, but {count} rows of {size} numbers are placed.")
    if not np.isfinite(values).all():
        raise SimulatorError(f"{name} holds NaN or infinity: leave those rows out.")
    return values
