"""Rules that settings have to keep, said the same way everywhere."""

import math
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from typing import Any, get_args, get_type_hints

from dtune.errors import ConfigError


def finite(config: Any) -> None:
    """Refuses a config of which a number is of another type, NaN or infinite.

    Raises:
        ConfigError: that names the field, the rule and the value.
    """
    of: Any = type(config)
    for name, (kind, said, optional) in _numbers(of).items():
        value = getattr(config, name)
        if optional and value is None:
            continue
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ConfigError(f"{name} must be a {said}, got {value!r}")
        if not isinstance(value, Integral) and not math.isfinite(value):  # a whole number may be too large for a float
            raise ConfigError(f"{name} must be a finite number, got {value}: give one, however large")


@cache
def _numbers(config: Any) -> dict[str, tuple[Any, str, bool]]:
    """Of each field that is a number: the type, how it is called, and whether it may be None."""
    kinds = {int: (Integral, "whole number"), float: (Real, "number")}
    hints = get_type_hints(config)
    found = {}
    for name in (field.name for field in fields(config)):
        among = get_args(hints[name]) or (hints[name],)
        for hint, (kind, said) in kinds.items():
            if hint in among and set(among) <= {hint, type(None)}:
                found[name] = (kind, said, type(None) in among)
    return found


def not_negative(config: Any, *names: str) -> None:
    """Refuses a config of which one of the fields `names`, which 0 turns off, is below 0.

    Raises:
        ConfigError: that names the field, the rule and the value.
    """
    for name in names:
        if getattr(config, name) < 0:
            raise ConfigError(f"{name} cannot be negative, got {getattr(config, name)}: 0 turns it off")


def at_least(config: Any, least: int, *names: str) -> None:
    """Refuses a config of which one of the fields `names` is below `least`.

    Raises:
        ConfigError: that names the field, the rule and the value.
    """
    for name in names:
        if getattr(config, name) < least:
            raise ConfigError(f"{name} must be at least {least}, got {getattr(config, name)}")


def above_zero(config: Any, *names: str) -> None:
    """Refuses a config of which one of the fields `names` is 0 or negative.

    Raises:
        ConfigError: that names the field, the rule and the value.
    """
    for name in names:
        if getattr(config, name) <= 0:
            raise ConfigError(f"{name} must be above 0, got {getattr(config, name)}: set a positive number")


def one_of(config: Any, **choices: tuple[str, ...]) -> None:
    """Refuses a config of which a field is none of its choices.

    Raises:
        ConfigError: that names the field, what may be chosen and the value.
    """
    for name, known in choices.items():
        if getattr(config, name) not in known:
            raise ConfigError(f"{name} must be one of {', '.join(known)}, got {getattr(config, name)!r}")


def comparable_group(config: Any) -> None:
    """Refuses groups of one, and mirrored groups of an odd number.

    Raises:
        ConfigError: that says why.
    """
    if config.group_size < 2:
        raise ConfigError(
            f"group_size must be at least 2, got {config.group_size}: one alone has no group to be compared with"
        )
    if config.mirrored and config.group_size % 2:
        raise ConfigError(f"mirrored members come in pairs: group_size must be even, got {config.group_size}")
