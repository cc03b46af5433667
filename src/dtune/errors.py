"""What can go wrong, and the exit code each kind ends a command with.

Every message is one sentence that says what is wrong, where, which rule it breaks and the way out.
"""

import difflib
from collections.abc import Iterable


def meant(name: str, choices: Iterable[str]) -> str:
    """` (perhaps you meant X)`, for the choice that a name looks like; nothing where it looks like none."""
    near = difflib.get_close_matches(name.lower(), choices, n=1, cutoff=0.75)
    return f" (perhaps you meant {near[0]})" if near else ""


class DtuneError(Exception):
    """Anything dtune refuses, with a sentence for the user."""

    exit_code = 1


class ConfigError(DtuneError, ValueError):
    """A setting, or a combination of settings, that cannot work."""

    exit_code = 2


class DataError(DtuneError, ValueError):
    """A dataset that cannot be read or must not be trusted."""

    exit_code = 3


class SimulatorError(DtuneError, RuntimeError):
    """An environment that failed, or that cannot do what an algorithm needs."""

    exit_code = 4


class NumericError(DtuneError, ArithmeticError):
    """Numbers that stopped being finite; the last good checkpoint is intact."""

    exit_code = 5


class FaultsError(NumericError):
    """More steps of the simulator broke than may."""
