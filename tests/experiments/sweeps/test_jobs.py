"""Commands in processes of their own, here short Python scripts in place of `dtune`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dtune.experiments.sweeps import jobs
from dtune.experiments.sweeps.jobs import Change, Job, LocalEngine, last_words, run_to_end, starts

COUNTING = """
import os, pathlib, sys, time
seen = pathlib.Path(sys.argv[1]); seen.touch()
with seen.open("a") as file: file.write("x")
print("start", len(seen.read_text()), "threads", os.environ["OMP_NUM_THREADS"], flush=True)
codes = sys.argv[2].split(",")
sys.exit(int(codes[min(len(seen.read_text()), len(codes)) - 1]))
"""

OBEYING = """
import pathlib, signal, sys, time
def stop(number, frame):
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit(130 if number == signal.SIGINT else 75)
for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, stop)
print("ready", flush=True)
time.sleep(60)
"""

SLEEPING = "import time; print('ready', flush=True); time.sleep(60)"


def program(monkeypatch, script: str) -> None:
    monkeypatch.setattr(jobs, "PROGRAM", (sys.executable, "-ISc", script))


def to_the_end(engine: LocalEngine, count: int) -> dict[str, Change]:
    """Polls until so many jobs have ended."""
    ended: dict[str, Change] = {}
    while len(ended) < count:
        ended |= {change.key: change for change in engine.poll(5.0) if change.state != "running"}
    return ended


def until(what, limit: float = 30.0) -> None:
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < limit
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("codes", "state", "count", "code"),
    [
        ("0", "done", 1, 0),
        ("1,0", "done", 2, 0),
        ("4,75,1,0", "done", 4, 0),
        ("1,1,1,1,0", "failed", 4, 1),  # the fifth start would succeed: three retries are the most
        ("2,0", "failed", 1, 2),
        ("3,0", "failed", 1, 3),
        ("5,0", "failed", 1, 5),
    ],
)
def test_a_crash_is_tried_again_three_times_and_a_refusal_is_not(monkeypatch, tmp_path, codes, state, count, code):
    program(monkeypatch, COUNTING)
    engine, log = LocalEngine(), tmp_path / "logs" / "one.log"
    engine.submit(Job(key="one", arguments=(str(tmp_path / "seen"), codes), log=log))
    change = to_the_end(engine, 1)["one"]
    assert (change.state, change.starts, change.code) == (state, count, code)
    assert change.seconds > 0
    assert (tmp_path / "seen").read_text() == "x" * count
    assert starts(log) == count
    assert last_words(log) == f"start {count} threads 1"
    assert log.read_text().splitlines()[0] == f"$ dtune {tmp_path / 'seen'} {codes}"


def test_a_command_killed_by_a_signal_is_tried_again(monkeypatch, tmp_path):
    program(monkeypatch, COUNTING.replace("sys.exit", "os.kill(os.getpid(), 9) if len(codes) > 1 else sys.exit"))
    engine = LocalEngine(retries=1)
    engine.submit(Job(key="one", arguments=(str(tmp_path / "seen"), "0,0"), log=tmp_path / "log"))
    change = to_the_end(engine, 1)["one"]
    assert (change.state, change.starts, change.code) == ("failed", 2, -signal.SIGKILL)


def test_so_many_at_a_time(monkeypatch, tmp_path):
    script = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"
    program(monkeypatch, script)
    engine = LocalEngine(2)
    for name in "abc":
        engine.submit(Job(key=name, arguments=(str(tmp_path / name),), log=tmp_path / f"{name}.log"))
    assert [change.key for change in engine.poll(5.0)] == ["a", "b"]
    until((tmp_path / "b").exists)
    assert engine.poll(0.2) == []
    assert not (tmp_path / "c").exists()
    engine.close()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_is_passed_on_and_what_waits_is_dropped(monkeypatch, tmp_path, number, code):
    program(monkeypatch, OBEYING)
    engine = LocalEngine(1)
    for name in "ab":
        engine.submit(Job(key=name, arguments=(str(tmp_path / name),), log=tmp_path / f"{name}.log"))
    engine.poll(5.0)
    until(lambda: last_words(tmp_path / "a.log") == "ready")
    (change,) = engine.stop(number)
    assert (change.key, change.state, change.code) == ("a", "pending", code)
    assert (tmp_path / "a").read_text() == "saved"
    assert not (tmp_path / "b.log").exists()
    assert engine.poll(0.0) == []


def test_closing_leaves_nothing_behind(monkeypatch, tmp_path):
    program(monkeypatch, SLEEPING)
    engine = LocalEngine(1)
    engine.submit(Job(key="a", arguments=(), log=tmp_path / "log"))
    engine.poll(5.0)
    (running,) = engine._running
    engine.close()
    assert running.process.poll() is not None


def test_a_command_dies_with_whoever_started_it(tmp_path):
    script = (
        "import sys, pathlib, time; from dtune.experiments.sweeps import jobs;"
        f"jobs.PROGRAM = (sys.executable, '-ISc', {SLEEPING!r});"
        f"print(jobs.launch((), pathlib.Path({str(tmp_path / 'log')!r})).pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    until(lambda: last_words(tmp_path / "log") == "ready")
    assert is_alive(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until(lambda: not is_alive(child))


def is_alive(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_an_interrupted_command_saves_first(monkeypatch, tmp_path):
    program(monkeypatch, OBEYING)

    told: list[bool] = []

    class Interrupted(subprocess.Popen):
        def wait(self, timeout=None):
            if not told:
                told.append(True)
                until(lambda: last_words(tmp_path / "log") == "ready")
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(jobs.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_to_end((str(tmp_path / "out"),), tmp_path / "log")
    assert (tmp_path / "out").read_text() == "saved"


def test_a_command_run_to_its_end_is_in_its_folder_with_what_it_is_handed(monkeypatch, tmp_path):
    program(monkeypatch, "import os, sys; print(os.getcwd(), os.environ['DTUNE_DATA']); sys.exit(7)")
    monkeypatch.setenv("DTUNE_DATA", "before")
    code = run_to_end((), tmp_path / "log", cwd=tmp_path, environment={"DTUNE_DATA": "there"})
    assert (code, last_words(tmp_path / "log")) == (7, f"{tmp_path} there")
    assert os.environ["DTUNE_DATA"] == "before"


def test_of_a_command_that_said_nothing(tmp_path):
    assert last_words(tmp_path / "nowhere") == "no message"
    assert starts(tmp_path / "nowhere") == 0
