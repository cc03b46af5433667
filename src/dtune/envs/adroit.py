"""Door, Hammer and Pen of the Adroit hand, by the rules of D4RL's v1.

The models are those of gymnasium-robotics, whose rules (1.4.2, v1) differ from D4RL's:

* Door and Hammer: there, the distance from the palm to the handle or the hammer is rewarded with +0.1 a metre.
  D4RL, and this module, charge 0.1 a metre.
* Pen: there, an episode goes on for 200 steps whatever happens. Here, a pen that falls below 7.5 cm ends it (after
  the penalty of 5 that both have), and time runs out after 100 steps.
* Contact margins are halved here, as in every world; see `load_model`.

A reset moves a body of the model, another place in each row; see `Task.configure`. Poses of bodies and sites are
read as MuJoCo's step leaves them, one substep older than positions and velocities, as D4RL does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import ClassVar, final

import mujoco
import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64

from dtune.envs.hand import Hand, distance, euler_angles, load_hand, rest
from dtune.envs.rules import Moment, recorded_field, uniform


@final
@dataclass(frozen=True, kw_only=True)
class Door:
    """Undo the latch and swing the door open. Never ends by itself; the door's frame stands elsewhere each time.

    The memory is the frame's position, then the positions of palm and handle (m).
    """

    hand: Hand = field(default_factory=partial(load_hand, "adroit_door.xml"), repr=False)
    """The world as loaded."""

    frame_skip: ClassVar[int] = 5
    horizon: ClassVar[int] = 200
    observation_dim: ClassVar[int] = 39
    action_dim: ClassVar[int] = 28
    memory_dim: ClassVar[int] = 9
    derived: ClassVar[tuple[str, ...]] = ("site_xpos",)
    expanded: ClassVar[tuple[str, ...]] = ("body_pos",)

    @cached_property
    def _frame(self) -> int:
        return self.hand.body("frame")

    @cached_property
    def _sites(self) -> Int64[np.ndarray, "2"]:
        return self.hand.sites("S_grasp", "S_handle")

    def model(self) -> mujoco.MjModel:
        """The world; see `Task.model`."""
        return self.hand.model()

    def draw(self, model: mujoco.MjModel, count: int, generator: torch.Generator) -> Moment:
        """Rest pose; the frame's x from U(-0.3, -0.2), y from U(0.25, 0.35), z from U(0.252, 0.35) m."""
        ranges = ((-0.3, -0.2), (0.25, 0.35), (0.252, 0.35))
        frame = np.concatenate([uniform(low, high, count, 1, generator) for low, high in ranges], axis=1)
        return rest(model, count, frame, self.memory_dim)

    def memory(self, count: int, fields: Mapping[str, np.ndarray]) -> Float64[np.ndarray, "count memory"]:
        """From `door_body_pos`, the frame's position; see `Task.memory`."""
        frame = recorded_field(count, fields, "door_body_pos", 3)
        return np.concatenate((frame, np.zeros((count, 6))), axis=1)

    def configure(self, memory: Float64[np.ndarray, "envs memory"], expanded: Mapping[str, np.ndarray]) -> None:
        """Puts each row's door where its memory has it."""
        expanded["body_pos"][:, self._frame] = memory[:, :3]

    def remember(
        self, memory: Float64[np.ndarray, "envs memory"], derived: Mapping[str, np.ndarray]
    ) -> Float64[np.ndarray, "envs memory"]:
        """Palm and handle."""
        sites = derived["site_xpos"][:, self._sites].reshape(len(memory), 6)
        return np.concatenate((memory[:, :3], sites), axis=1)

    def controls(self, actions: Float32[np.ndarray, "envs action"]) -> Float64[np.ndarray, "envs action"]:
        """Actions over the actuators' ranges."""
        return self.hand.controls(actions)

    def observe(self, now: Moment) -> Float64[np.ndarray, "envs obs"]:
        """Joints of the hand, latch, hinge, palm, handle, the way from handle to palm, and ±1 for open or not."""
        hinge, latch, palm, handle = now.qpos[:, -2:-1], now.qpos[:, -1:], now.memory[:, 3:6], now.memory[:, 6:]
        opened = np.where(hinge > 1.0, 1.0, -1.0)
        return np.concatenate((now.qpos[:, 1:-2], latch, hinge, palm, handle, palm - handle, opened), axis=1)

    def reward(
        self,
        before: Moment,  # noqa: ARG002
        actions: Float32[np.ndarray, "envs action"],  # noqa: ARG002
        now: Moment,
    ) -> Float64[np.ndarray, "envs"]:
        """2, 10 or 20 for a hinge past 0.2, 1.0 or 1.35 rad, less the palm's, the hinge's and the velocities' costs."""
        hinge = now.qpos[:, -2]
        rewards = -0.1 * distance(now.memory[:, 3:6], now.memory[:, 6:])
        rewards -= 0.1 * np.square(hinge - 1.57)
        rewards -= 1e-5 * np.square(now.qvel).sum(axis=1)
        return rewards + 2.0 * (hinge > 0.2) + 8.0 * (hinge > 1.0) + 10.0 * (hinge > 1.35)

    def terminated(self, now: Moment) -> Bool[np.ndarray, "envs"]:
        """Never."""
        return np.zeros(len(now.qpos), dtype=bool)


@final
@dataclass(frozen=True, kw_only=True)
class Hammer:
    """Pick the hammer up and drive the nail in. Never ends by itself; the board hangs at another height each time.

    The memory is the board's position, then those of palm, hammer's head, nail, nail driven in, and hammer (m), its
    Euler angles (rad), and the force on the nail (N).
    """

    hand: Hand = field(default_factory=partial(load_hand, "adroit_hammer.xml"), repr=False)
    """The world as loaded."""

    frame_skip: ClassVar[int] = 5
    horizon: ClassVar[int] = 200
    observation_dim: ClassVar[int] = 46
    action_dim: ClassVar[int] = 26
    memory_dim: ClassVar[int] = 22
    derived: ClassVar[tuple[str, ...]] = ("site_xpos", "xpos", "xquat", "sensordata")
    expanded: ClassVar[tuple[str, ...]] = ("body_pos",)

    @cached_property
    def _board(self) -> int:
        return self.hand.body("nail_board")

    @cached_property
    def _hammer(self) -> int:
        return self.hand.body("Object")

    @cached_property
    def _sites(self) -> Int64[np.ndarray, "4"]:
        return self.hand.sites("S_grasp", "tool", "S_target", "nail_goal")

    @cached_property
    def _force(self) -> int:
        return self.hand.sensor("S_nail")

    def model(self) -> mujoco.MjModel:
        """The world; see `Task.model`."""
        return self.hand.model()

    def draw(self, model: mujoco.MjModel, count: int, generator: torch.Generator) -> Moment:
        """Rest pose; the board's height from U(0.1, 0.25) m."""
        board = np.tile(model.body_pos[self._board], (count, 1))
        board[:, 2:] = uniform(0.1, 0.25, count, 1, generator)
        return rest(model, count, board, self.memory_dim)

    def memory(self, count: int, fields: Mapping[str, np.ndarray]) -> Float64[np.ndarray, "count memory"]:
        """From `board_pos`, the board's position; `target_pos`, the nail's, follows from it. See `Task.memory`."""
        board = recorded_field(count, fields, "board_pos", 3, implied=("target_pos",))
        return np.concatenate((board, np.zeros((count, 19))), axis=1)

    def configure(self, memory: Float64[np.ndarray, "envs memory"], expanded: Mapping[str, np.ndarray]) -> None:
        """Puts each row's board where its memory has it."""
        expanded["body_pos"][:, self._board] = memory[:, :3]

    def remember(
        self, memory: Float64[np.ndarray, "envs memory"], derived: Mapping[str, np.ndarray]
    ) -> Float64[np.ndarray, "envs memory"]:
        """Palm, head, nail, goal, the hammer's pose and the force."""
        sites = derived["site_xpos"][:, self._sites].reshape(len(memory), 12)
        hammer = derived["xpos"][:, self._hammer]
        angles = euler_angles(derived["xquat"][:, self._hammer])
        force = derived["sensordata"][:, self._force, None]
        return np.concatenate((memory[:, :3], sites, hammer, angles, force), axis=1)

    def controls(self, actions: Float32[np.ndarray, "envs action"]) -> Float64[np.ndarray, "envs action"]:
        """Actions over the actuators' ranges."""
        return self.hand.controls(actions)

    def observe(self, now: Moment) -> Float64[np.ndarray, "envs obs"]:
        """Joints of hand and nail, the hammer's clipped velocities, palm, the hammer's pose, nail, clipped force."""
        velocity, force = np.clip(now.qvel[:, -6:], -1, 1), np.clip(now.memory[:, 21:], -1, 1)
        palm, nail, pose = now.memory[:, 3:6], now.memory[:, 9:12], now.memory[:, 15:21]
        return np.concatenate((now.qpos[:, :-6], velocity, palm, pose, nail, force), axis=1)

    def reward(
        self,
        before: Moment,  # noqa: ARG002
        actions: Float32[np.ndarray, "envs action"],  # noqa: ARG002
        now: Moment,
    ) -> Float64[np.ndarray, "envs"]:
        """2 for a lifted hammer, 25 or 100 for a nail within 2 or 1 cm of its goal, less the ways still to go."""
        palm, head, nail, goal, hammer = np.split(now.memory[:, 3:18], 5, axis=1)
        left = distance(nail, goal)
        rewards = -0.1 * distance(palm, hammer) - distance(head, nail) - 10.0 * left
        rewards -= 1e-2 * np.linalg.norm(now.qvel, axis=1)
        lifted = (hammer[:, 2] > 0.04) & (head[:, 2] > 0.04)
        return rewards + 2.0 * lifted + 25.0 * (left < 0.02) + 75.0 * (left < 0.01)

    def terminated(self, now: Moment) -> Bool[np.ndarray, "envs"]:
        """Never."""
        return np.zeros(len(now.qpos), dtype=bool)


@final
@dataclass(frozen=True, kw_only=True)
class Pen:
    """Turn the pen to the direction in which another one, out of reach, points. Dropping it ends the episode.

    The memory is the other pen's quaternion, then the pen's position (m), its direction, and the other's, as unit
    vectors.
    """

    hand: Hand = field(default_factory=partial(load_hand, "adroit_pen.xml"), repr=False)
    """The world as loaded."""

    frame_skip: ClassVar[int] = 5
    horizon: ClassVar[int] = 100
    observation_dim: ClassVar[int] = 45
    action_dim: ClassVar[int] = 24
    memory_dim: ClassVar[int] = 13
    derived: ClassVar[tuple[str, ...]] = ("site_xpos", "xpos")
    expanded: ClassVar[tuple[str, ...]] = ("body_quat",)
    length: ClassVar[float] = 0.13  # m, of both pens

    @cached_property
    def _pen(self) -> int:
        return self.hand.body("Object")

    @cached_property
    def _target(self) -> int:
        return self.hand.body("target")

    @cached_property
    def _ends(self) -> Int64[np.ndarray, "4"]:
        return self.hand.sites("object_top", "target_top", "object_bottom", "target_bottom")

    @cached_property
    def _spot(self) -> Float64[np.ndarray, "3"]:
        """Where the pen is to be held (m): fixed in the world."""
        return self.hand.loaded.site("eps_ball").pos

    def model(self) -> mujoco.MjModel:
        """The world; see `Task.model`."""
        return self.hand.model()

    def draw(self, model: mujoco.MjModel, count: int, generator: torch.Generator) -> Moment:
        """Rest pose; the other pen turned by U(-1, 1) rad about x, then by U(-1, 1) rad about the new y."""
        half = uniform(-1.0, 1.0, count, 2, generator) / 2
        (cos_x, cos_y), (sin_x, sin_y) = np.cos(half).T, np.sin(half).T
        quaternions = np.stack((cos_x * cos_y, sin_x * cos_y, cos_x * sin_y, sin_x * sin_y), axis=1)
        return rest(model, count, quaternions, self.memory_dim)

    def memory(self, count: int, fields: Mapping[str, np.ndarray]) -> Float64[np.ndarray, "count memory"]:
        """From `desired_orien`, the other pen's quaternion; see `Task.memory`."""
        quaternions = recorded_field(count, fields, "desired_orien", 4)
        return np.concatenate((quaternions, np.zeros((count, 9))), axis=1)

    def configure(self, memory: Float64[np.ndarray, "envs memory"], expanded: Mapping[str, np.ndarray]) -> None:
        """Turns each row's other pen as its memory has it."""
        expanded["body_quat"][:, self._target] = memory[:, :4]

    def remember(
        self, memory: Float64[np.ndarray, "envs memory"], derived: Mapping[str, np.ndarray]
    ) -> Float64[np.ndarray, "envs memory"]:
        """The pen's position and both directions."""
        tops, bottoms = np.split(derived["site_xpos"][:, self._ends].reshape(len(memory), 12), 2, axis=1)
        position, directions = derived["xpos"][:, self._pen], (tops - bottoms) / self.length
        return np.concatenate((memory[:, :4], position, directions), axis=1)

    def controls(self, actions: Float32[np.ndarray, "envs action"]) -> Float64[np.ndarray, "envs action"]:
        """Actions over the actuators' ranges."""
        return self.hand.controls(actions)

    def observe(self, now: Moment) -> Float64[np.ndarray, "envs obs"]:
        """Joints of the hand, the pen's position, velocities and direction, the direction wanted, what both miss."""
        position, direction, wanted = np.split(now.memory[:, 4:], 3, axis=1)
        parts = (position, now.qvel[:, -6:], direction, wanted, position - self._spot, direction - wanted)
        return np.concatenate((now.qpos[:, :-6], *parts), axis=1)

    def reward(
        self,
        before: Moment,  # noqa: ARG002
        actions: Float32[np.ndarray, "envs action"],  # noqa: ARG002
        now: Moment,
    ) -> Float64[np.ndarray, "envs"]:
        """Likeness of directions less the distance; 10 or 60 more for holding it well; 5 less for a drop."""
        position, direction, wanted = np.split(now.memory[:, 4:], 3, axis=1)
        missed, likeness = distance(position, self._spot), (direction * wanted).sum(axis=1)
        near = missed < 0.075
        rewards = likeness - missed
        rewards += 10.0 * (near & (likeness > 0.9)) + 50.0 * (near & (likeness > 0.95))
        return rewards - 5.0 * self.terminated(now)

    def terminated(self, now: Moment) -> Bool[np.ndarray, "envs"]:
        """Whether the pen was dropped: its centre is below 7.5 cm."""
        return now.memory[:, 6] < 0.075
