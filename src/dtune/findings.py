"""What the checkers of other people's simulators and policies say: a sentence a check."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found."""

    name: str
    """Which."""
    passed: bool
    """Whether it is right."""
    message: str
    """What was seen; where something is wrong: what, and what it leads to."""
    needed: bool = True
    """Whether nothing works without it."""


class WrongError(Exception):
    """A check that failed; says how."""


def require(right: bool, sentence: str) -> None:
    """Raises `WrongError` with the sentence where something is not right."""
    if not right:
        raise WrongError(sentence)


def find(name: str, check: Callable[[], str], *, needed: bool = True) -> Finding:
    """Runs a check, which says what it saw or raises: `WrongError`, or whatever somebody's code raises."""
    try:
        return Finding(name=name, passed=True, message=check(), needed=needed)
    except WrongError as wrong:
        return Finding(name=name, passed=False, message=str(wrong), needed=needed)
    except Exception as error:  # it is somebody's code
        said = " ".join(str(error).split())
        return Finding(name=name, passed=False, message=f"raised {type(error).__name__}: {said}", needed=needed)
