"""Real processes, really killed, on Hopper: the same command goes on, and nobody can tell."""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny import COMMANDS, OTHERS, PRETRAIN, finish, outcome, start

from dtune.cli import main

STEPS_OF_DISK = "fsync", "rename", "replace", "symlink"
METHODS = [*COMMANDS, *OTHERS]
LONG = int(os.environ.get("DTUNE_LONG", "50"))
"""Kills of the long form."""

# Ends the process by SIGKILL at the n-th change of the disk: inside a checkpoint, the record, a link.
DIE_AT = f"""
import os, signal
left = [{{moment}}]
def dying(function):
    def call(*arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
for name in {STEPS_OF_DISK}:
    setattr(os, name, dying(getattr(os, name)))
"""

SLOWLY = """
import time
from dtune.experiments.record import Record
append = Record.append
Record.append = lambda *row: (append(*row), time.sleep(0.3))[0]
"""


def command(method: str, policy: Path, *more: str) -> list[str]:
    begin = [] if method == "iql" else ["--policy", str(policy)]  # it has a policy of its own
    data = ["--data", str(next((policy.parent / "data").iterdir()))] if method in OTHERS else []
    return [*(COMMANDS | OTHERS)[method], *begin, *data, "--out", "run", *more]


def wait_for(process: subprocess.Popen[str], what, limit: float = 60.0) -> None:
    """Until `what()` is true, or the process has ended."""
    began = time.monotonic()
    while process.poll() is None and not what():
        assert time.monotonic() - began < limit
        time.sleep(0.005)


def rows(run: Path) -> int:
    path = run / "metrics.csv"
    return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0


@pytest.fixture(scope="module")
def undisturbed(pretrained, tmp_path_factory) -> Callable[[str], dict[str, bytes]]:
    """What a method's run ends with that nothing happens to."""

    @cache
    def run(method: str) -> dict[str, bytes]:
        folder = tmp_path_factory.mktemp(method)
        within(command(method, pretrained), folder)
        return outcome(folder / "run")

    return run


def within(arguments: list[str], folder: Path) -> None:
    """Runs a command here, which saves the imports."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        try:
            main(arguments)
        finally:
            torch.set_num_threads(threads)


def die(arguments: list[str], folder: Path, chance: random.Random) -> bool:
    """Runs the command and kills it at a random moment of its work; whether it had not ended before."""
    done = rows(folder / "run")
    process = start(arguments, folder)
    wait_for(process, lambda: rows(folder / "run") != done or rows(folder / "run") > 6)
    time.sleep(0.6 * chance.random())
    process.kill()
    code, _, _ = finish(process)
    return code == -signal.SIGKILL


def check_killed_again_and_again(method: str, seed: int, policy: Path, folder: Path, expected: dict[str, bytes]):
    chance = random.Random(seed)
    deaths = sum(die(command(method, policy), folder, chance) for _ in range(2))
    code, out, err = finish(start(command(method, policy), folder))
    assert (code, err) == (0, "")
    assert outcome(folder / "run") == expected
    assert "before" in out
    assert deaths


@pytest.mark.parametrize(("method", "seed"), [("grpo", 0), ("ppo", 1)])
def test_sigkill_at_random_moments(pretrained, tmp_path, undisturbed, method, seed):
    check_killed_again_and_again(method, seed, pretrained, tmp_path, undisturbed(method))


class Killed(BaseException):
    """Stands for SIGKILL: no `except Exception` catches it."""


@pytest.mark.parametrize("method", OTHERS)
def test_killed_inside_a_save_by_every_other_method(pretrained, tmp_path, undisturbed, method):
    left = [random.Random(method).randrange(30, 70)]

    def dying(function):
        def call(*arguments, **options):
            left[0] -= 1
            if not left[0]:
                raise Killed
            return function(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
        for name in STEPS_OF_DISK:
            patch.setattr(os, name, dying(getattr(os, name)))
        within(command(method, pretrained), tmp_path)
    assert left[0] <= 0  # it did die
    within(command(method, pretrained), tmp_path)
    assert outcome(tmp_path / "run") == undisturbed(method)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(LONG))
def test_a_kill_at_a_random_moment_of_every_method(pretrained, tmp_path, undisturbed, seed):
    """Of six methods in turn; half of the kills inside a save, the others whenever."""
    chance, method = random.Random(1000 + seed), METHODS[seed % len(METHODS)]
    arguments = command(method, pretrained)
    if seed // len(METHODS) % 2:
        moment = chance.randrange(1, 70)
        process = start(arguments, tmp_path, before=DIE_AT.format(moment=moment))
    else:
        process = start(arguments, tmp_path, before=SLOWLY)
        wait_for(process, lambda: rows(tmp_path / "run") > 0)
        time.sleep(1.8 * chance.random())
        process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    code, _, err = finish(start(arguments, tmp_path))
    assert (code, err) == (0, "")
    assert outcome(tmp_path / "run") == undisturbed(method)


def check_killed_at(moment: int, method: str, policy: Path, folder: Path, expected: dict[str, bytes]):
    code, _, _ = finish(start(command(method, policy), folder, before=DIE_AT.format(moment=moment)))
    assert code == -signal.SIGKILL
    code, _, err = finish(start(command(method, policy), folder))
    assert (code, err) == (0, "")
    assert outcome(folder / "run") == expected


def test_sigkill_inside_a_save(pretrained, tmp_path, undisturbed):
    moment = random.Random(0).randrange(40, 60)
    check_killed_at(moment, "grpo", pretrained, tmp_path, undisturbed("grpo"))


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(1, 70, 2))
def test_sigkill_at_every_other_change_of_the_disk(pretrained, tmp_path, undisturbed, moment):
    check_killed_at(moment, "grpo", pretrained, tmp_path, undisturbed("grpo"))


@pytest.mark.parametrize(
    ("method", "number", "code", "name"),
    [
        ("ppo", signal.SIGTERM, 75, "SIGTERM"),
        ("ppo", signal.SIGUSR1, 75, "SIGUSR1"),
        ("grpo", signal.SIGINT, 130, "Ctrl-C"),
    ],
)
def test_asked_to_stop_it_saves_and_says_so(pretrained, tmp_path, undisturbed, method, number, code, name):
    process = start(command(method, pretrained), tmp_path, before=SLOWLY)
    wait_for(process, lambda: rows(tmp_path / "run") >= 2)
    process.send_signal(number)
    ended, _, err = finish(process)
    done = rows(tmp_path / "run") - 1
    assert ended == code
    assert err == f"dtune: stopped by {name} after iteration {done}: saved; the same command continues\n"
    assert 1 <= done <= 6
    last = (tmp_path / "run" / "checkpoints" / "last").resolve()
    assert last.name == f"iteration_{done:06d}"
    ended, out, err = finish(start(command(method, pretrained), tmp_path))
    assert (ended, err) == (0, "")
    assert done == 6 or f"continuing after iteration {done} of 6" in out
    assert outcome(tmp_path / "run") == undisturbed(method)
    meta = json.loads((tmp_path / "run" / "meta.json").read_text())
    assert len(meta["continued"]) == 1


def test_pretraining_killed_and_continued(tmp_path, pretrained):
    """Dropout and shuffled windows, too, go on where they were."""
    arguments = [*PRETRAIN, "--out", "run", "--data", str(next((pretrained.parent / "data").iterdir()))]
    arguments[arguments.index("--iterations") + 1] = "6"
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    within(arguments, tmp_path / "whole")
    code, _, _ = finish(start(arguments, tmp_path / "killed", before=DIE_AT.format(moment=54)))
    assert code == -signal.SIGKILL
    last = (tmp_path / "killed" / "run" / "checkpoints" / "last").resolve()
    assert last.name == "iteration_000004"  # there is something to go on from
    assert finish(start(arguments, tmp_path / "killed"))[::2] == (0, "")
    assert outcome(tmp_path / "killed" / "run") == outcome(tmp_path / "whole" / "run")


def test_sigterm_while_pretraining_for_a_finetuning_stops_both(tmp_path, pretrained):
    """What comes first is stopped and saved; the same command does the rest."""
    process = start(
        [
            "finetune",
            "grpo/hopper-random-v2",
            "--scale",
            "small",
            "--data",
            str(next((pretrained.parent / "data").iterdir())),
        ],
        tmp_path,
    )
    before = tmp_path / "runs" / "pretrain" / "hopper-random-v2" / "small" / "seed0"
    wait_for(process, lambda: rows(before) >= 1)
    process.terminate()
    code, _, err = finish(process)
    assert code == 75
    assert "stopped by SIGTERM" in err
    assert (before / "checkpoints" / "last").exists()
    assert not (tmp_path / "runs" / "grpo").exists()
