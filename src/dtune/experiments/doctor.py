"""Whether a machine has what runs need: versions, threads, graphics, disk."""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from dtune.findings import Finding, WrongError, find, require

# Everything else is imported where it is looked at: what is missing or broken has to be a line, not the end.

NEEDED = ("torch", "numpy", "mujoco", "gymnasium", "h5py", "safetensors")
EXTRAS = {
    "adroit": "gymnasium_robotics", "minari": "minari", "video": "imageio_ffmpeg", "onnx": "onnxruntime",
    "hub": "huggingface_hub", "wandb": "wandb", "trackio": "trackio", "ray": "ray",
}  # fmt: skip
"""What `pip install 'dtune[NAME]'` adds, and the package that it is."""
KNOWN_BAD: Mapping[tuple[str, str], str] = {
    ("mujoco", "4.0.0"): "its solver factorises wrongly and walks diverge: install mujoco>=3.17,!=4.0.0",
}
"""Versions that run and give wrong numbers."""
LEAST_FREE = 2 * 2**30
"""Bytes that a run of the paper's size and one of its datasets take together, roughly."""
_DRAW = "import mujoco; m = mujoco.MjModel.from_xml_string('<mujoco/>'); mujoco.Renderer(m, 16, 16).close()"
_DRAW_SECONDS = 20


def examine(folder: Path) -> list[Finding]:
    """Looks at this machine, in seconds.

    Args:
        folder: where runs would be written.
    """
    return [
        find("python", _python),
        *(find(name, partial(_package, name)) for name in NEEDED),
        find("physics", _physics),
        find("threads", _threads, needed=False),
        find("graphics", _graphics, needed=False),
        find("gpu", _gpu, needed=False),
        find("folder", partial(_folder, folder)),
        find("disk", partial(_disk, folder), needed=False),
        find("data", _data, needed=False),
        *(find(name, partial(_extra, name, package), needed=False)
          for name, package in EXTRAS.items()),
    ]  # fmt: skip


def _python() -> str:
    said = f"{platform.python_version()} on {platform.platform()}"
    require((3, 11) <= sys.version_info[:2] <= (3, 13), f"{said}: dtune is tested on 3.11 to 3.13")
    return said


def _package(name: str) -> str:
    """Imports a package; its version."""
    importlib.import_module(name)
    version = importlib.metadata.version(name)
    bad = KNOWN_BAD.get((name, version))
    require(bad is None, f"{version} is known to be bad: {bad}")
    return version


def _physics() -> str:
    import torch

    from dtune.envs.tasks import make_simulator

    simulator = make_simulator("hopper")
    simulator.reset(2, torch.Generator().manual_seed(0))
    before = simulator.snapshot()
    actions = torch.zeros(2, simulator.action_dim)
    first = [simulator.step(actions).observations for _ in range(3)]
    simulator.restore(before)
    again = [simulator.step(actions).observations for _ in range(3)]
    require(all(map(torch.equal, first, again)), "the hopper does not go back to where it was: reinstall mujoco")
    return "the hopper goes back, and repeats its steps to the last bit"


def _threads() -> str:
    import torch

    usable, ours = len(os.sched_getaffinity(0)), torch.get_num_threads()
    limits = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ}
    said = f"{usable} cores for this process, torch takes {ours}" + (f" ({limits})" if limits else "")
    require(ours <= usable, f"{said}: they wait for each other; set OMP_NUM_THREADS={usable}")
    return said


def _graphics() -> str:
    """The first of MuJoCo's backends that draws, each tried in a process of its own, which it may take down."""
    chosen = os.environ.get("MUJOCO_GL")
    for backend in [chosen] if chosen else ["egl", "osmesa", "glfw"]:
        environment = {**os.environ, "MUJOCO_GL": backend, "OMP_NUM_THREADS": "1"}
        with_limit = {"timeout": _DRAW_SECONDS, "stdin": subprocess.DEVNULL, "capture_output": True}
        try:
            done = subprocess.run([sys.executable, "-c", _DRAW], env=environment, **with_limit)  # type: ignore[call-overload]
        except subprocess.TimeoutExpired:
            continue
        if not done.returncode:
            return f"MUJOCO_GL={backend} draws" + ("" if chosen else ": set it to draw episodes")
    raise WrongError(
        f"MUJOCO_GL={chosen} does not draw: unset it" if chosen else
        "none of egl, osmesa and glfw draws: install libegl1 or libosmesa6 to draw episodes; training needs none"
    )  # fmt: skip


def _gpu() -> str:
    import torch

    require(torch.cuda.is_available(), "none that torch can use: runs are on the CPU")
    return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def _above(folder: Path) -> Path:
    """The folder, or the nearest one above that is there: it would be made in that one."""
    whole = folder.resolve()
    return next(place for place in (whole, *whole.parents) if place.exists())


def _folder(folder: Path) -> str:
    there = _above(folder)
    require(there.is_dir(), f"{there} is a file, not a folder: choose another --out")
    require(os.access(there, os.W_OK | os.X_OK), f"{there} cannot be written: choose another --out")
    return f"{there} can be written" + ("" if there == folder.resolve() else f", where {folder} would be made")


def _disk(folder: Path) -> str:
    free = shutil.disk_usage(_above(folder)).free
    said = f"{free / 2**30:.1f} GiB free in {_above(folder)}"
    require(free >= LEAST_FREE, f"{said}: make room, a run of the paper's size may take {LEAST_FREE >> 30} GiB")
    return said


def _data() -> str:
    from dtune.experiments.loading import data_folder

    return f"datasets are looked for in {data_folder()}"


def _extra(name: str, package: str) -> str:
    """The version of an optional package, found but not run: importing some takes seconds."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError) as error:
        raise WrongError(f"{package} is broken ({error}): pip install --force-reinstall 'dtune[{name}]'") from error
    require(spec is not None, f"{package} is not installed: pip install 'dtune[{name}]'")
    return f"{package} {importlib.metadata.version(package)}"
