"""Checkpoints: one directory each, whole or not there, and nothing in it can run.

    checkpoints/iteration_000040/policy.safetensors    the weights of the policy alone, for a stranger to load
                                 tensors.safetensors   every other tensor of the state, by path
                                 state.json            the rest of the state, and where its tensors go
                                 MANIFEST.sha256       of every file above: `sha256sum -c` reads it too
    checkpoints/last -> iteration_000040
    checkpoints/best -> iteration_000030

A checkpoint is written beside its place under a temporary name, synced, and renamed; then the links move.
Killed at any moment, `last` leads to a whole checkpoint. safetensors notices a missing end but not a
flipped bit: hence the manifest, checked before anything is interpreted.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from dtune.errors import ConfigError, DataError, DtuneError
from dtune.experiments import disk
from dtune.experiments.encoding import decode, encode

VERSION = 1
WEIGHTS = "policy.safetensors"
"""Of the policy, alone."""
_MANIFEST = "MANIFEST.sha256"
_OLD = ".old-"  # a checkpoint that is being replaced by one of the same iteration
_NAME = re.compile(r"(?:\.old-)?iteration_(\d+)")
_WAY_OUT = "use another checkpoint beside it, or a fresh copy of this one."


class CheckpointError(DataError):
    """A checkpoint that is damaged, or that this version cannot read."""


class Loaded(NamedTuple):
    """What `load_last` found."""

    state: dict[str, Any]
    iteration: int
    path: Path
    warning: str | None  # a sentence for the user where `last` itself could not be used


def save(
    run_dir: Path,
    iteration: int,
    state: Mapping[str, Any],
    *,
    keep: int = 2,
    best: int | None = None,
    policy: str | None = "algorithm/policy",
    documents: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `checkpoints/iteration_<iteration>` in `run_dir`, moves `last`, and forgets old ones.

    Args:
        run_dir: the run folder.
        iteration: how many iterations the state has behind it.
        state: nested dicts, lists and tuples of tensors, int, float, bool, str and None.
        keep: how many of the newest checkpoints to keep; `best` is kept besides.
        best: iteration of the checkpoint, this or an earlier one, that `best` is to lead to; where that is gone, it
            leads nowhere. None: as before.
        policy: path in `state` of the policy's `state_dict`, which goes to a file of its own; None for none.
        documents: further JSON files by name, for those who load the policy alone (its architecture).

    Returns:
        The directory of the checkpoint.

    Raises:
        ConfigError: if `keep` is not positive.
        TypeError: if `state` holds anything else.
        DtuneError: if the disk refuses; the checkpoints before are intact.
    """
    if keep < 1:
        raise ConfigError(f"keep={keep} would delete the checkpoint just written: keep at least 1.")
    files = _serialise(iteration, dict(state), policy, documents or {})
    root = Path(run_dir) / "checkpoints"
    final = root / f"iteration_{iteration:06d}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        disk.clear_temporary(root)
        _put(final, files)
        if best is not None:  # before `last`: killed in between, the run goes back, and its next save mends this
            _lead(root / "best", f"iteration_{best:06d}")
        disk.link(root / "last", final.name)
        _prune(root, iteration, keep)
    except OSError as error:
        raise DtuneError(
            f"{final} could not be written ({error.strerror or error}); the checkpoints before it are "
            "intact: make room or set the permissions, and run the same command again."
        ) from error
    return final


def load(directory: Path) -> dict[str, Any]:
    """The state saved in `directory`, bit for bit, its tensors on the CPU.

    Args:
        directory: a checkpoint, or a link to one such as `checkpoints/best`.

    Raises:
        CheckpointError: if a file is damaged, missing or not of the checkpoint, or of an unknown format.
    """
    return _read(Path(directory))[1]


def load_last(run_dir: Path) -> Loaded | None:
    """The checkpoint that `last` points at or, where that one is damaged, the newest good one.

    Returns:
        None where the run has no checkpoint yet.

    Raises:
        CheckpointError: if there are checkpoints and none is good.
    """
    root = Path(run_dir) / "checkpoints"
    last = _target(root / "last")
    others = sorted((path for path in _checkpoints(root) if path.name != last), key=_iteration, reverse=True)
    candidates = others if last is None else [root / last, *others]  # never where a link may lead outside
    problems: list[str] = []
    for path in candidates:
        try:
            iteration, state = _read(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        warning = f"{problems[0]} Continuing from {path.name} instead." if problems else None
        return Loaded(state, iteration, path, warning)
    if problems:
        raise CheckpointError(
            f"No checkpoint in {root} can be used; the first says: {problems[0]} "
            "Delete that folder to start the run again."
        )
    return None


def verify(directory: Path) -> dict[str, bytes]:
    """Checks every file of a checkpoint against its manifest.

    Returns:
        The contents of the files by name: the very bytes that were checked.

    Raises:
        CheckpointError: naming the file that is damaged, missing or too many.
    """
    if not (directory / _MANIFEST).is_file():
        raise CheckpointError(f"{directory} is not a whole checkpoint: it has no {_MANIFEST}; {_WAY_OUT}")
    try:
        names = sorted(path.name for path in directory.iterdir() if path.name != _MANIFEST)
        for name in (*names, _MANIFEST):  # a link may lead to what is nobody else's to read, a pipe to no end
            if not stat.S_ISREG((directory / name).lstat().st_mode):
                raise CheckpointError(f"{directory / name} is not a regular file; {_WAY_OUT}")
        files = {name: (directory / name).read_bytes() for name in names}
        manifest = (directory / _MANIFEST).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read ({error.strerror}); {_WAY_OUT}") from error
    if manifest != _manifest(files):  # byte for byte: whatever could be wrong with it is covered
        raise CheckpointError(f"{directory}: {_difference(manifest, files)}; {_WAY_OUT}")
    return files


def policy_files(directory: Path) -> dict[str, bytes]:
    """The files of a checkpoint that make its policy, and a manifest of these alone: a checkpoint for strangers.

    Raises:
        CheckpointError: if a file is damaged, missing or too many.
    """
    files = verify(directory)
    kept = {name: data for name, data in files.items() if name not in ("tensors.safetensors", "state.json")}
    return {**kept, _MANIFEST: _manifest(kept)}


def _difference(manifest: bytes, files: dict[str, bytes]) -> str:
    lines = manifest.decode("utf-8", "replace").splitlines()
    expected = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in sorted(expected.keys() - files.keys()):
        return f"{name} is in {_MANIFEST} but missing"
    for name in sorted(files.keys() - expected.keys()):
        return f"{name} is not in {_MANIFEST}"
    for name in sorted(files):
        if hashlib.sha256(files[name]).hexdigest() != expected[name]:
            return f"{name} does not have the hash in {_MANIFEST}: one of the two was damaged"
    return f"{_MANIFEST} itself is damaged"


def _manifest(files: Mapping[str, bytes]) -> bytes:
    lines = (f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    return "".join(lines).encode()


def _serialise(
    iteration: int, state: dict[str, Any], policy: str | None, documents: Mapping[str, Any]
) -> dict[str, bytes]:
    document, tensors = encode(state)
    header = {"format": "dtune checkpoint", "version": VERSION, "iteration": iteration, "policy": policy}
    files = {name: _json(content) for name, content in documents.items()}
    if policy is not None:
        prefix = policy + "/"
        weights = {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
        if not weights:
            raise TypeError(f"the state has no tensors under {policy!r}: say where the policy is, or policy=None.")
        files[WEIGHTS] = safetensors.torch.save(weights)
    files["tensors.safetensors"] = safetensors.torch.save(tensors)
    files["state.json"] = _json(header | {"state": document})
    return files


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def _put(final: Path, files: Mapping[str, bytes]) -> None:
    temporary = final.with_name(disk.TEMPORARY + final.name)
    temporary.mkdir()
    for name, data in files.items():
        disk.write(temporary / name, data)
    disk.write(temporary / _MANIFEST, _manifest(files))
    disk.sync_directory(temporary)
    if final.exists():  # directories cannot be exchanged in one step: `load_last` finds the old one meanwhile
        old = final.with_name(_OLD + final.name)
        if old.exists():
            disk.discard(old)
        os.rename(final, old)
    os.rename(temporary, final)
    disk.sync_directory(final.parent)


def _lead(link: Path, target: str) -> None:
    """Points `link` at a checkpoint that is there, or away from one that is not meant."""
    if (link.parent / target).is_dir():
        if _target(link) != target:
            disk.link(link, target)
    elif link.is_symlink():
        link.unlink()


def _prune(root: Path, newest: int, keep: int) -> None:
    """Keeps the `keep` newest up to `newest`; later ones are of a future the run went back from."""
    standing = [path for path in _checkpoints(root) if not path.name.startswith(_OLD)]
    past = sorted((path for path in standing if _iteration(path) <= newest), key=_iteration)
    kept = {path.name for path in past[-keep:]} | {_target(root / "last"), _target(root / "best")}
    for path in _checkpoints(root):
        if path.name not in kept:
            disk.discard(path)


def _checkpoints(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return [path for path in root.iterdir() if _NAME.fullmatch(path.name)]


def _iteration(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def _target(link: Path) -> str | None:
    """Name of the sibling that `link` leads to, there or not; its own name if it is a directory."""
    if link.is_symlink():
        return Path(os.readlink(link)).name
    return link.name if link.is_dir() else None


def _read(directory: Path) -> tuple[int, dict[str, Any]]:
    files = verify(directory)
    where = f"{directory}/state.json"
    try:
        header = json.loads(files["state.json"])
        version = header["version"]
        if version != VERSION:
            raise CheckpointError(
                f"{where} is of checkpoint format {version!r} and this dtune reads {VERSION}: "
                "read it with the version of dtune that wrote it."
            )
        state = decode(header["state"], _tensors(files, header["policy"]))
        if not isinstance(state, dict) or not isinstance(header["iteration"], int):
            raise ValueError("its state is not a dict")
        return header["iteration"], state
    except CheckpointError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, OverflowError, SafetensorError) as error:
        raise CheckpointError(f"{where} is not a checkpoint of dtune ({error!r}): {_WAY_OUT}") from error


def _tensors(files: Mapping[str, bytes], policy: str | None) -> dict[str, Tensor]:
    tensors = dict(safetensors.torch.load(files["tensors.safetensors"]))
    if policy is not None:
        weights = safetensors.torch.load(files[WEIGHTS])
        tensors |= {f"{policy}/{name}": tensor for name, tensor in weights.items()}
    return tensors
