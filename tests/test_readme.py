"""What the documents show works: Python is run, commands exist with the options they are given.

Each ```python block is run; the blocks of one document share their names and a working directory, as cells of
a notebook do. Of each ```bash or ```text block, `dtune ...` lines must name a command that has the options shown, and
`make ...` lines a target. A comment on the line before a block changes that:

    <!-- run -->                  runs a bash block, too
    <!-- skip: needs a GPU -->    leaves a block alone, for the reason given
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:<!-- *([^\n]*?) *-->\n+)?^```(python|bash|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    remark: str
    code: str
    line: int  # of its first line of code


def blocks(text: str, language: str) -> list[Block]:
    found = (
        Block(match[2], match[1] or "", match[3], text.count("\n", 0, match.start(3)) + 1)
        for match in BLOCK.finditer(text)
    )
    return [block for block in found if block.language == language and not block.remark.startswith("skip:")]


def commands(code: str) -> list[list[str]]:
    """The words of every `dtune` and `make` line, continued or indented lines joined and comments gone."""
    lines = re.sub(r"\\\n|\n +", " ", code).replace("; dtune", "\ndtune").splitlines()
    words = (shlex.split(line, comments=True) for line in lines if line.startswith(("dtune", "make")))
    return [line for line in words if line]


def check_command(words: list[str], help_of) -> None:
    """Refuses a command that does not exist, or that lacks an option."""
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        missing = [word for word in words[1:] if "=" not in word and word not in targets]
        assert not missing, f"`{shlex.join(words)}`: no such target"
        return
    options = [i for i, word in enumerate(words) if word.startswith("-")]
    text = help_of(words[1 : options[0] if options else None])
    known = set(re.findall(r"--[\w.-]+", text)) | {"--debug", "--help"}
    missing = [words[i] for i in options if words[i].startswith("--") and words[i].split("=")[0] not in known]
    assert not missing, f"`{shlex.join(words)}`: no such option"


@pytest.fixture
def help_of(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")  # names of options are not broken over lines

    def show(arguments: list[str]) -> str:
        from dtune.cli import main

        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--help"])
        said = capsys.readouterr()
        assert ended.value.code == 0, f"`dtune {shlex.join(arguments)} --help`: {said.err}"
        return said.out

    return show


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_python_blocks_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for block in blocks(path.read_text(), "python"):
        exec(compile("\n" * (block.line - 1) + block.code, str(path), "exec"), names)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_exist(path, help_of):
    for block in [*blocks(path.read_text(), "bash"), *blocks(path.read_text(), "text")]:
        for words in commands(block.code):
            check_command(words, help_of)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_marked_to_run_run(path, tmp_path):
    run_bash(path.read_text(), tmp_path)


def run_bash(text: str, directory: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for block in blocks(text, "bash"):
        if block.remark == "run":
            command = ["bash", "-euo", "pipefail", "-c", block.code]
            subprocess.run(command, cwd=directory, env=environment, check=True, stdin=subprocess.DEVNULL)


SAMPLE = """# Title
```python
x = 1
```

<!-- run -->
```bash
dtune finetune grpo/hopper \\
    --seed 3   # a comment
echo hello > greeting
make test
```
<!-- skip: slow -->
```python
1 / 0
```
```text
dtune sweep --figure F
            --jobs 2   # for all F
dtune collect runs; dtune report runs
```
"""


def test_blocks_are_found():
    assert blocks(SAMPLE, "python") == [Block("python", "", "x = 1\n", 3)]
    (block,) = blocks(SAMPLE, "bash")
    assert block.remark == "run"
    assert commands(block.code) == [["dtune", "finetune", "grpo/hopper", "--seed", "3"], ["make", "test"]]
    (block,) = blocks(SAMPLE, "text")
    assert commands(block.code) == [
        ["dtune", "sweep", "--figure", "F", "--jobs", "2"], ["dtune", "collect", "runs"], ["dtune", "report", "runs"],
    ]  # fmt: skip


def test_a_wrong_command_is_noticed():
    def help_of(words: list[str]) -> str:
        assert words == ["finetune", "grpo/hopper"]
        return "--seed INT  --algorithm.group-size INT"

    check_command(["dtune", "finetune", "grpo/hopper", "--seed", "3", "--algorithm.group-size=4"], help_of)
    with pytest.raises(AssertionError, match="no such option"):
        check_command(["dtune", "finetune", "grpo/hopper", "--sed", "3"], help_of)
    with pytest.raises(AssertionError, match="no such target"):
        check_command(["make", "tset"], help_of)
    check_command(["make", "test", "PYTHON=python3.12"], help_of)


def test_marked_blocks_are_run_and_may_fail(tmp_path):
    run_bash("<!-- run -->\n```bash\necho hello > greeting\n```\n```bash\nfalse\n```\n", tmp_path)
    assert (tmp_path / "greeting").read_text() == "hello\n"
    with pytest.raises(subprocess.CalledProcessError):
        run_bash("<!-- run -->\n```bash\nfalse\ntrue\n```\n", tmp_path)
