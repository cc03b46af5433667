"""The map of the paper leads somewhere: every name exists, every command runs, nothing of the paper is left out."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
from test_readme import check_command, help_of  # noqa: F401

MAP = Path(__file__).parent.parent / "docs" / "paper-map.md"
ROW = re.compile(r"^\| ([^|]+) \| [^|]+ \| (.+) \|$", re.MULTILINE)


def rows(section: str) -> dict[str, str]:
    """What stands in the last column, by the first."""
    text = re.split(r"^## ", MAP.read_text(), flags=re.MULTILINE)
    part = next(part for part in text if part.startswith(section))
    return {first: last for first, last in ROW.findall(part) if first not in ("paper", "line", "table", "figure")}


def resolve(name: str) -> object:
    """What a dotted name below `dtune` stands for: the longest module it begins with, then attributes."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(["dtune", *parts[:count]]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[count:]:
            found = getattr(found, attribute)
        return found
    raise AttributeError(name)


def code() -> list[str]:
    return re.findall(r"`([^`]+)`", MAP.read_text())


def test_nothing_is_left_out():
    assert {f"Eq. {number}" for number in range(1, 7)} <= set(rows("Equations"))
    assert list(rows("Algorithm 1")) == [str(line) for line in range(1, 10)]
    assert list(rows("Algorithm 2")) == [str(line) for line in range(1, 7)]
    assert list(rows("Tables")) == [str(table) for table in range(1, 8)]
    assert list(rows("Figures")) == ["1", "2a", "2b", "2c", "2d", "2e", "3", "4a", "4b", "4c", "4d"]


def test_every_name_exists():
    names = [
        name for name in code() if re.fullmatch(r"(functional|data|models|envs|algorithms|experiments)\.[\w.]+", name)
    ]
    assert len(names) > 40
    for name in names:
        resolve(name)


def test_a_name_that_is_gone_is_noticed():
    with pytest.raises(AttributeError):
        resolve("functional.advantages.group_advantage")
    with pytest.raises(AttributeError):
        resolve("functional.advantage")


def test_every_command_has_its_options(help_of):  # noqa: F811
    commands = [shlex.split(said) for said in code() if said.startswith("dtune ")]
    assert len(commands) > 15
    seen: dict[tuple[str, ...], str] = {}

    def once(words: list[str]) -> str:
        if tuple(words) not in seen:
            seen[tuple(words)] = help_of(words)
        return seen[tuple(words)]

    for words in commands:
        check_command(words, once)
