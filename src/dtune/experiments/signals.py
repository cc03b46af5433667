"""Being asked to stop: noted, so that what is under way can end in order."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dtune.errors import DtuneError


class Stopped(DtuneError):
    """The work was asked to stop; its state is saved and the same command continues it."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def name_and_code(number: int) -> tuple[str, int]:
    """What people call SIGINT or SIGTERM, and the exit code of a command it stopped."""
    return ("Ctrl-C", 130) if number == signal.SIGINT else ("SIGTERM", 75)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them; the second SIGINT interrupts at once."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if number == signal.SIGINT and number in caught:
            raise KeyboardInterrupt
        caught.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # signals reach the main thread only: elsewhere they are its business
        before = {}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
