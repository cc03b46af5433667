"""Pictures of recorded simulator states, drawn by MuJoCo without a display."""

import importlib
import os
import subprocess
import sys
from functools import cache
from types import TracebackType
from typing import Any, final

import mujoco
import numpy as np
from jaxtyping import Float64, UInt8

from dtune.envs.physics import STATE
from dtune.envs.rules import Task
from dtune.envs.tasks import TaskInfo
from dtune.errors import ConfigError, SimulatorError

BACKENDS = ("egl", "osmesa")
"""Ways to OpenGL without a display, in the order they are tried."""

_TRIAL = "import sys; from mujoco.{0} import GLContext; c = GLContext(8, 8); c.make_current(); c.free()"
_MAX_GEOMS = 10_000


@cache
def backend() -> str:
    """The way to OpenGL that works here: $MUJOCO_GL where it is set.

    Raises:
        ConfigError: if none does, saying what to install.
    """
    wanted = os.environ.get("MUJOCO_GL", "").lower().strip()
    for name in (wanted,) if wanted in BACKENDS else BACKENDS:
        environment = {key: value for key, value in os.environ.items() if key != "PYOPENGL_PLATFORM"}
        command = [sys.executable, "-c", _TRIAL.format(name)]  # elsewhere: a driver that fails may crash
        tried = subprocess.run(
            command, env={**environment, "MUJOCO_GL": name}, capture_output=True, stdin=subprocess.DEVNULL
        )
        if tried.returncode == 0:
            return name
    raise ConfigError(
        f"no picture can be drawn here: OpenGL works through none of {', '.join(BACKENDS)}; install one (Debian,"
        " Ubuntu: apt install libegl1 libgl1-mesa-dri, or libosmesa6) and leave MUJOCO_GL unset."
    )


@final
class Scene:
    """One task's world, ready to be drawn; use it as a context manager.

    Args:
        task: the rules of the world; its model is loaded anew, so that no simulator is touched.
        info: says which camera looks at it.
        width: of the pictures, in pixels.
        height: of the pictures, in pixels.

    Raises:
        ConfigError: if OpenGL does not work here.
    """

    def __init__(self, task: Task, info: TaskInfo, *, width: int, height: int) -> None:
        self._task, self._info, self._model = task, info, task.model()
        self._data = mujoco.MjData(self._model)
        self._shape = (height, width)
        self._model.vis.global_.offwidth, self._model.vis.global_.offheight = width, height
        self._expanded = {name: getattr(self._model, name)[None] for name in task.expanded}
        self._gl = _context(backend(), width, height)
        self._gl.make_current()
        self._render = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._render)
        self._scene, self._options = mujoco.MjvScene(self._model, _MAX_GEOMS), mujoco.MjvOption()
        self._camera = _camera(self._model, info.camera)

    def draw(self, snapshot: Float64[np.ndarray, "numbers"]) -> UInt8[np.ndarray, "height width 3"]:
        """The world at a snapshot of a `MujocoSimulator` of this task, as RGB.

        Raises:
            SimulatorError: if the snapshot is of another task.
        """
        physics = mujoco.mj_stateSize(self._model, STATE)
        if len(snapshot) != physics + self._task.memory_dim + 1:
            raise SimulatorError(
                f"a snapshot of {len(snapshot)} numbers is not of {self._info.name}, whose have"
                f" {physics + self._task.memory_dim + 1}."
            )
        memory = snapshot[physics:-1]
        self._task.configure(memory[None], self._expanded)
        mujoco.mj_setState(self._model, self._data, snapshot[:physics].copy(), STATE)
        mujoco.mj_forward(self._model, self._data)
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(
            self._model, self._data, self._options, None, self._camera, everything, self._scene
        )  # fmt: skip
        if self._info.goal is not None:
            self._mark(memory[list(self._info.goal)])
        height, width = self._shape
        place, picture = mujoco.MjrRect(0, 0, width, height), np.empty((height, width, 3), np.uint8)
        mujoco.mjr_render(place, self._scene, self._render)
        mujoco.mjr_readPixels(picture, None, place, self._render)
        return picture[::-1].copy()  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Gives the graphics memory back."""
        self._render.free()
        self._gl.free()

    def __enter__(self) -> "Scene":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _mark(self, place: Float64[np.ndarray, "2"]) -> None:
        """Puts a red post where the goal is, which the world itself does not show."""
        geom = self._scene.geoms[self._scene.ngeom]
        mujoco.mjv_initGeom(
            geom, mujoco.mjtGeom.mjGEOM_CYLINDER, np.array([0.5, 0.5, 0.6]), np.array([*place, 0.6]),
            np.eye(3).ravel(), np.array([0.9, 0.2, 0.1, 0.6], np.float32),
        )  # fmt: skip
        self._scene.ngeom += 1


def _context(name: str, width: int, height: int) -> Any:
    """An OpenGL context of the backend that was found to work."""
    os.environ["MUJOCO_GL"] = name  # MuJoCo looks when it loads its functions
    return importlib.import_module(f"mujoco.{name}").GLContext(width, height)


def _camera(model: mujoco.MjModel, name: str | None) -> mujoco.MjvCamera:
    """The camera of that name, or one that sees the whole world from above."""
    camera = mujoco.MjvCamera()
    if name is None:
        mujoco.mjv_defaultFreeCamera(model, camera)
        camera.distance, camera.elevation = 1.1 * model.stat.extent, -65
    else:
        camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        camera.fixedcamid = model.camera(name).id
    return camera
