"""A film of an episode, or of the same start before and after finetuning, side by side."""

import importlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float64, UInt8

from dtune.envs.collect import collect_episodes
from dtune.envs.mujoco import MujocoSimulator
from dtune.envs.tasks import TaskInfo, make_simulator, task_info
from dtune.errors import ConfigError, SimulatorError
from dtune.experiments.disk import TEMPORARY
from dtune.experiments.policies import find_checkpoint, load_policy, read_about
from dtune.experiments.reports.scenes import Scene

ENDINGS = (".mp4", ".gif")

Picture = UInt8[np.ndarray, "height width 3"]


@final
@dataclass(frozen=True, kw_only=True)
class Film:
    """What a film is of, and how it looks."""

    width: int = 480
    """Of one episode, in pixels; even."""
    height: int = 360
    """In pixels; even."""
    frames_per_second: float = 30.0
    """At most; steps are left out until it fits, so that time runs as in the world."""
    max_steps: int | None = None
    """Steps filmed; the whole episode where None."""
    seed: int = 0
    """Of the episode's start, the same for both policies."""
    return_to_go: float | None = None
    """Return asked for, in reward units; what each policy was made for where None."""

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            size = getattr(self, name)
            if size < 16 or size % 2:
                raise ConfigError(f"{name} must be even, and at least 16 pixels, got {size}")
        if not 0 < self.frames_per_second <= 240:
            raise ConfigError(f"frames per second must be above 0 and at most 240, got {self.frames_per_second}")
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(f"steps to film must be at least 1, got {self.max_steps}")


@final
@dataclass(frozen=True, kw_only=True)
class Walk:
    """One episode to be filmed."""

    info: TaskInfo
    simulator: MujocoSimulator
    snapshots: Float64[np.ndarray, "steps snapshot"]
    rewards: Float64[np.ndarray, "steps"]


def place_in_run(path: Path) -> Path:
    """Where the film of a policy goes if nobody says: into its run folder, named after the checkpoint.

    Raises:
        ConfigError: if there is no policy, or it lies in no run folder.
    """
    found = find_checkpoint(path).resolve()
    if found.parent.name != "checkpoints":
        raise ConfigError(f"{found} lies in no run folder: say with --out where the film is to go")
    return found.parent.parent / "videos" / f"{found.name}.mp4"


def record(path: Path, out: Path, *, before: Path | None = None, film: Film | None = None) -> dict[str, float]:
    """Films an episode of the policy at `path`, acting with its mode.

    Args:
        path: a run folder (its best checkpoint) or a checkpoint.
        out: the file; its ending says the format, `.mp4` or `.gif`.
        before: another, filmed from the same start at the left.
        film: how it looks.

    Returns:
        `return` and `length` of the episode, those of the other with `before_` in front, `frames` and
        `frames_per_second`.

    Raises:
        ConfigError: if there is no policy, the ending is another, a package or OpenGL is missing, or the two
            policies are of different tasks.
        SimulatorError: if the simulator breaks down.
    """
    film = film or Film()
    if out.suffix not in ENDINGS:
        raise ConfigError(f"{out} is no film: its name ends in {' or '.join(ENDINGS)}")
    _require("PIL" if out.suffix == ".gif" else "imageio_ffmpeg")
    walks = {"before": walk(before, film)} if before is not None else {}
    walks["after" if walks else ""] = walk(path, film)
    if len({one.info.name for one in walks.values()}) > 1:
        raise ConfigError(f"{before} and {path} are of different tasks: film two policies of the same")
    last = list(walks.values())[-1]
    step = last.simulator.model.opt.timestep * last.simulator.task.frame_skip  # s
    stride = max(1, math.ceil(1 / (film.frames_per_second * step) - 1e-6))
    rate = 1 / (stride * step)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(TEMPORARY + out.name)
    write = _write_gif if out.suffix == ".gif" else _write_mp4
    size = (film.width * len(walks), film.height)
    try:
        frames = write(temporary, pictures(walks, film, stride), size, rate)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    said = {f"{name}_" if name == "before" else "": one for name, one in walks.items()}
    summary = {f"{name}return": float(one.rewards.sum()) for name, one in said.items()}
    summary |= {f"{name}length": float(len(one.rewards)) for name, one in said.items()}
    return summary | {"frames": float(frames), "frames_per_second": rate}


def walk(path: Path, film: Film) -> Walk:
    """One episode of mean actions of the policy at `path`, with its snapshots."""
    directory = find_checkpoint(path).resolve()
    policy, about = load_policy(directory), read_about(directory)
    goal = film.return_to_go if film.return_to_go is not None else about.get("return_to_go")
    if "dataset" not in about or goal is None:
        raise ConfigError(f"{directory} does not say its task and the return to ask for: film a policy dtune trained")
    simulator = make_simulator(about["dataset"])
    generator = torch.Generator().manual_seed(film.seed)
    episodes, faulty = collect_episodes(policy, simulator, 1, goal, generator, sample=False, snapshots=True)
    if len(faulty):
        raise SimulatorError(f"the episode of {directory} met NaN or a simulator warning: choose another --seed")
    length = min(int(episodes.lengths[0]), film.max_steps or simulator.horizon)
    return Walk(
        info=task_info(about["dataset"]),
        simulator=simulator,
        snapshots=episodes.snapshots[0, :length].numpy(),
        rewards=episodes.steps.rewards[0, :length].double().numpy(),
    )


def pictures(walks: dict[str, Walk], film: Film, stride: int) -> Iterator[Picture]:
    """Every `stride`-th step of all walks side by side; who has ended stands still."""
    one = next(iter(walks.values()))
    longest = max(len(each.rewards) for each in walks.values())
    with Scene(one.simulator.task, one.info, width=film.width, height=film.height) as scene:
        for step in range(0, longest, stride):
            tiles = []
            for name, each in walks.items():
                now = min(step, len(each.rewards) - 1)
                walked, ended = (now, "") if now == step else (now + 1, " (ended)")
                said = f"step {walked}   return {each.rewards[:walked].sum():.1f}{ended}"
                tiles.append(_captioned(scene.draw(each.snapshots[now]), [name, said] if name else [said]))
            yield np.concatenate(tiles, axis=1)


def _captioned(picture: Picture, lines: Sequence[str]) -> Picture:
    """Writes lines into the upper left corner, where there is room for them."""
    height = len(picture)
    if height < 96:
        return picture
    from PIL import Image, ImageDraw, ImageFont

    image, margin = Image.fromarray(picture), height // 40
    draw = ImageDraw.Draw(image, "RGBA")
    text, font = "\n".join(lines), ImageFont.load_default(size=max(11, height // 22))
    left, top, right, bottom = draw.multiline_textbbox((2 * margin, 2 * margin), text, font=font)
    draw.rectangle((left - margin, top - margin, right + margin, bottom + margin), fill=(0, 0, 0, 150))
    draw.multiline_text((2 * margin, 2 * margin), text, fill="white", font=font)
    return np.asarray(image)


def _write_mp4(path: Path, frames: Iterator[Picture], size: tuple[int, int], rate: float) -> int:
    import imageio_ffmpeg

    writer = imageio_ffmpeg.write_frames(str(path), size, fps=rate, quality=7, macro_block_size=2)
    writer.send(None)
    count = 0
    try:
        for count, frame in enumerate(frames, start=1):  # noqa: B007
            writer.send(np.ascontiguousarray(frame))
    finally:
        writer.close()
    return count


def _write_gif(path: Path, frames: Iterator[Picture], size: tuple[int, int], rate: float) -> int:  # noqa: ARG001
    from PIL import Image

    images = [Image.fromarray(frame).quantize(128) for frame in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=round(1000 / rate), loop=0)
    return len(images)


def _require(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(f"films need {package}, which is not installed: pip install 'dtune[video]'") from error
