"""AntMaze umaze by the rules of D4RL's v2: an ant finds its way round a U to a goal that it does not see.

Not those of Gymnasium-Robotics, whose ant is five times as strong, whose maze lies elsewhere and whose goal is met
without an end.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import mujoco
import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64

from dtune.envs.locomotion import ASSETS, draw_ant
from dtune.envs.rules import Moment, halve_margins, recorded_field, uniform

_CELL = 4.0  # m; the cell of the start has its centre at the origin
_WALL_HEIGHT = 2.0  # m
_FREE = {(0, 0), (1, 0), (2, 0), (2, 1), (2, 2), (1, 2), (0, 2)}  # columns along x, rows along y; walls all around
_GOAL_CELL = (0, 2)


@final
@dataclass(frozen=True, kw_only=True)
class AntMaze:
    """AntMaze umaze and umaze-diverse, which differ in their data alone. Arriving ends the episode, a fall does not."""

    solimp: tuple[float, float, float] = (0.9, 0.95, 0.001)
    """Impedance of contacts: least, greatest, and the depth between the two (m). This is Gymnasium's ant; the one in
    D4RL's repository has (0.8, 0.8, 0.01), softer: a step from the same state ends 0.14 apart (median)."""

    frame_skip: ClassVar[int] = 5
    horizon: ClassVar[int] = 700
    observation_dim: ClassVar[int] = 29
    action_dim: ClassVar[int] = 8
    memory_dim: ClassVar[int] = 2
    derived: ClassVar[tuple[str, ...]] = ()
    expanded: ClassVar[tuple[str, ...]] = ()
    timestep: ClassVar[float] = 0.02  # s
    gear: ClassVar[float] = 30.0  # N·m at action 1
    goal_radius: ClassVar[float] = 0.5  # m

    def model(self) -> mujoco.MjModel:
        """Puts walls around Gymnasium's ant and makes it D4RL's: weaker, in longer steps. See `Task.model`."""
        spec = mujoco.MjSpec.from_file(str(ASSETS / "ant.xml"))
        spec.option.timestep = self.timestep
        for actuator in spec.actuators:
            actuator.gear[0] = self.gear
        for column, row in np.ndindex(5, 5):
            cell = (column - 1, row - 1)
            if cell not in _FREE:
                spec.worldbody.add_geom(
                    name=f"wall_{column}_{row}",
                    type=mujoco.mjtGeom.mjGEOM_BOX,
                    pos=[_CELL * cell[0], _CELL * cell[1], _WALL_HEIGHT / 2],
                    size=[_CELL / 2, _CELL / 2, _WALL_HEIGHT / 2],  # half sizes
                    conaffinity=1,
                )
        for geom in spec.geoms:
            geom.solimp[:3] = self.solimp
        return halve_margins(spec.compile())

    def draw(self, model: mujoco.MjModel, count: int, generator: torch.Generator) -> Moment:
        """Draws starts as the ant's, and goals: the goal's cell + U(0, 1) + U(0, 0.5) m along x and along y."""
        qpos, qvel = draw_ant(model, count, generator)
        goals = _CELL * np.array(_GOAL_CELL) + uniform(0, 1, count, 2, generator) + uniform(0, 0.5, count, 2, generator)
        return Moment(qpos, qvel, goals)

    def memory(self, count: int, fields: Mapping[str, np.ndarray]) -> Float64[np.ndarray, "count memory"]:
        """The goals: x and y (m), from the field `goal`; see `Task.memory`."""
        return recorded_field(count, fields, "goal", self.memory_dim)

    def configure(self, memory: Float64[np.ndarray, "envs memory"], expanded: Mapping[str, np.ndarray]) -> None:
        """Every row has the same model; see `Task.configure`."""

    def remember(
        self,
        memory: Float64[np.ndarray, "envs memory"],
        derived: Mapping[str, np.ndarray],  # noqa: ARG002
    ) -> Float64[np.ndarray, "envs memory"]:
        """The goal, which stays; see `Task.remember`."""
        return memory

    def controls(self, actions: Float32[np.ndarray, "envs action"]) -> Float32[np.ndarray, "envs action"]:
        """The actions themselves."""
        return actions

    def observe(self, now: Moment) -> Float64[np.ndarray, "envs obs"]:
        """Positions, x and y among them, and velocities; not the goal."""
        return np.concatenate((now.qpos, now.qvel), axis=1)

    def reward(
        self,
        before: Moment,  # noqa: ARG002
        actions: Float32[np.ndarray, "envs action"],  # noqa: ARG002
        now: Moment,
    ) -> Float64[np.ndarray, "envs"]:
        """1 at the goal, 0 elsewhere."""
        return self.terminated(now).astype(np.float64)

    def terminated(self, now: Moment) -> Bool[np.ndarray, "envs"]:
        """Whether the torso is within 0.5 m of the goal, bound included."""
        # x and y of `qpos`, as in D4RL: the torso's `xpos` would lag behind
        return np.linalg.norm(now.qpos[:, :2] - now.memory, axis=1) <= self.goal_radius
