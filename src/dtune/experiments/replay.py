"""Replay files: the walks a run was stopped for, to be walked again step by step.

One `.npz` file that nothing is unpickled from: `header` holds JSON as bytes, `snapshot_0` and `actions_0`, … the walks.
"""

import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from dtune.data.guards import damage_explained
from dtune.data.npz import read_array
from dtune.envs.simulator import Outcome, Restorable
from dtune.envs.watched import Walk
from dtune.errors import DataError
from dtune.experiments import disk
from dtune.experiments.folder import versions

FORMAT = 1


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


def read_replay(path: Path) -> Replay:
    """Reads what `write_replay` wrote.

    Raises:
        DataError: if there is no such file, or it is damaged or none.
    """
    with damage_explained(str(path), "replay file"), zipfile.ZipFile(path) as archive:
        header = json.loads(read_array(archive, "header", f"{path}: 'header'").tobytes())
        if header["format"] != FORMAT:
            raise DataError(
                f"{path} is of replay format {header['format']!r} and this dtune reads {FORMAT}: replay it with the"
                f" versions that wrote it, {header.get('versions')}."
            )
        walks = [_read_walk(archive, number, str(path)) for number in range(header["walks"])]
        return Replay(
            task=None if header["task"] is None else str(header["task"]),
            iteration=int(header["iteration"]),
            reason=str(header["reason"]),
            versions={str(name): version and str(version) for name, version in header["versions"].items()},
            walks=walks,
        )


def _read_walk(archive: zipfile.ZipFile, number: int, path: str) -> Walk:
    snapshot, actions = (
        read_array(archive, f"{kind}_{number}", f"{path}: '{kind}_{number}'") for kind in ("snapshot", "actions")
    )
    if snapshot.ndim != 1 or actions.ndim != 2:
        raise DataError(f"{path}: walk {number} is not one snapshot and a row an action: it is no replay file.")
    return Walk(snapshot=snapshot.astype(np.float64), actions=actions.astype(np.float32))


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
