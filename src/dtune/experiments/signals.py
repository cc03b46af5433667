"""Being asked to stop: by Ctrl-C, or by a scheduler that wants its machine back."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dtune.errors import DtuneError

SIGNALS = {
    signal.SIGINT: ("Ctrl-C", 130),
    signal.SIGTERM: ("SIGTERM", 75),
    signal.SIGUSR1: ("SIGUSR1", 75),
}
"""What ends work in order: how it is called, and the exit code."""


class Stopped(DtuneError):
    """The work was asked to stop; its state is saved and the same command continues it."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def name_and_code(number: int) -> tuple[str, int]:
    """What people call the signal, and the exit code of a command it stopped."""
    return SIGNALS[signal.Signals(number)]


def stopped_by(number: int, iteration: int) -> Stopped:
    """What a run that saved its state after `iteration` ends with."""
    name, code = name_and_code(number)
    return Stopped(f"stopped by {name} after iteration {iteration}: saved; the same command continues", code)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects `SIGNALS` instead of dying of them; the second SIGINT interrupts at once."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if number == signal.SIGINT and number in caught:
            raise KeyboardInterrupt
        caught.append(number)

    try:
        before = {number: signal.signal(number, note) for number in SIGNALS}
    except ValueError:  # signals reach the main thread only: elsewhere they are its business
        before = {}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
