"""`dtune check env`: a line each, and an exit code."""

import re

import gymnasium
import gymworlds
import pytest

from dtune import cli


@pytest.fixture
def check(capsys):
    """Runs `dtune check …`: exit code, lines printed, what was said on standard error."""

    def call(*arguments):
        capsys.readouterr()
        code = 0
        try:
            cli.main(["check", *arguments])
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err

    return call


@pytest.fixture
def registered():
    """Registers an environment for a test."""
    names = []

    def register(make, horizon=gymworlds.HORIZON):
        names.append(f"Test{len(names)}-v0")
        gymnasium.register(names[-1], make, max_episode_steps=horizon)
        return names[-1]

    yield register
    for name in names:
        gymnasium.registry.pop(name)


def test_a_right_one(check, registered):
    code, lines, err = check("env", registered(gymworlds.Drift), "--workers", "1", "--steps", "30")
    assert (code, err) == (0, "")
    assert all(line.startswith("right ") for line in lines[:-1])
    assert re.match(r"right  going back  bit for bit", lines[-2])
    assert lines[-1] == "Test0-v0 can be used"


def test_a_task_of_ours(check):
    assert check("env", "hopper-medium-v2", "--steps", "10")[0] == 0  # by one of its datasets
    code, lines, err = check("env", "hopper", "--steps", "10")
    assert (code, err) == (0, "")
    assert lines[-1] == "hopper can be used"


def test_one_that_cannot_be_gone_back_in_can_be_used(check, registered):
    code, lines, err = check("env", registered(gymworlds.Mute), "--workers", "0")
    assert (code, err) == (0, "")
    assert re.match(r"no     going back  .*deep-copied.*lock.*rules out GRPO-DT", lines[-2])
    assert lines[-1] == "Test0-v0 can be used, but not by GRPO-DT"


def test_a_broken_one(check, registered):
    code, lines, err = check("env", registered(gymworlds.Careless), "--workers", "0")
    assert code == 4
    assert any(line.startswith("WRONG  same seed") for line in lines)
    assert re.fullmatch(r"dtune: Test0-v0 cannot be used as it is: same seed[^\n]*\n", err)


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        ([], 2, "say what to check"),
        (["data"], 2, "say what to check"),
        (["env"], 2, "ID"),
        (["env", "Nothing-v0", "--workers", "0"], 2, "'Nothing-v0'"),
        (["env", "CartPole-v1", "--workers", "0"], 4, "Discrete"),
        (["env", "Pendulum-v1", "--workers", "-2"], 2, "negative"),
        (["env", "Pendulum-v1", "--step", "3"], 2, "--steps"),
        (["env", "hopper", "--steps", "0"], 2, "steps must be at least 1, got 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_checked_is_a_sentence(check, arguments, code, part):
    found, _, err = check(*arguments)
    assert found == code
    assert part in err
    assert len(err.splitlines()) == 1


def test_help_tells_the_exit_codes_and_the_options(check):
    code, lines, _ = check("--help")
    assert code == 0
    assert "Exit code 0: it can be used; 4: it is broken." in "\n".join(lines)
    code, lines, _ = check("env", "--help")
    assert code == 0
    assert "--workers" in "\n".join(lines)
