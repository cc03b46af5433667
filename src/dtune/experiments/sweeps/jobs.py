"""`dtune` commands in processes of their own: so many at a time, logged, tried again after a crash, gone when we go."""

import os
import shlex
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, final, runtime_checkable

RETRIES = 3
"""Times a command that crashed is tried again."""

REFUSED = (2, 3, 5)
"""Exit codes that the same command would end with again: settings, data, and numbers that follow from the seed."""

PROGRAM = (sys.executable, "-m", "dtune")

State = Literal["pending", "running", "done", "failed"]

_START = "$ "  # before each command in its log

# The kernel ends a command with the process that started it, however that ends: `prctl(PR_SET_PDEATHSIG, SIGKILL)`.
# By SIGKILL, since a run folder stays locked while its command is still saving, and survives that signal anyway.
_BOUND = (
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGKILL);"
    "sys.exit(1) if os.getppid() != int(sys.argv[1]) else os.execv(sys.argv[2], sys.argv[2:])"
)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What each command is given of a machine."""

    threads: int = 1
    """Of the CPU, for the simulator; results do not depend on it."""
    device: str = "cpu"
    """Of the network."""

    @property
    def gpus(self) -> int:
        """GPUs it takes up."""
        return int(self.device != "cpu")


ONE_THREAD = Machine()


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command to be run."""

    key: str
    """What the caller knows it by."""
    arguments: tuple[str, ...]
    """Of `dtune`."""
    log: Path
    """What it prints is added to this file."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What became of a job since one last looked."""

    key: str
    """Which job."""
    state: State
    """`pending` where it was asked to stop, and saved."""
    starts: int = 0
    """Times it was started since it was submitted."""
    seconds: float = 0.0
    """That its last start took, by the clock."""
    code: int = 0
    """The exit code it ended with; negative: the signal that killed it."""


@runtime_checkable
class Engine(Protocol):
    """Where jobs are run."""

    def submit(self, job: Job) -> None:
        """Takes a job on."""
        ...

    def poll(self, patience: float) -> list[Change]:
        """What changed since the last call; waits so many seconds for something to change."""
        ...

    def stop(self, number: int) -> list[Change]:
        """Passes a signal on to all that is running, waits for its end, and drops the rest."""
        ...

    def close(self) -> None:
        """Kills what is left."""
        ...


def launch(
    arguments: tuple[str, ...], log: Path, *, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts `dtune` with one thread, out of reach of the terminal's Ctrl-C; it dies with this process.

    Args:
        arguments: of `dtune`.
        log: what it prints is added to this file, after the command.
        cwd: where it runs.
        environment: variables beside those of this process.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        file.write(f"{_START}{shlex.join(('dtune', *arguments))}\n".encode())
        file.flush()
        return subprocess.Popen(
            [sys.executable, "-ISc", _BOUND, str(os.getpid()), *PROGRAM, *arguments],
            cwd=cwd, env={**os.environ, **(environment or {}), "OMP_NUM_THREADS": "1"}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip


def starts(log: Path) -> int:
    """How often a command was started, by its log."""
    try:
        return sum(line.startswith(f"{_START}dtune ".encode()) for line in log.read_bytes().splitlines())
    except OSError:
        return 0


def last_words(log: Path) -> str:
    """The last line a command printed."""
    try:
        said = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        said = []
    return said[-1] if said else "no message"


def state_of(code: int) -> State:
    """What an exit code makes of a job: `pending` where it is worth another start."""
    if code == 0:
        return "done"
    return "failed" if code in REFUSED else "pending"


def run_to_end(
    arguments: tuple[str, ...], log: Path, *, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> int:
    """Runs a command and waits for it; when interrupted, tells it to stop and to save first. Gives its exit code."""
    process = launch(arguments, log, cwd=cwd, environment=environment)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    starts: int
    began: float = field(default_factory=time.monotonic)


@final
class LocalEngine:
    """Runs jobs on this machine.

    Args:
        jobs: how many at a time.
        retries: times a crashed one is started again.
    """

    def __init__(self, jobs: int = 1, retries: int = RETRIES) -> None:
        self._jobs, self._retries = jobs, retries
        self._waiting: deque[tuple[Job, int]] = deque()  # with the number of starts before
        self._running: list[_Running] = []

    def submit(self, job: Job) -> None:
        """Takes a job on; it starts at the next `poll` that has room for it."""
        self._waiting.append((job, 0))

    def poll(self, patience: float) -> list[Change]:
        """See `Engine.poll`."""
        until = time.monotonic() + patience
        while True:
            changes = [*self._reap(), *self._start()]
            if changes or time.monotonic() >= until:
                return changes
            time.sleep(min(0.1, patience))

    def stop(self, number: int) -> list[Change]:
        """See `Engine.stop`."""
        self._waiting.clear()
        for each in self._running:
            each.process.send_signal(number)
        changes = []
        while self._running:
            changes += self._reap(again=False)
            time.sleep(0.05)
        return changes

    def close(self) -> None:
        """See `Engine.close`."""
        for each in self._running:
            each.process.kill()
            each.process.wait()
        self._running.clear()

    def _start(self) -> list[Change]:
        changes = []
        while self._waiting and len(self._running) < self._jobs:
            job, before = self._waiting.popleft()
            self._running.append(_Running(job, launch(job.arguments, job.log), before + 1))
            changes.append(Change(key=job.key, state="running", starts=before + 1))
        return changes

    def _reap(self, *, again: bool = True) -> list[Change]:
        """Those that ended; one that crashed goes back to the end of the queue while it may be tried `again`."""
        changes = []
        for each in [each for each in self._running if each.process.poll() is not None]:
            self._running.remove(each)
            code = each.process.returncode
            state = state_of(code)
            if state == "pending" and again:
                if each.starts <= self._retries:
                    self._waiting.append((each.job, each.starts))
                    continue
                state = "failed"
            seconds = time.monotonic() - each.began
            changes.append(Change(key=each.job.key, state=state, starts=each.starts, seconds=seconds, code=code))
        return changes
