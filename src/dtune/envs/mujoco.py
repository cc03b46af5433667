"""One batched engine for every MuJoCo world; a task gives it the rules.

All rows are stepped by `mujoco.batch.Batch`, whose simulations are rows of one array. Going back is one copy;
rows that go on are moved to the front, so that those that have ended cost nothing. Nothing loops over them.
"""

from contextlib import suppress
from math import isfinite
from typing import final

import mujoco
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from mujoco.batch import Batch, SimulationError
from torch import Tensor

from dtune.envs.physics import state_parts
from dtune.envs.rules import Moment, Task
from dtune.envs.simulator import Outcome
from dtune.errors import ConfigError, SimulatorError

# It has the warm start of the constraint solver. Without (FULLPHYSICS, or qpos and qvel alone) a restored Ant
# drifts away from the original: by 18 in return after 400 steps.
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION


@final
class MujocoSimulator:
    """Many episodes of a MuJoCo task, restorable bit for bit (a `Restorable`).

    A snapshot row is MuJoCo's integration state, the task's memory and the clock.

    Args:
        task: the rules of the world.
        threads: threads that step the physics, the caller's included. Results do not depend on it.

    Raises:
        ConfigError: if `threads` is less than 1.
    """

    def __init__(self, task: Task, threads: int = 1) -> None:
        if threads < 1:
            raise ConfigError(f"threads is {threads}, but the physics need at least 1 thread.")
        self.task = task
        self.model = task.model()
        self.observation_dim = task.observation_dim
        self.action_dim = task.action_dim
        self.horizon = task.horizon
        self.threads = threads
        self._rest = np.empty(mujoco.mj_stateSize(self.model, _STATE))
        mujoco.mj_getState(self.model, mujoco.MjData(self.model), self._rest, _STATE)
        self._batch: Batch | None = None
        self._twins: dict[int, list[MujocoSimulator]] = {}
        self._memory: Float64[np.ndarray, "envs memory"]
        self._clock: Int64[np.ndarray, "envs"]

    def reset(self, count: int, generator: torch.Generator) -> Float64[Tensor, "count obs"]:
        """Starts `count` fresh episodes as rows 0..count-1; see `Simulator.reset`."""
        return self._begin(self.task.draw(self.model, count, generator))

    def place(
        self, qpos: Float64[np.ndarray, "envs nq"], qvel: Float64[np.ndarray, "envs nv"], **fields: np.ndarray
    ) -> Float64[Tensor, "envs obs"]:
        """Starts one episode a row at recorded positions and velocities, with the clock at 0.

        Args:
            qpos: generalised positions (m, rad, quaternions).
            qvel: generalised velocities (m/s, rad/s).
            fields: what else the task's start consists of, one row an environment.

        Returns:
            First observations. Positions and velocities are not all of a world's state: what follows is close
            to what was recorded, but not equal to the last bit, unless the record is of an episode's start.

        Raises:
            SimulatorError: if a number is not finite or the sizes are not the world's.
            ConfigError: if a field is missing, or is none of this task's.
        """
        count = len(qpos)
        if qpos.shape != (count, self.model.nq) or qvel.shape != (count, self.model.nv):
            raise SimulatorError(
                f"qpos {qpos.shape} and qvel {qvel.shape} do not fit this world: give one row an environment "
                f"of {self.model.nq} and {self.model.nv} numbers."
            )
        if not (np.isfinite(qpos).all() and np.isfinite(qvel).all()):
            raise SimulatorError("qpos or qvel holds NaN or infinity: leave those rows out.")
        return self._begin(Moment(qpos, qvel, self.task.memory(count, fields)))

    def step(self, actions: Float32[Tensor, "envs action"]) -> Outcome:
        """Advances every row by one step; see `Simulator.step`. Faulty rows show zeros and are terminated."""
        with np.errstate(invalid="ignore", over="ignore"):  # a faulty row may hold anything
            return self._step(self._checked(actions))

    def _step(self, actions: Float32[np.ndarray, "envs action"]) -> Outcome:
        broken = _not_finite(actions)
        if broken is not None:
            actions = np.where(broken[:, None], np.float32(0), actions)
        before = Moment(self._qpos.copy(), self._qvel.copy(), self._memory)
        self._controls[:] = self.task.controls(actions)
        failed = self._run_physics()
        self._clock += 1
        now = self._now()
        observations, terminated = self.task.observe(now), self.task.terminated(now)
        rewards = self.task.reward(before, actions, now)
        faulty = np.zeros(len(actions), bool)
        for rows in (broken, failed, _not_finite(rewards), _not_finite(self._state), _not_finite(observations)):
            if rows is not None:
                faulty |= rows
        if faulty.any():  # zeros, because NaN would survive the masks of those who leave the row out
            observations[faulty] = 0.0
            rewards[faulty] = 0.0
            terminated |= faulty
        truncated = (self._clock >= self.horizon) & ~terminated
        return Outcome(*map(torch.from_numpy, (observations, rewards, terminated, truncated, faulty)))

    def keep(self, rows: Int64[Tensor, "kept"]) -> None:
        """Keeps `rows` and moves them to the front; see `Simulator.keep`."""
        kept = rows.cpu().numpy()
        self._require_rows()
        if kept.size and (kept.min() < 0 or kept.max() >= len(self._state)):
            raise SimulatorError(f"rows to keep must be in [0, {len(self._state)}), got {kept.tolist()}.")
        self._fill(self._state[kept], self._memory[kept], self._clock[kept])

    def snapshot(self) -> Float64[np.ndarray, "envs width"]:
        """Integration state, memory and clock of every row; see `Restorable.snapshot`."""
        self._require_rows()
        return np.concatenate((self._state, self._memory, self._clock[:, None]), axis=1)

    def restore(self, snapshots: Float64[np.ndarray, "envs width"]) -> Float64[Tensor, "envs obs"]:
        """Goes on from `snapshots`; see `Restorable.restore`.

        Raises:
            SimulatorError: if the rows are not of this task's width.
        """
        physics, memory = self._rest.size, self.task.memory_dim
        if snapshots.ndim != 2 or snapshots.shape[1] != physics + memory + 1:
            raise SimulatorError(
                f"snapshots of shape {snapshots.shape} are not of this task, whose rows have "
                f"{physics + memory + 1} numbers: restore only what a simulator of the same task gave."
            )
        state, remembered, clock = np.split(snapshots, (physics, physics + memory), axis=1)
        self._fill(state, remembered.copy(), clock[:, 0].astype(np.int64))
        return torch.from_numpy(self.task.observe(self._now()))

    def twins(self, count: int, threads: int) -> "list[MujocoSimulator]":
        """Others of the same task, made once; see `Divisible.twins`."""
        made = self._twins.setdefault(threads, [])
        made += [MujocoSimulator(self.task, threads) for _ in range(count - len(made))]
        return made[:count]

    def named(self) -> list[dict[str, str]]:
        """By row, all that its state consists of, as text by name; see `Inspectable.named`."""
        self._require_rows()
        others = {"memory of the task": self._memory, "clock": self._clock}
        others |= {f"model field {name}": values for name, values in self._expanded.items()}
        return [
            state_parts(self.model, state) | {name: values[row].tobytes().hex() for name, values in others.items()}
            for row, state in enumerate(self._state)
        ]

    def _begin(self, start: Moment) -> Float64[Tensor, "envs obs"]:
        """Starts rows at rest but for `start`, with the clock at 0."""
        count = len(start.qpos)
        self._fill(np.tile(self._rest, (count, 1)), start.memory, np.zeros(count, np.int64))
        self._qpos[:], self._qvel[:] = start.qpos, start.qvel
        assert self._batch is not None
        try:
            self._batch.forward(self._ids)
        except SimulationError as error:
            raise SimulatorError(f"MuJoCo cannot start an episode there: {error}") from error
        self._memory = np.array(self.task.remember(self._memory, self._derived))
        return torch.from_numpy(self.task.observe(self._now()))

    def _fill(
        self,
        state: Float64[np.ndarray, "envs state"],
        memory: Float64[np.ndarray, "envs memory"],
        clock: Int64[np.ndarray, "envs"],
    ) -> None:
        """Replaces all rows. `memory` and `clock` are taken over, `state` is copied."""
        self._make_room(len(state))
        self._state[:], self._memory, self._clock = state, memory, clock
        self.task.configure(memory, self._expanded)

    def _make_room(self, count: int) -> None:
        """Makes the batch's first `count` simulations the rows; allocates for the largest count seen."""
        if self._batch is None or count > self._batch.nsim:
            self._batch = Batch(self.model, max(count, 1), self.threads)
        batch = self._batch
        self._ids = None if count == batch.nsim else np.arange(count, dtype=np.int32)
        self._state = batch.state[:count]
        self._qpos, self._qvel = batch.bind("qpos")[:count], batch.bind("qvel")[:count]
        self._controls = batch.bind("ctrl")[:count]
        self._derived = {name: batch.bind(name)[:count] for name in self.task.derived}
        self._expanded = {name: batch.expand(name)[:count] for name in self.task.expanded}

    def _run_physics(self) -> Bool[np.ndarray, "envs"] | None:
        """Runs the substeps of one step and returns which rows failed; None where none did."""
        batch = self._batch
        assert batch is not None
        count = len(self._state)
        warned = batch.warning[:count, :, 1]
        warned[:] = 0
        with suppress(SimulationError):  # the other rows ran; `status` tells which did not
            batch.step(self._ids, nstep=self.task.frame_skip)
        self._memory = np.array(self.task.remember(self._memory, self._derived))
        # MuJoCo resets a simulation silently when it meets a NaN, and the state looks finite again: only the
        # counters tell. Every kind counts: a full contact buffer drops contacts, which spoils numbers too.
        # That reset sets the counters back as well, so a second fault counts up to 1 again: hence the zeros above.
        status = batch.status[:count]
        return warned.any(axis=1) | (status != 0) if warned.any() or status.any() else None

    def _now(self) -> Moment:
        return Moment(self._qpos, self._qvel, self._memory)

    def _checked(self, actions: Float32[Tensor, "envs action"]) -> Float32[np.ndarray, "envs action"]:
        self._require_rows()
        if actions.shape != (len(self._state), self.action_dim):
            raise SimulatorError(
                f"actions have shape {tuple(actions.shape)}, but there are {len(self._state)} rows of "
                f"{self.action_dim} numbers each: give one action a row that was kept."
            )
        # contiguous: the order of summation, hence a control cost's last bit, depends on the layout
        return np.ascontiguousarray(actions.detach().cpu().numpy())

    def _require_rows(self) -> None:
        if self._batch is None:
            raise SimulatorError("no episode has been started: call reset, restore or place first.")


def _not_finite(values: Float[np.ndarray, "envs *numbers"]) -> Bool[np.ndarray, "envs"] | None:
    """Which rows hold NaN or infinity; None, which is found faster, where none does."""
    if isfinite(np.add.reduce(values, axis=None)):  # what is not finite never leaves a sum
        return None
    rows = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    return rows if rows.any() else None  # large numbers may add up to infinity
