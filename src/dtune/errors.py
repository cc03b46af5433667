"""What can go wrong, and the exit code each kind ends a command with.

Every message is one sentence that says what is wrong, where, which rule it breaks and the way out.
"""


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
