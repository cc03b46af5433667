"""The example runs; and, slowly, does what it says."""

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import pytest

from dtune import SupervisedConfig

PATH = Path(__file__).parents[2] / "examples" / "gymnasium_env.py"
NAMES = ["Pendulum-v1", "InvertedPendulum-v5"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("gymnasium_env", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_it_runs(example, name, capsys):
    settings = example.SETTINGS[name]
    few = replace(
        settings,
        episodes=2,
        pretraining=SupervisedConfig(context_length=2, updates_per_iteration=2, batch_size=4),
        finetuning=replace(settings.finetuning, lookahead_length=2, reset_trajectories=2, batch_size=8),
        iterations=1,
        evaluation_episodes=2,
    )
    returns = example.run(name, few)
    assert len(returns) == 2
    assert all(map(math.isfinite, returns))
    assert f"{name}: asking for {settings.finetuning.return_to_go:g}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_reaches_what_it_states(example, name):
    returns = example.run(name, example.SETTINGS[name])
    assert returns[0] < example.SETTINGS[name].passes_at <= returns[-1]
