"""Checkpoints of every format that was released load, to the last bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from draws import draw_steps

from dtune.experiments import checkpoint
from dtune.experiments.policies import load_policy, read_about

STORED = Path(__file__).parents[1] / "stored"
FORMATS = range(1, checkpoint.VERSION + 1)
# Mean actions of the stored policy for `draw_steps(1, 2, 3, 2)`, as they were when it was written.
ACTIONS = [[0.08259614, -0.85826242], [0.83491176, 0.54374027]]


@pytest.fixture(params=FORMATS)
def stored(request, tmp_path) -> Path:
    """A run folder with a checkpoint of each format."""
    return Path(shutil.copytree(STORED / f"checkpoint_v{request.param}", tmp_path / "run", symlinks=True))


def test_every_format_has_its_checkpoint():
    assert {path.name for path in STORED.glob("checkpoint_v*")} == {f"checkpoint_v{number}" for number in FORMATS}
    for number in FORMATS:
        (state,) = STORED.glob(f"checkpoint_v{number}/checkpoints/iteration_*/state.json")
        assert json.loads(state.read_text())["version"] == number


def test_the_state_is_read(stored):
    found = checkpoint.load_last(stored)
    assert found is not None
    assert (found.iteration, found.warning) == (7, None)
    assert found.state["progress"] == {"iteration": 7, "best": 1.5, "best_iteration": 4}
    odd = found.state["algorithm"]["odd"]
    assert odd[0].equal(torch.arange(3))
    assert odd["$"] == (1, None, float("-inf"))


def test_the_policy_acts_as_it_did(stored):
    policy = load_policy(stored).eval()
    assert read_about(stored)["dataset"] == "hopper-random-v2"
    with torch.no_grad():
        actions = policy(draw_steps(1, 2, 3, 2)).mode
    torch.testing.assert_close(actions[0], torch.tensor(ACTIONS), atol=1e-6, rtol=1e-5)
