"""The run folder: who writes it, with which settings, and made by what."""

import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import torch

import dtune
from dtune.errors import ConfigError, DataError
from dtune.experiments import disk

_PACKAGES = ("dtune", "torch", "mujoco", "gymnasium", "numpy")


@contextmanager
def locked(directory: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds the run folder, made where it does not exist, so that two processes never write it at once.

    The lock is the kernel's: it goes when the process goes, however it ends.

    Args:
        directory: the run folder.
        wait: for another process to let it go, and say so, instead of refusing.

    Raises:
        ConfigError: if another process holds it.
    """
    directory = Path(directory)
    with _open_lock(directory) as file:
        try:
            _lock(file, directory, wait)
        except OSError as error:
            raise ConfigError(
                f"{directory} cannot be locked ({error.strerror}): choose an --out on another file system."
            ) from error
        file.truncate(0)
        file.write(f"pid {os.getpid()}\n")
        file.flush()
        yield


def _lock(file: TextIO, directory: Path, wait: bool) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        held = f"{directory} is being written by another process ({file.read().strip() or 'unknown'})"
        if not wait:
            raise ConfigError(f"{held}: wait for it, stop it, or choose another --out.") from None
        print(f"{held}: waiting for it", flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)


def _open_lock(directory: Path) -> TextIO:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return open(directory / ".lock", "a+")
    except OSError as error:
        raise ConfigError(
            f"{directory} cannot be written ({error.strerror}): choose another --out, or set its permissions."
        ) from error


def settle_config(directory: Path, config: Any, *, may_change: Collection[str] = ()) -> None:
    """Writes `config.json` where there is none; otherwise makes sure that it says the same.

    Args:
        directory: the run folder.
        config: a dataclass or mapping, nested as deep as it likes.
        may_change: dotted names of fields that a continued run may set anew, such as how long it is to last.

    Raises:
        ConfigError: as `check_config`.
    """
    if check_config(directory, config, may_change=may_change):
        Path(directory).mkdir(parents=True, exist_ok=True)
        disk.replace(Path(directory) / "config.json", _json(plain(config)))


def check_config(directory: Path, config: Any, *, may_change: Collection[str] = ()) -> bool:
    """Whether `config.json` is to be written anew; see `settle_config`.

    Raises:
        ConfigError: if the folder was begun with other settings, listing them.
    """
    if not (Path(directory) / "config.json").exists():
        return True
    old = read_config(directory)
    same = set(_at_default(config)) - set(_flat(old))  # settings that there were none of then
    changed = {name: line for name, line in differences(old, plain(config)).items() if name not in same}
    refused = [line for name, line in changed.items() if name not in may_change]
    if refused:
        raise ConfigError(
            f"{directory} was begun with other settings:\n  " + "\n  ".join(refused) + "\n"
            "Choose another --out, delete the folder to start again, or go back to its settings."
        )
    return bool(changed)


def read_config(directory: Path) -> dict[str, Any]:
    """The settings a run folder was begun with.

    Raises:
        ConfigError: if there are none, or they cannot be read.
    """
    path = Path(directory) / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): give a run folder, or delete this one to start again."
        ) from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path} does not hold settings: delete the folder to start again.")
    return config


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """What changed between two configs: `field: old -> new` by dotted name of the field."""
    before, after = _flat(old), _flat(new)
    absent = "(absent)"
    lines = {}
    for name in [*before, *(name for name in after if name not in before)]:
        was, now = before.get(name, absent), after.get(name, absent)
        if was != now:
            lines[name] = f"{name}: {was} -> {now}"
    return lines


def _at_default(config: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of the fields that have their default values."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            yield from _at_default(value, f"{prefix}{name}.")
    elif dataclasses.is_dataclass(config):
        for field in dataclasses.fields(config):
            name, value = prefix + field.name, getattr(config, field.name)
            if field.default is not dataclasses.MISSING and value == field.default:
                yield name
            else:
                yield from _at_default(value, f"{name}.")


def plain(config: Any) -> Any:
    """A config as JSON has it: dataclasses as dicts, tuples as lists, paths and non-finite floats as text."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple | set | frozenset):
        items = [plain(value) for value in config]
        return sorted(items, key=repr) if isinstance(config, set | frozenset) else items
    if isinstance(config, float):
        return float(config) if math.isfinite(config) else repr(float(config))
    return config if config is None or isinstance(config, bool | int | str) else str(config)


def settle_source(directory: Path, source: Path | None) -> str | None:
    """The SHA-256 of what a run is made from, after making sure that it was begun from the same.

    Args:
        directory: the run folder.
        source: the file of the data, or the checkpoint of the policy; wherever it lies.

    Raises:
        ConfigError: if the run was begun from other data, or from another policy.
        DataError: if the source cannot be read.
    """
    given = None if source is None else sha256(source)
    begun = _read_meta(directory).get("begun", {})
    was = begun.get("dataset_sha256")
    if was and given and was != given:
        raise ConfigError(
            f"{directory} was begun with {begun.get('dataset')} of hash {was[:12]}, and {source} has {given[:12]}:"
            " choose another --out, delete the folder to start again, or go on with the former."
        )
    return given


def refuse_begun(directory: Path) -> None:
    """Raises `ConfigError` if a run was begun there, with a policy that is none of its own pretraining."""
    if begun := _read_meta(directory).get("begun", {}).get("dataset"):
        raise ConfigError(
            f"{directory} was begun from {begun}: say --policy {begun} to go on, or choose another --out to pretrain."
        )


def write_meta(
    directory: Path, *, source: Path | None = None, digest: str | None = None, command: Sequence[str] | None = None
) -> str | None:
    """Writes `meta.json`: with what, from what and when the run was made; a continued run is added to it.

    Args:
        directory: the run folder.
        source: the file or folder that the data or the policy were read from.
        digest: its SHA-256, as `settle_source` gives it.
        command: the command line; `sys.argv` by default.

    Returns:
        A sentence for the user if the run was begun with other software, so that the rows to come may differ from
        those of a run never interrupted; otherwise None.
    """
    now = _describe(source, digest, list(sys.argv if command is None else command))
    meta = _read_meta(directory)
    begun, continued = (meta["begun"], [*meta["continued"], now]) if meta else (now, [])
    disk.replace(Path(directory) / "meta.json", _json({"begun": begun, "continued": continued}))
    aside = {"date", "command", "dataset", "dataset_sha256"}  # where data lie does not matter
    changed = [line for name, line in differences(begun, now).items() if name.split(".")[0] not in aside]
    if not changed:
        return None
    return (
        f"{directory} was begun under other conditions ({'; '.join(changed)}): "
        "what follows may differ from a run never interrupted."
    )


def _read_meta(directory: Path) -> dict[str, Any]:
    """What `meta.json` says; empty where there is none, or a damaged one."""
    try:
        meta = json.loads((Path(directory) / "meta.json").read_bytes())
        return {"begun": dict(meta["begun"]), "continued": list(meta["continued"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def sha256(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files in a folder.

    Raises:
        DataError: if it cannot be read.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        files = sorted(file for file in path.rglob("*") if file.is_file())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check the path and its permissions.") from error
    lines = [f"{sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def git_commit(directory: Path) -> str | None:
    """Commit of the checkout that `directory` belongs to, with `+changes` if edited; None outside of one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(directory), *arguments]
        result = subprocess.run(
            command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=10
        )
        return result.stdout.strip()

    try:
        if not git("ls-files", "."):  # installed inside somebody else's checkout: their commit says nothing
            return None
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _describe(source: Path | None, digest: str | None, command: list[str]) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "python": platform.python_version(),
        "versions": versions(),
        "commit": git_commit(Path(dtune.__file__).parent),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "dataset": None if source is None else str(source),
        "dataset_sha256": digest,
    }


def versions() -> dict[str, str | None]:
    """Versions of the packages that numbers depend on, by name; None for one that is not installed."""
    return {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _flat(value: Any, name: str = "") -> dict[str, str]:
    """Leaves of nested dicts as JSON text, by dotted name."""
    if not isinstance(value, Mapping) or not value:
        return {name: json.dumps(value)}
    prefix = f"{name}." if name else ""
    return {leaf: text for key in value for leaf, text in _flat(value[key], f"{prefix}{key}").items()}


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
