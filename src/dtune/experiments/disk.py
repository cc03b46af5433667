"""Writing so that a power cut leaves the old or the new, never a mixture."""

import os
import shutil
from pathlib import Path

TEMPORARY = ".tmp-"


def write(path: Path, data: bytes) -> None:
    """Writes `data` and waits until the device has it."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Makes new, renamed and deleted names in `directory` durable: syncing a file does not sync its name."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace(path: Path, data: bytes) -> None:
    """Puts `data` at `path` in one step: a reader sees the old file or the new one."""
    temporary = path.with_name(TEMPORARY + path.name)
    write(temporary, data)
    os.replace(temporary, path)
    sync_directory(path.parent)


def link(path: Path, target: str) -> None:
    """Points the symbolic link `path` at its sibling `target` in one step."""
    if path.is_dir() and not path.is_symlink():  # a copy that followed links left a directory here
        discard(path)
    temporary = path.with_name(TEMPORARY + path.name)
    temporary.unlink(missing_ok=True)
    os.symlink(target, temporary)
    os.replace(temporary, path)
    sync_directory(path.parent)


def discard(directory: Path) -> None:
    """Deletes a directory, first taking its name away: half-deleted is never mistaken for whole."""
    doomed = directory.with_name(TEMPORARY + "doomed-" + directory.name)
    os.rename(directory, doomed)
    shutil.rmtree(doomed)


def clear_temporary(directory: Path) -> None:
    """Deletes what an earlier, killed process left half-written in `directory`."""
    for path in directory.glob(TEMPORARY + "*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
