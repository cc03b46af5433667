"""Hopper, Walker2d and Ant by the rules of D4RL's v2, which are those of Gymnasium's v4.

Not those of v5: there a fall is paid no healthy reward, Walker2d's feet have another friction and Ant sees
contact forces. D4RL's Ant observes 84 contact forces as well, all of them zero; they are left out here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import ClassVar, final

import gymnasium
import mujoco
import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64

from dtune.envs.rules import Moment, blank_memory, load_model, uniform

ASSETS = Path(gymnasium.__file__).parent / "envs/mujoco/assets"
"""Gymnasium's MuJoCo worlds."""

_HEALTHY_REWARD = 1.0  # v2-v4 pay it on the falling step as well, whereupon the episode ends


def control_cost(weight: float, actions: Float32[np.ndarray, "envs action"]) -> Float32[np.ndarray, "envs"]:
    """weight·‖a‖², in the precision of the actions, as Gymnasium has it."""
    return weight * np.square(actions).sum(axis=1)


def draw_ant(
    model: mujoco.MjModel, count: int, generator: torch.Generator
) -> tuple[Float64[np.ndarray, "count nq"], Float64[np.ndarray, "count nv"]]:
    """Draws an ant's positions, U(-0.1, 0.1) about the rest pose, and velocities, 0.1·N(0, 1)."""
    qpos = model.qpos0 + uniform(-0.1, 0.1, count, model.nq, generator)
    return qpos, 0.1 * torch.randn(count, model.nv, dtype=torch.float64, generator=generator).numpy()


@final
@dataclass(frozen=True, kw_only=True)
class PlanarRunner:
    """Hopper and Walker2d: run to the right in the plane, upright. A fall ends the episode."""

    xml: str
    """File of the world among Gymnasium's assets."""
    observation_dim: int
    """All positions but the first (the distance run), and all velocities, clipped to ±10."""
    action_dim: int
    """Motors."""
    healthy_height: tuple[float, float]
    """Between which the torso is healthy (m), bounds excluded."""
    healthy_angle: tuple[float, float]
    """Between which the torso's pitch is healthy (rad), bounds excluded."""
    healthy_state: float = inf
    """Below which every other position and velocity is healthy, in magnitude (rad, m/s, rad/s)."""

    frame_skip: ClassVar[int] = 4
    horizon: ClassVar[int] = 1000
    memory_dim: ClassVar[int] = 0
    derived: ClassVar[tuple[str, ...]] = ()
    expanded: ClassVar[tuple[str, ...]] = ()
    dt: ClassVar[float] = 0.002 * 4  # s

    def model(self) -> mujoco.MjModel:
        """Loads the world; see `Task.model`."""
        return load_model(ASSETS / self.xml)

    def draw(self, model: mujoco.MjModel, count: int, generator: torch.Generator) -> Moment:
        """Draws U(-0.005, 0.005) about the rest pose, positions and velocities alike."""
        qpos = model.qpos0 + uniform(-5e-3, 5e-3, count, model.nq, generator)
        return Moment(qpos, uniform(-5e-3, 5e-3, count, model.nv, generator), np.zeros((count, 0)))

    def memory(self, count: int, fields: Mapping[str, np.ndarray]) -> Float64[np.ndarray, "count memory"]:
        """There is none; see `Task.memory`."""
        return blank_memory(count, self.memory_dim, fields)

    def configure(self, memory: Float64[np.ndarray, "envs memory"], expanded: Mapping[str, np.ndarray]) -> None:
        """Every row has the same model; see `Task.configure`."""

    def remember(
        self,
        memory: Float64[np.ndarray, "envs memory"],
        derived: Mapping[str, np.ndarray],  # noqa: ARG002
    ) -> Float64[np.ndarray, "envs memory"]:
        """Nothing; see `Task.remember`."""
        return memory

    def controls(self, actions: Float32[np.ndarray, "envs action"]) -> Float32[np.ndarray, "envs action"]:
        """The actions themselves."""
        return actions

    def observe(self, now: Moment) -> Float64[np.ndarray, "envs obs"]:
        """Positions without the distance run, clipped velocities."""
        return np.concatenate((now.qpos[:, 1:], np.minimum(np.maximum(now.qvel, -10), 10)), axis=1)

    def reward(
        self, before: Moment, actions: Float32[np.ndarray, "envs action"], now: Moment
    ) -> Float64[np.ndarray, "envs"]:
        """Forward velocity + 1 - 0.001·‖a‖²."""
        velocity = (now.qpos[:, 0] - before.qpos[:, 0]) / self.dt
        return velocity + _HEALTHY_REWARD - control_cost(1e-3, actions)

    def terminated(self, now: Moment) -> Bool[np.ndarray, "envs"]:
        """Whether the torso is too low, too high, too tilted, or the state is out of bounds."""
        height, angle = now.qpos[:, 1], now.qpos[:, 2]
        healthy = (self.healthy_height[0] < height) & (height < self.healthy_height[1])
        healthy &= (self.healthy_angle[0] < angle) & (angle < self.healthy_angle[1])
        healthy &= (np.abs(now.qpos[:, 2:]) < self.healthy_state).all(axis=1)
        healthy &= (np.abs(now.qvel) < self.healthy_state).all(axis=1)
        return ~healthy


HOPPER = PlanarRunner(
    xml="hopper.xml",
    observation_dim=11,
    action_dim=3,
    healthy_height=(0.7, inf),
    healthy_angle=(-0.2, 0.2),
    healthy_state=100.0,
)
WALKER2D = PlanarRunner(
    xml="walker2d.xml",
    observation_dim=17,
    action_dim=6,
    healthy_height=(0.8, 2.0),
    healthy_angle=(-1.0, 1.0),
)


@final
@dataclass(frozen=True, kw_only=True)
class Ant:
    """Ant: run along x on four legs. Jumping or lying flat ends the episode."""

    frame_skip: ClassVar[int] = 5
    horizon: ClassVar[int] = 1000
    observation_dim: ClassVar[int] = 27
    action_dim: ClassVar[int] = 8
    memory_dim: ClassVar[int] = 2
    derived: ClassVar[tuple[str, ...]] = ("xpos",)
    expanded: ClassVar[tuple[str, ...]] = ()
    dt: ClassVar[float] = 0.01 * 5  # s
    torso: ClassVar[int] = 1  # the first body after the world

    def model(self) -> mujoco.MjModel:
        """Loads the world; see `Task.model`."""
        return load_model(ASSETS / "ant.xml")

    def draw(self, model: mujoco.MjModel, count: int, generator: torch.Generator) -> Moment:
        """Draws positions and velocities; see `draw_ant`."""
        return Moment(*draw_ant(model, count, generator), np.zeros((count, self.memory_dim)))

    def memory(self, count: int, fields: Mapping[str, np.ndarray]) -> Float64[np.ndarray, "count memory"]:
        """What `remember` fills; see `Task.memory`."""
        return blank_memory(count, self.memory_dim, fields)

    def configure(self, memory: Float64[np.ndarray, "envs memory"], expanded: Mapping[str, np.ndarray]) -> None:
        """Every row has the same model; see `Task.configure`."""

    def remember(
        self,
        memory: Float64[np.ndarray, "envs memory"],  # noqa: ARG002
        derived: Mapping[str, np.ndarray],
    ) -> Float64[np.ndarray, "envs memory"]:
        """The torso's x and y in `xpos`, which the reward is for; after a step they lag behind `qpos`."""
        return derived["xpos"][:, self.torso, :2]

    def controls(self, actions: Float32[np.ndarray, "envs action"]) -> Float32[np.ndarray, "envs action"]:
        """The actions themselves."""
        return actions

    def observe(self, now: Moment) -> Float64[np.ndarray, "envs obs"]:
        """Positions without x and y, and velocities."""
        return np.concatenate((now.qpos[:, 2:], now.qvel), axis=1)

    def reward(
        self, before: Moment, actions: Float32[np.ndarray, "envs action"], now: Moment
    ) -> Float64[np.ndarray, "envs"]:
        """Forward velocity of the torso + 1 - 0.5·‖a‖²."""
        velocity = (now.memory[:, 0] - before.memory[:, 0]) / self.dt
        return velocity + _HEALTHY_REWARD - control_cost(0.5, actions)

    def terminated(self, now: Moment) -> Bool[np.ndarray, "envs"]:
        """Whether the torso's height has left [0.2, 1.0] m, or the state is not finite."""
        height = now.qpos[:, 2]
        healthy = (height >= 0.2) & (height <= 1.0)
        healthy &= np.isfinite(now.qpos).all(axis=1) & np.isfinite(now.qvel).all(axis=1)
        return ~healthy
