"""The examples of an own algorithm and an own policy run; and the first, slowly, does what it says."""

import importlib.util
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("one_thread")


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_own_algorithm_learns_and_continues_where_it_was_cut_off(tmp_path):
    example = load("own_algorithm")
    few = example.ReinforceConfig(episodes=2)
    whole = example.run(2, few, str(tmp_path / "whole"))
    example.run(1, few, str(tmp_path / "cut"))
    assert example.run(2, few, str(tmp_path / "cut"))[-1] == whole[-1]
    files = [(tmp_path / run / "checkpoints" / "last" / "policy.safetensors").read_bytes() for run in ("whole", "cut")]
    assert files[0] == files[1]
    start = (tmp_path / "whole" / "checkpoints" / "iteration_000000" / "policy.safetensors").read_bytes()
    assert start != files[0]


@pytest.mark.slow
def test_the_own_algorithm_reaches_what_it_states():
    returns = load("own_algorithm").run()
    assert returns[0] < 10
    assert returns[-1] > 100


def test_nothing_is_wrong_with_the_own_policy(capsys):
    rows = load("own_policy").run(iterations=1, episodes=2)
    said = capsys.readouterr().out
    assert said.count("right ") >= 10
    assert "WRONG" not in said
    assert rows[-1]["train/fresh_ratio_error"] == 0


def test_nothing_is_wrong_with_the_own_simulator_and_one_learns_in_it(capsys):
    returns = load("own_simulator").run(iterations=10)
    assert "nothing is wrong" in capsys.readouterr().out
    assert returns[-1] > returns[0] + 15


@pytest.mark.parametrize("name", ["own_algorithm", "own_policy", "own_simulator"])
def test_it_is_short(name):
    path = Path(__file__).parents[2] / "examples" / f"{name}.py"
    assert len(path.read_text().split('"""', 2)[2].strip().splitlines()) < 80
