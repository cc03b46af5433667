"""Small things that a user of command lines expects: names nearly right, and completion."""

import contextlib
import io
import subprocess
from importlib.metadata import version

import pytest

from dtune import cli
from dtune.envs.tasks import task_info
from dtune.errors import ConfigError, DataError, meant
from dtune.experiments import presets
from dtune.experiments.loading import load_dataset


def test_the_nearest_name():
    assert meant("finetne", ["demo", "finetune"]) == " (perhaps you meant finetune)"
    assert meant("xyz", ["demo", "finetune"]) == ""
    assert meant("hopper-medium", ["hopper-random"]) == ""  # another name, not a slip


@pytest.mark.parametrize(
    ("act", "near"),
    [
        (lambda: cli._run(["evalute"]), "evaluate"),
        (lambda: cli._run(["data", "lst"]), "list"),
        (lambda: cli._run(["data", "make", "hoper-random"]), "hopper-random"),
        (lambda: cli._run(["data", "download", "hopper-meduim-v2"]), "hopper-medium-v2"),
        (lambda: cli._run(["evaluate", "x", "--episode", "3"]), "--episodes"),
        (lambda: presets.finetuning("grop", "hopper-medium-v2", "paper"), "grpo"),
        (lambda: presets.finetuning("grpo", "hoper-medium-v2", "paper"), "hopper-medium-v2"),
        (lambda: task_info("walker"), "walker2d"),
        (lambda: load_dataset("pen-hunan-v1"), "pen-human-v1"),
    ],
)
def test_errors_suggest_the_nearest_name(act, near):
    with pytest.raises((ConfigError, DataError), match=rf"\(perhaps you meant {near}\)"):
        act()


@pytest.fixture(scope="module")
def script() -> str:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        cli.main(["completion", "bash"])
    return said.getvalue()


def complete(script: str, *words: str) -> list[str]:
    """What bash offers for the last of the words."""
    quoted = " ".join(f"'{word}'" for word in words)
    ask = f'{script}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _dtune; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["fin"], ["finetune"]),
        (["finetune", "iql/hopper-r"], ["iql/hopper-random-v2"]),
        (["finetune", "grpo/hopper-medium-v2", "--algorithm.group"], ["--algorithm.group-size"]),
        (["finetune", "ppo/hopper-medium-v2", "--algorithm.group"], []),
        (["pretrain", "ant-ran"], ["ant-random-v2"]),
        (["pretrain", "ant-random-v2", "--model.w"], ["--model.width"]),
        (["data", "sh"], ["show"]),
        (["data", "show", "--spl"], ["--splitting"]),
        (["check", "e"], ["env"]),
        (["export", "runs/x", "--o"], ["--out"]),
    ],
)
def test_the_shell_completes(script, words, offered):
    assert complete(script, "dtune", *words) == offered


def test_every_command_is_completed(script):
    assert set(complete(script, "dtune", "")) == set(cli.COMMANDS)


def test_zsh_speaks_bash(capsys):
    cli.main(["completion", "zsh"])
    assert capsys.readouterr().out.startswith("autoload -U +X compinit bashcompinit")


def test_the_version(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"dtune {version('dtune')}\n"
