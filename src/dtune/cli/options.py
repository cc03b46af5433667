"""How options are read, and how what is wrong with them is said."""

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import tyro

from dtune.errors import ConfigError

Config = TypeVar("Config")
# The fields of a preset are options without a prefix, those of its parts have the part's name: --algorithm.group-size
Fields = Annotated[Config, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]


def parse(kind: type[Config], name: str, arguments: list[str]) -> Config:
    """Reads options; what tyro draws a box around becomes a sentence."""
    said = io.StringIO()
    flags = (tyro.conf.FlagConversionOff, tyro.conf.SuppressFixed)
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, prog=f"dtune {name}", args=arguments, config=flags)
    except SystemExit as end:
        if not end.code:
            raise  # --help was asked for
    raise ConfigError(f"{_sentence(said.getvalue())}; `dtune {name} --help` lists the options")


def _sentence(box: str) -> str:
    """The message in one of tyro's boxes, and the options it believes were meant."""
    body = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    parts = re.split("[─-]{9,}", "\n".join(body))
    if "╭" not in box:  # where there is no UTF-8, the title is a part of its own
        parts = parts[1:]
    message, rest = parts[0], "".join(parts[1:])
    message = re.sub(r"^Error parsing run[.\w]*: ", "", " ".join(message.split()))
    meant = re.findall(r"^--\S+", rest, re.MULTILINE) if "Perhaps you meant" in rest else []
    return message.rstrip(".") + (f" (perhaps you meant {' or '.join(meant)})" if meant else "")


def named(command: str, arguments: list[str], what: str, choices: Sequence[str]) -> tuple[str, list[str]]:
    """Takes the preset's name from the front of the arguments."""
    if arguments[:1] in (["-h"], ["--help"]):
        listed = "\n  ".join(choices)
        print(f"say which {what} first; then come options (add --help to see them). One of:\n  {listed}")
        sys.exit(0)
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError(f"say which {what} first, as {choices[0]}; `dtune {command} --help` lists them all")
    return arguments[0], arguments[1:]


def read_scale(arguments: list[str]) -> Any:
    """`paper` or `small`."""
    return _read_ahead("--scale", ("paper", "small"), arguments)


def read_architecture(arguments: list[str]) -> Any:
    """`dt` or `reinformer`."""
    return _read_ahead("--architecture", ("dt", "reinformer"), arguments)


def _read_ahead(option: str, choices: tuple[str, ...], arguments: list[str]) -> str:
    """Looks for an option ahead of the others, because it decides their defaults; its own is the first choice."""
    chosen = choices[0]
    for index, argument in enumerate(arguments):
        if argument == option and index + 1 < len(arguments):
            chosen = arguments[index + 1]
        elif argument.startswith(f"{option}="):
            chosen = argument.partition("=")[2]
    if chosen not in choices:
        raise ConfigError(f"{option} is {' or '.join(choices)}, got {chosen!r}")
    return chosen
