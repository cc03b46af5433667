"""Replay files: the walks a run was stopped for, to be walked again step by step.

One `.npz` file that nothing is unpickled from: `header` holds JSON as bytes, `snapshot_0` and `actions_0`, … the walks.
"""

import io
import json
import math
import reprlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from dtune.data.guards import check_memory, damage_explained
from dtune.data.npz import open_archive, read_array, read_header
from dtune.envs.simulator import Outcome, Restorable
from dtune.envs.watched import KEPT, Walk, Watched
from dtune.errors import DataError, NumericError, SimulatorError
from dtune.experiments import disk
from dtune.experiments.folder import versions

FORMAT = 1
HEADER_LIMIT = 2**16  # bytes of JSON: a reason and some versions
PARTS = {"snapshot": (1, np.dtype(np.float64)), "actions": (2, np.dtype(np.float32))}
"""Of a walk's arrays: the dimensions, and what numbers."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What a replay file holds."""

    task: str | None
    """The task or dataset whose simulator was walked in; None for a simulator of the user's own."""
    iteration: int
    """Of the run, counted from 1."""
    reason: str
    """What the run was stopped with."""
    versions: Mapping[str, str | None]
    """Of the packages that the numbers depend on."""
    walks: Sequence[Walk]
    """Those that broke; where none did, some of the last that were learned from."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One step of a walk that is walked again."""

    step: int
    """From 0, at the walk's start."""
    reward: float
    """In environment units."""
    observation: float
    """The largest |number| observed after the step."""
    action: float
    """The largest |number| of the action."""
    wrong: str | None
    """What is not finite, or that the simulator reports a fault; None while all is well."""


def write_replay(path: Path, walks: Sequence[Walk], *, task: str | None, iteration: int, reason: str) -> None:
    """Writes a replay file in one step."""
    header = {"format": FORMAT, "task": task, "iteration": iteration, "reason": reason, "walks": len(walks),
              "versions": versions()}  # fmt: skip
    arrays: dict[str, Any] = {"header": np.frombuffer(json.dumps(header).encode(), np.uint8)}
    for number, walk in enumerate(walks):
        arrays |= {f"snapshot_{number}": walk.snapshot, f"actions_{number}": walk.actions}
    content = io.BytesIO()
    np.savez(content, **arrays)
    disk.replace(path, content.getvalue())


def keep_walks(
    error: NumericError, path: Path, watched: Sequence[Watched], *, task: str | None, iteration: int
) -> NumericError:
    """Writes the walks that led to an error, of the first simulator that has some that broke, or some at all.

    Returns:
        The error, which says where they are if they could be had.
    """
    for simulator in sorted(watched, key=lambda each: not each.broken):
        with suppress(SimulatorError, OSError):  # one cannot go back in it, or the disk is full
            if walks := simulator.walks():
                write_replay(path, walks, task=task, iteration=iteration, reason=str(error))
                return NumericError(f"{error}; `dtune replay {path}` walks there again, step by step")
    return error


def read_replay(path: Path) -> Replay:
    """Reads what `write_replay` wrote.

    Raises:
        DataError: if there is no such file, or it is damaged or none, or claims more than it can hold.
    """
    with damage_explained(str(path), "replay file"), open_archive(path) as archive:
        header = _read_document(archive, str(path))
        if header["format"] != FORMAT:
            raise DataError(
                f"{path} is of replay format {header['format']!r} and this dtune reads {FORMAT}: replay it with the"
                f" versions that wrote it, {header.get('versions')}."
            )
        walks = _read_walks(archive, header["walks"], path)
        return Replay(
            task=None if header["task"] is None else str(header["task"]),
            iteration=int(header["iteration"]),
            reason=str(header["reason"]),
            versions={str(name): version and str(version) for name, version in header["versions"].items()},
            walks=walks,
        )


def _read_document(archive: zipfile.ZipFile, path: str) -> dict[str, Any]:
    where = f"{path}: 'header'"
    shape, kind = read_header(archive, "header", where)
    if len(shape) != 1 or kind != np.uint8 or shape[0] > HEADER_LIMIT:
        raise DataError(f"{where} is not at most {HEADER_LIMIT:,} bytes of JSON: it is no replay file.")
    return dict(json.loads(read_array(archive, "header", where).tobytes()))


def _read_walks(archive: zipfile.ZipFile, count: object, path: Path) -> list[Walk]:
    """Reads walks after all their headers: `write_replay` compresses nothing, so none may claim more than is there."""
    if type(count) is not int or not 0 <= count <= KEPT:
        raise DataError(f"{path} claims {reprlib.repr(count)} walks and at most {KEPT} are kept: it is no replay file.")
    keys = [(f"{part}_{number}", part) for number in range(count) for part in PARTS]
    sizes = [_size(archive, key, part, f"{path}: {key!r}") for key, part in keys]
    if sum(sizes) > path.stat().st_size:
        raise DataError(
            f"{path} claims {sum(sizes):,} bytes of walks and has {path.stat().st_size:,}: dtune compresses none, so"
            " it is no replay file."
        )
    check_memory(path, sizes)
    read = {key: read_array(archive, key, f"{path}: {key!r}") for key, _ in keys}
    return [Walk(snapshot=read[f"snapshot_{number}"], actions=read[f"actions_{number}"]) for number in range(count)]


def _size(archive: zipfile.ZipFile, key: str, part: str, where: str) -> int:
    """Bytes that an array of a walk needs."""
    shape, kind = read_header(archive, key, where)
    dimensions, wanted = PARTS[part]
    if len(shape) != dimensions or kind != wanted:
        raise DataError(f"{where} holds {kind} of shape {shape}, not {dimensions}-d {wanted}: it is no replay file.")
    return math.prod(shape) * kind.itemsize


def walk_again(walk: Walk, simulator: Restorable) -> Iterator[Moment]:
    """Steps along `walk`, up to the first thing that is wrong, or to where its episode or its actions end.

    Args:
        walk: of a replay file.
        simulator: of the task the file names.

    Raises:
        SimulatorError: if the walk is none of this simulator's.
    """
    simulator.restore(walk.snapshot[None])
    for step, action in enumerate(walk.actions):
        outcome = simulator.step(torch.from_numpy(action)[None])
        wrong = _wrong(action, outcome)
        yield Moment(
            step=step,
            reward=outcome.rewards.item(),
            observation=outcome.observations.abs().max().item(),
            action=float(np.abs(action).max()),
            wrong=wrong,
        )
        if wrong or outcome.terminated.item() or outcome.truncated.item():
            return


def _wrong(action: Float32[np.ndarray, "action"], outcome: Outcome) -> str | None:
    if not np.isfinite(action).all():
        return f"the action, at index {int(np.flatnonzero(~np.isfinite(action))[0])}"
    bad = (~outcome.observations[0].isfinite()).nonzero()
    if len(bad):
        return f"the observation, at index {int(bad[0])}"
    if not outcome.rewards.isfinite().all():
        return "the reward"
    return "the physics: the simulator met NaN or a warning" if outcome.faulty.item() else None
