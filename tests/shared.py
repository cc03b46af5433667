"""Where the files are that are shared beside the repository, and not part of it."""

import os
import subprocess
from functools import cache
from pathlib import Path

import pytest


@cache
def shared() -> Path | None:
    """The folder: $DTUNE_SHARED, or `shared` beside this checkout, or beside the one it is a worktree of."""
    root = Path(__file__).parents[1]
    candidates = [root.parent / "shared", root.parent.parent / "shared"]
    command = ["git", "-C", str(root), "rev-parse", "--path-format=absolute", "--git-common-dir"]
    found = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if found.returncode == 0:
        candidates.append(Path(found.stdout.strip()).parent.parent / "shared")
    if "DTUNE_SHARED" in os.environ:
        candidates = [Path(os.environ["DTUNE_SHARED"])]
    return next((path for path in candidates if path.is_dir()), None)


def sample_file(name: str) -> Path:
    """A recording below `data`, by its name without the end; skips the test where it is not on this machine."""
    folder = shared()
    found = sorted(folder.glob(f"data/{name}.*hdf5")) if folder else []
    if not found:
        pytest.skip(f"{name} is not on this machine")
    return found[0]
