"""Disks that are full or read-only, clocks that jump, two runs at once: a sentence, and nothing lost or mixed.

A small tmpfs is mounted where that is allowed: for those who run the tests as root, outside of most containers.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import COMMANDS, finish, outcome, start

from dtune.experiments.checkpoint import load_last
from dtune.experiments.record import read_rows


def mount(*arguments: str) -> bool:
    return not subprocess.run(["mount", *arguments], capture_output=True).returncode


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    try:
        allowed = os.geteuid() == 0 and mount("-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder))
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def command(pretrained: Path, out: Path, iterations: int = 6) -> list[str]:
    arguments = [*COMMANDS["ppo"], "--policy", str(pretrained), "--out", str(out)]
    arguments[arguments.index("--iterations") + 1] = str(iterations)
    return arguments


def run(arguments: list[str], folder: Path, before: str = "") -> tuple[int, str]:
    code, _, err = finish(start(arguments, folder, before=before))
    return code, err


def unbroken(folder: Path) -> None:
    """The record counts up by one, and a whole checkpoint is there."""
    rows = [row["iteration"] for row in read_rows(folder / "metrics.csv")]
    assert rows == list(range(len(rows)))
    found = load_last(folder)
    assert found is not None
    assert found.warning is None


def test_a_full_disk(pretrained, tmp_path, small):
    whole = tmp_path / "whole"
    assert run(command(pretrained, whole), tmp_path)[0] == 0
    assert run(command(pretrained, small / "run", 3), tmp_path)[0] == 0
    ballast = small / "ballast"
    with open(ballast, "wb") as file:
        left = os.statvfs(small)
        file.write(bytes(left.f_bavail * left.f_frsize - 2 * left.f_frsize))
    code, err = run(command(pretrained, small / "run"), tmp_path)
    assert (code, err.count("\n")) == (1, 1), err
    assert "No space left on device" in err
    unbroken(small / "run")
    ballast.unlink()
    assert run(command(pretrained, small / "run"), tmp_path) == (0, "")
    assert outcome(small / "run") == outcome(whole)


def test_a_disk_that_becomes_read_only(pretrained, tmp_path, small):
    assert run(command(pretrained, small / "run", 2), tmp_path)[0] == 0
    before = outcome(small / "run")
    assert mount("-o", "remount,ro", str(small))
    code, err = run(command(pretrained, small / "run"), tmp_path)
    assert (code, err.count("\n")) == (2, 1), err
    assert "Read-only file system" in err
    assert outcome(small / "run") == before
    assert mount("-o", "remount,rw", str(small))
    assert run(command(pretrained, small / "run"), tmp_path) == (0, "")
    unbroken(small / "run")


JUMPING = """
import time
now, calls = time.time, [0]
def jumping():
    calls[0] += 1
    return now() + (-1) ** calls[0] * 3e7
time.time = jumping
"""


def test_a_clock_that_jumps_by_a_year(pretrained, tmp_path):
    assert run(command(pretrained, tmp_path / "steady"), tmp_path)[0] == 0
    assert run(command(pretrained, tmp_path / "jumping"), tmp_path, before=JUMPING) == (0, "")
    assert outcome(tmp_path / "jumping") == outcome(tmp_path / "steady")
    seconds = [row["time/seconds"] for row in read_rows(tmp_path / "jumping" / "timing.csv") if "time/seconds" in row]
    assert seconds == sorted(seconds)
    assert 0 < seconds[0] <= seconds[-1] < 3600


SLOWLY = """
import time
from dtune.experiments.record import Record
append = Record.append
Record.append = lambda *row: (append(*row), time.sleep(0.5))[0]
"""


@pytest.mark.slow
def test_two_runs_in_one_folder(pretrained, tmp_path):
    assert run(command(pretrained, tmp_path / "alone"), tmp_path)[0] == 0
    first = start(command(pretrained, tmp_path / "run"), tmp_path, before=SLOWLY)
    began = time.monotonic()
    while not (tmp_path / "run" / "metrics.csv").exists():
        assert time.monotonic() - began < 60
        assert first.poll() is None
        time.sleep(0.01)
    code, err = run(command(pretrained, tmp_path / "run"), tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert f"is being written by another process (pid {first.pid})" in err
    assert finish(first)[::2] == (0, "")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "alone")
