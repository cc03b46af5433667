"""The MuJoCo side of a Gymnasium environment: what of it a snapshot has to hold."""

from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float64

STATE = mujoco.mjtState.mjSTATE_INTEGRATION
_PARTS = {
    "clock of the physics (time)": mujoco.mjtState.mjSTATE_TIME,
    "positions (qpos)": mujoco.mjtState.mjSTATE_QPOS,
    "velocities (qvel)": mujoco.mjtState.mjSTATE_QVEL,
    "actuators (act)": mujoco.mjtState.mjSTATE_ACT,
    "warm start (qacc_warmstart)": mujoco.mjtState.mjSTATE_WARMSTART,
    "controls (ctrl)": mujoco.mjtState.mjSTATE_CTRL,
    "applied forces (qfrc_applied, xfrc_applied)": (
        mujoco.mjtState.mjSTATE_QFRC_APPLIED | mujoco.mjtState.mjSTATE_XFRC_APPLIED
    ),
    "switched constraints (eq_active)": mujoco.mjtState.mjSTATE_EQ_ACTIVE,
    "mocap bodies (mocap_pos, mocap_quat)": (
        mujoco.mjtState.mjSTATE_MOCAP_POS | mujoco.mjtState.mjSTATE_MOCAP_QUAT
    ),
    "user data (userdata)": mujoco.mjtState.mjSTATE_USERDATA,
}  # fmt: skip


class Physics:
    """Model and data of one MuJoCo environment, and the fields of the model that change while it runs.

    Args:
        model: its world.
        data: the state of it.
        fields: names as `moving_fields` gives them.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, fields: tuple[str, ...] = ()) -> None:
        self.model, self.data, self.fields = model, data, fields
        self._physical = mujoco.mj_stateSize(model, STATE)
        self.size = self._physical + sum(np.size(_get(model, name)) for name in fields)

    @classmethod
    def of(cls, env: Any, fields: tuple[str, ...] = ()) -> "Physics | None":
        """That of a Gymnasium environment; None where it has none."""
        model, data = getattr(env.unwrapped, "model", None), getattr(env.unwrapped, "data", None)
        if isinstance(model, mujoco.MjModel) and isinstance(data, mujoco.MjData):
            return cls(model, data, fields)
        return None

    def save(self) -> Float64[np.ndarray, "size"]:
        """The integration state, warm start included, and the fields."""
        fields = [np.ravel(_get(self.model, name)) for name in self.fields]
        return np.concatenate([self._state(), *fields]).astype(np.float64)

    def load(self, values: Float64[np.ndarray, "size"]) -> None:
        """The inverse of `save`. What MuJoCo derives from it stays as it is."""
        mujoco.mj_setState(self.model, self.data, np.ascontiguousarray(values[: self._physical]), STATE)
        start = self._physical
        for name in self.fields:
            old = _get(self.model, name)
            stop = start + np.size(old)
            _set(self.model, name, values[start:stop].reshape(np.shape(old)))
            start = stop

    def forget_warnings(self) -> None:
        """Sets the counters to 0: a silent reset leaves 1, however many there were before."""
        self.data.warning.number[:] = 0

    def warned(self) -> bool:
        """Whether it met a fault since then: MuJoCo resets silently at a NaN, and only these counters tell."""
        return bool(np.any(self.data.warning.number))

    def named(self) -> dict[str, str]:
        """Every part of the state and every field of the model, as text, under a name to tell a user."""
        fields = {f"model field {name}": data.hex() for name, data in model_fields(self.model).items()}
        return state_parts(self.model, self._state()) | fields

    def _state(self) -> Float64[np.ndarray, "numbers"]:
        state = np.empty(self._physical)
        mujoco.mj_getState(self.model, self.data, state, STATE)
        return state


def state_parts(model: mujoco.MjModel, state: Float64[np.ndarray, "numbers"]) -> dict[str, str]:
    """The parts of an integration state, as text, under names to tell a user."""
    parts = {}
    for name, bits in _PARTS.items():
        part = np.empty(mujoco.mj_stateSize(model, bits))
        mujoco.mj_extractState(model, state, STATE, part, bits)
        parts[name] = part.tobytes().hex()
    return parts


def model_fields(model: mujoco.MjModel) -> dict[str, bytes]:
    """All that an environment may write to in a model, by name."""
    arrays = {name: value for name in dir(model) if isinstance(value := getattr(model, name, None), np.ndarray)}
    options = {f"opt.{name}": getattr(model.opt, name) for name in dir(model.opt) if not name.startswith("_")}
    numbers = {name: value for name, value in options.items() if isinstance(value, np.ndarray | int | float)}
    return {name: np.asarray(value).tobytes() for name, value in {**arrays, **numbers}.items()}


def moving_fields(before: dict[str, bytes], model: mujoco.MjModel) -> set[str]:
    """Names of the fields that differ from `before`, numbers all."""
    now = model_fields(model)
    moved = {name for name in now if now[name] != before[name]}
    return {name for name in moved if np.asarray(_get(model, name)).dtype.kind in "biuf"}


def _get(model: mujoco.MjModel, name: str) -> Any:
    return getattr(model.opt, name[4:]) if name.startswith("opt.") else getattr(model, name)


def _set(model: mujoco.MjModel, name: str, value: np.ndarray) -> None:
    if name.startswith("opt."):
        old = getattr(model.opt, name[4:])
        setattr(model.opt, name[4:], value if isinstance(old, np.ndarray) else type(old)(value.item()))
    else:
        getattr(model, name)[...] = value
