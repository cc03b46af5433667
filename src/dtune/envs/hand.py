"""The Adroit hand: loading a world of it, and what its three worlds share."""

from copy import copy
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import final

import mujoco
import numpy as np
from jaxtyping import Float32, Float64, Int64

from dtune.envs.rules import Moment, load_model
from dtune.errors import ConfigError

_PACKAGE = "gymnasium_robotics"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Hand:
    """One of the hand's worlds, loaded."""

    loaded: mujoco.MjModel
    """Shared by all who look names up; `model` gives copies."""
    middle: Float64[np.ndarray, "nu"]
    """Of each actuator's range: the control of action 0 (m, rad)."""
    half_range: Float64[np.ndarray, "nu"]
    """From there to either end of the range: the controls of actions -1 and 1 (m, rad)."""

    def model(self) -> mujoco.MjModel:
        """A copy of the world."""
        return copy(self.loaded)

    def body(self, name: str) -> int:
        """Index of a body."""
        return self.loaded.body(name).id

    def sensor(self, name: str) -> int:
        """Index of the number that a sensor reads, in MjData's `sensordata`."""
        return int(self.loaded.sensor(name).adr[0])

    def sites(self, *names: str) -> Int64[np.ndarray, "names"]:
        """Indices of sites."""
        return np.array([self.loaded.site(name).id for name in names])

    def controls(self, actions: Float32[np.ndarray, "envs nu"]) -> Float64[np.ndarray, "envs nu"]:
        """Stretches [-1, 1] over the actuators' ranges; actions beyond are clipped."""
        return self.middle + np.clip(actions, -1, 1) * self.half_range


@cache
def load_hand(xml: str) -> Hand:
    """Loads a world once, from gymnasium-robotics' assets; no code of that package is run.

    Args:
        xml: the file among the assets.

    Raises:
        ConfigError: if gymnasium-robotics is not installed.
    """
    package = find_spec(_PACKAGE)
    if package is None or package.origin is None:
        raise ConfigError(
            "the Adroit worlds (door, hammer, pen) need the models of gymnasium-robotics, which is not installed: "
            "pip install 'dtune[adroit]'"
        )
    model = load_model(Path(package.origin).parent / "envs/assets/adroit_hand" / xml)
    low, high = model.actuator_ctrlrange.T
    return Hand(loaded=model, middle=(low + high) / 2, half_range=0.5 * (high - low))


def rest(model: mujoco.MjModel, count: int, drawn: Float64[np.ndarray, "count drawn"], memory_dim: int) -> Moment:
    """The starts of episodes at the model's rest pose, with `drawn` in the first columns of the memory."""
    memory = np.zeros((count, memory_dim))
    memory[:, : drawn.shape[1]] = drawn
    return Moment(np.tile(model.qpos0, (count, 1)), np.zeros((count, model.nv)), memory)


def euler_angles(quaternions: Float64[np.ndarray, "envs 4"]) -> Float64[np.ndarray, "envs 3"]:
    """Angles (rad) by which to turn about x, then about the new y, then about the newest z.

    Args:
        quaternions: w first, of unit length but for rounding.

    Returns:
        The second angle is in [-π/2, π/2]; at its ends, where only the sum or difference of the two others is
        defined, the first is 0. Half a turn about x or z is -π.
    """
    w, x, y, z = quaternions.T
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 where MuJoCo failed before it came to the pose
        x2, y2, z2 = quaternions[:, 1:].T * (2.0 / np.square(quaternions).sum(axis=1))
        minus_sin_x, cos_x = y * z2 - w * x2, 1.0 - (x * x2 + y * y2)  # of the rotation matrix; times cos_y
        minus_sin_z, cos_z = x * y2 - w * z2, 1.0 - (y * y2 + z * z2)
        sin_y, cos_y = x * z2 + w * y2, np.sqrt(cos_x * cos_x + minus_sin_x * minus_sin_x)
        locked = cos_y <= 4 * np.finfo(np.float64).eps
        first = np.where(locked, 0.0, -np.arctan2(minus_sin_x, cos_x))
        locked_last = np.arctan2(x * y2 + w * z2, 1.0 - (x * x2 + z * z2))
        last = np.where(locked, locked_last, -np.arctan2(minus_sin_z, cos_z))
        return np.stack((first, np.arctan2(sin_y, cos_y), last), axis=1)


def distance(
    points: Float64[np.ndarray, "envs 3"], others: Float64[np.ndarray, "envs 3"] | Float64[np.ndarray, "3"]
) -> Float64[np.ndarray, "envs"]:
    """Metres between points, one pair a row."""
    return np.linalg.norm(points - others, axis=1)
