"""Worker processes for copies of an environment, and what is done when one of them fails. Knows no torch.

A worker that raised, died or hung is replaced. What was asked of it since its episodes began is asked of the new one
once more: seeds or saved states, then the same actions; that brings every copy to where it was, to the last bit.
"""

import multiprocessing.connection
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from gymnasium.vector.utils import CloudpickleWrapper

from dtune.envs.copies import Copies, Recipe
from dtune.errors import ConfigError, DtuneError, SimulatorError

ATTEMPTS = 3
"""Failures in a row, at one request, that are one too many."""
START_SECONDS = 120.0
"""What importing an environment's packages and trying it may take, on top of the time limit."""

Request = tuple[Any, ...]
"""The name of a method of `Copies`, and its arguments."""
_BEGINS = ("reset", "load")  # requests that make what was asked before irrelevant
_REPEATED = (*_BEGINS, "step")
_WHEN = {
    "learn": "when it was made and tried", "prepare": "when it was made", "reset": "at the same reset",
    "step": "at the same step", "save": "at the same snapshot", "load": "at the same restore",
    "named": "when it was looked into",
}  # fmt: skip


class LostError(Exception):
    """A worker raised, died or hung; says how."""


@runtime_checkable
class Hand(Protocol):
    """Where copies live."""

    def ask(self, request: Request, seconds: float) -> None:
        """Begins what is requested."""
        ...

    def answer(self, seconds: float) -> Any:
        """What came of it.

        Raises:
            LostError: if it failed in a way that another try may not.
            DtuneError: if it was refused.
        """
        ...

    def close(self) -> None:
        """Ends it."""
        ...


class Here:
    """Copies in this process: nothing watches over their time."""

    def __init__(self, recipe: Recipe) -> None:
        self._copies = Copies(recipe)
        self._answer: tuple[bool, Any] = (True, None)

    def ask(self, request: Request, seconds: float) -> None:  # noqa: ARG002
        """Does what is requested; see `Hand.ask`."""
        self._answer = _obey(self._copies, request)

    def answer(self, seconds: float) -> Any:  # noqa: ARG002
        """What came of it; see `Hand.answer`."""
        return _read(self._answer)

    def close(self) -> None:
        """Closes the environments."""
        self._copies.close()


class There:
    """Copies in a process of their own, which ends when this one does.

    The process is started afresh, never forked: torch's threads do not survive that.
    """

    def __init__(self, recipe: Recipe) -> None:
        ours, theirs = socket.socketpair()
        # a worker that reads no more must not stop us in the middle of a long message
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(START_SECONDS), 0))
        with theirs:
            code = f"from dtune.envs.workers import serve; serve({theirs.fileno()})"
            command = [sys.executable, "-W", "ignore", "-c", code]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, pass_fds=(theirs.fileno(),), env=environment
            )
        self._connection = multiprocessing.connection.Connection(ours.detach())
        try:
            self._connection.send(CloudpickleWrapper(recipe))  # type: ignore[arg-type]
        except OSError as error:
            raise LostError("its process ended while it started") from error
        except Exception as error:
            self.close()
            raise ConfigError(
                f"the environment cannot be sent to a worker process ({type(error).__name__}: {error}): make it in a "
                "function that imports what it needs, or use workers=0."
            ) from error

    def ask(self, request: Request, seconds: float) -> None:  # noqa: ARG002
        """Sends what is requested; see `Hand.ask`."""
        try:
            self._connection.send(request)
        except OSError as error:
            raise LostError(self._death()) from error

    def answer(self, seconds: float) -> Any:
        """Waits for what came of it; see `Hand.answer`."""
        try:
            if not self._connection.poll(seconds):
                raise LostError(f"it gave no answer within {seconds:g} seconds")
            return _read(self._connection.recv())
        except (OSError, EOFError) as error:
            raise LostError(self._death()) from error

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        self._connection.close()
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()

    def _death(self) -> str:
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "its process closed the connection"
        return f"its process ended with {code}" if code >= 0 else f"{signal.Signals(-code).name} ended its process"


class Worker:
    """A hand that is replaced when it fails.

    After `ask` and `answer` comes `remember`. What is not remembered has not happened: an interrupt, a refusal or a
    failure elsewhere came between, so the next request begins with a new hand, which does what is remembered.

    Args:
        start: makes a hand.
        seconds: an answer may take.
    """

    def __init__(self, start: Callable[[], Hand], seconds: float) -> None:
        self._start, self._seconds = start, seconds
        self._hand: Hand | None = None
        self._facts: Request | None = None  # the request that comes before all others
        self._done: list[Request] = []  # since the episodes began
        self._request: Request = ()
        self._lost: LostError | None = None
        self._waiting = False

    @property
    def hand(self) -> Hand | None:
        """The present one."""
        return self._hand

    def ask(self, *request: Any) -> None:
        """Begins what is requested; `answer` has to follow."""
        if self._waiting:  # an answer may be unread, which must not be taken for the next one, or done and not wanted
            self.close()
        self._request, self._lost, self._waiting = request, None, True
        try:
            self._send()
        except LostError as error:
            self._lost = error
            self.close()  # it may have done a part of what is remembered

    def answer(self) -> Any:
        """What came of it.

        Raises:
            SimulatorError: if it failed `ATTEMPTS` times in a row.
            DtuneError: if it was refused.
        """
        for _ in range(ATTEMPTS):
            try:
                if self._lost is not None:
                    self._send()
                assert self._hand is not None
                return self._hand.answer(self._limit(self._request))
            except LostError as error:
                self._lost = error
                self.close()
        raise SimulatorError(
            f"the environment failed {ATTEMPTS} times in a row {_WHEN[self._request[0]]}: {self._lost}."
        ) from self._lost

    def remember(self) -> None:
        """Counts what was answered as done."""
        self._waiting, name = False, self._request[0]
        if name == "prepare":
            self._facts = self._request
        if name in _BEGINS:
            self._done = []
        if name in _REPEATED:
            self._done.append(self._request)

    def close(self) -> None:
        """Ends the hand."""
        if self._hand is not None:
            self._hand.close()
        self._hand = None

    def _send(self) -> None:
        """Sends the request; a new hand does first what the old one had done."""
        if self._hand is None:
            self._hand = self._start()
            begins = self._request[0] in _BEGINS
            for request in ([self._facts] if self._facts else []) + ([] if begins else self._done):
                self._hand.ask(request, self._seconds)
                self._hand.answer(self._limit(request))
        self._hand.ask(self._request, self._seconds)

    def _limit(self, request: Request) -> float:
        """Seconds for a request; those that may make environments get more."""
        return self._seconds + (0 if request[0] == "step" else START_SECONDS)


def serve(descriptor: int) -> None:
    """A worker process: obeys requests until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group, and is for the parent to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    connection = multiprocessing.connection.Connection(descriptor)
    try:
        copies = Copies(connection.recv().fn)
        while True:
            connection.send(_obey(copies, connection.recv()))
    except (EOFError, OSError):
        return


def _end_with_parent() -> None:
    """Standard input ends when the parent does, however it ended: then a step that hangs must not stay behind."""
    os.read(0, 1)
    os._exit(1)


def _obey(copies: Copies, request: Request) -> tuple[bool, Any]:
    """What came of a request, or the words of what was raised."""
    name, *arguments = request
    try:
        return True, getattr(copies, name)(*arguments)
    except DtuneError as error:
        return False, error
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        words = traceback.format_exception_only(error)[-1].strip()
        return False, f"{words} ({os.path.basename(where.filename)}, line {where.lineno})"


def _read(reply: tuple[bool, Any]) -> Any:
    sound, content = reply
    if sound:
        return content
    raise content if isinstance(content, DtuneError) else LostError(content)
