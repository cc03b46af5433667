import contextlib
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from states import make_state, names, same

from dtune.experiments import disk
from dtune.experiments.checkpoint import load, load_last, save


class Killed(BaseException):
    """Stands for SIGKILL: no `except Exception` or OSError catches it."""


CALLS = ("mkdir", "fsync", "rename", "replace", "symlink", "unlink", "rmdir")


def kill_at(patch: pytest.MonkeyPatch, moment: int, *, before: bool) -> list[str]:
    """Dies at the `moment`-th change of the disk, before or after it; returns the changes reached."""
    reached: list[str] = []

    def watched(name: str, function):
        def call(*arguments, **options):
            reached.append(name)
            fatal = len(reached) == moment
            if fatal and before:
                raise Killed
            try:
                return function(*arguments, **options)
            finally:
                if fatal:
                    raise Killed

        return call

    def torn_write(path, data):
        reached.append("write")
        if len(reached) == moment:
            path.write_bytes(data[: len(data) // 2] if before else data)
            raise Killed
        whole_write(path, data)

    whole_write = disk.write
    for name in CALLS:
        patch.setattr(os, name, watched(name, getattr(os, name)))
    patch.setattr(disk, "write", torn_write)
    return reached


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("present", [(10, 20), (10, 20, 30)], ids=["a new one", "replacing"])
def test_killed_at_any_moment_a_whole_checkpoint_is_found(tmp_path, present, before):
    for iteration in present:
        save(tmp_path / "before", iteration, {"algorithm": {"policy": {"w": torch.full((2,), iteration)}}})
    new = {"algorithm": {"policy": {"w": torch.full((2,), 31)}}}
    moments = 0
    for moment in range(1, 200):
        run = tmp_path / f"run{moment}"
        shutil.copytree(tmp_path / "before", run, symlinks=True)
        with pytest.MonkeyPatch.context() as patch:
            reached = kill_at(patch, moment, before=before)
            with contextlib.suppress(Killed):
                save(run, 30, new, best=30)
        found = load_last(run)
        assert found is not None, reached
        value = int(found.state["algorithm"]["policy"]["w"][0])
        assert value in {max(present), 31}, reached
        if 30 not in present:  # while one is replaced, `last` may lead nowhere for a moment
            assert found.warning is None, reached
            assert (run / "checkpoints" / "last").exists(), reached
        for path in (run / "checkpoints").glob("iteration_*"):
            load(path)  # what has its name is whole
        save(run, 30, new, best=30)
        assert same(load(run / "checkpoints" / "last"), new)
        assert same(load(run / "checkpoints" / "best"), new)
        assert names(run) == {"iteration_000020", "iteration_000030", "last", "best"}, reached
        if len(reached) < moment:
            break
        moments += 1
    assert moments > 20  # it did die, in many places


def test_sigkill_while_saving(tmp_path):
    """A real process, killed for real, again and again."""
    script = """
import sys, torch
from pathlib import Path
from dtune.experiments.checkpoint import load_last, save
run = Path(sys.argv[1])
found = load_last(run)
i = found.iteration if found else 0
print("ready", flush=True)
while True:
    i += 1
    save(run, i, {"w": torch.full((20000,), i)}, policy=None)
"""
    chance, reached = random.Random(0), 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1 + 0.2 * chance.random())
        process.kill()
        process.wait()
        process.stdout.close()
        found = load_last(tmp_path)
        assert found is not None
        assert found.warning is None
        assert found.iteration > reached
        assert found.state["w"].eq(found.iteration).all()
        reached = found.iteration


def test_every_file_and_directory_is_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    events: list[str] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def note_sync(handle):
        events.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def note_rename(source, target):
        events.append(f"rename {Path(target).name}")
        rename(source, target)

    def note_replace(source, target):
        events.append(f"replace {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "replace", note_replace)
    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "rename", note_rename)
    path = save(tmp_path, 1, make_state())
    named = events.index("rename iteration_000001")
    assert {file.name for file in path.iterdir()} <= set(events[:named])
    assert ".tmp-iteration_000001" in events[:named]
    pointed = events.index("replace last")
    assert "checkpoints" in events[named:pointed]
    assert "checkpoints" in events[pointed:]
