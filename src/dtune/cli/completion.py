"""`dtune completion`: what makes a shell complete commands, names and options."""

import contextlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from dtune.cli.options import parse
from dtune.errors import DtuneError

_SCRIPT = """\
_dtune() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands}"
    elif [[ "$word" == -* ]]; then
        case "${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}" in
{options}
        esac
    elif [ "$COMP_CWORD" -eq 2 ]; then
        case "${{COMP_WORDS[1]}}" in
{names}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _dtune dtune
"""


def completion(arguments: list[str]) -> None:
    """`dtune completion bash | zsh`."""

    @dataclass(frozen=True, kw_only=True)
    class Completion:
        """Prints a script that makes a shell complete commands, names and options.

        bash: dtune completion bash > ~/.local/share/bash-completion/completions/dtune
        zsh:  dtune completion zsh > ~/.dtune.zsh, and `source ~/.dtune.zsh` at the end of ~/.zshrc
        """

        shell: Annotated[Literal["bash", "zsh"], tyro.conf.Positional]
        """For which shell."""

    shell = parse(Completion, "completion", arguments).shell
    if shell == "zsh":
        print("autoload -U +X compinit bashcompinit && compinit && bashcompinit")
    print(_script(), end="")


def _script() -> str:
    """The script for bash: everything that the commands' own help mentions."""
    from dtune.cli import COMMANDS

    names: dict[str, list[str]] = {}
    options: list[tuple[str, str]] = []
    for command in COMMANDS:
        said = _help(command)
        found = re.findall(rf"^(?:usage:)? *dtune {command} ([a-z]+)\b|^  (\w[\w./-]*)$", said, re.MULTILINE)
        names[command] = [first or second for first, second in found]
        for pattern, example in _groups(names[command]):
            words = [command, example] if example else [command]
            known = sorted(set(re.findall(r"--[a-z][\w.-]*", _help(*words))) | {"--help", "--debug"})
            options.append((f'"{command} "{pattern}', " ".join(known)))
    lines = [f'            {pattern}) words="{known}" ;;' for pattern, known in options]
    listed = [f'            {command}) words="{" ".join(found)}" ;;' for command, found in names.items() if found]
    return _SCRIPT.format(commands=" ".join(COMMANDS), options="\n".join(lines), names="\n".join(listed))


def _groups(names: list[str]) -> Iterator[tuple[str, str]]:
    """Names whose options are the same: those of one method, or of none; as a pattern of the shell, and an example."""
    seen = set()
    for name in names:
        method, slash, _ = name.partition("/")
        pattern = f"{method}/*" if slash else "*" if "-" in name else name
        if pattern not in seen:
            seen.add(pattern)
            yield pattern, name
    if not names:
        yield "*", ""


def _help(*words: str) -> str:
    """What a command says of itself; nothing where it has nothing to say."""
    from dtune.cli import COMMANDS

    said, width = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "400"  # so that no name is broken over lines
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit, DtuneError):
            COMMANDS[words[0]]([*words[1:], "--help"])
    finally:
        os.environ.pop("COLUMNS") if width is None else os.environ.update(COLUMNS=width)
    return said.getvalue()
