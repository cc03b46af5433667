"""One tiny iteration of the paper's methods in each world that needs a hand or a maze, from the command line."""

import re
from pathlib import Path

import pytest
import tiny
import torch

from dtune.cli import main
from dtune.data.hdf5 import write_hdf5
from dtune.envs.tasks import task_info
from dtune.experiments.policies import load_policy
from dtune.experiments.record import read_rows

pytestmark = pytest.mark.usefixtures("one_thread")

WORLDS = [
    "pen-cloned-v1",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("door-human-v1", "hammer-cloned-v1")),
    pytest.param("antmaze-umaze-diverse-v2", marks=pytest.mark.slow),
]
CONTEXT = {"hammer-cloned-v1": 5, "antmaze-umaze-diverse-v2": 5}


def recorded(dataset: str, path: Path) -> Path:
    """Four episodes of 6 steps of random numbers."""
    info, draw, last = task_info(dataset), torch.Generator().manual_seed(0), torch.arange(24) % 6 == 5
    columns = {
        "observations": torch.randn(24, info.observation_dim, generator=draw),
        "actions": torch.rand(24, info.action_dim, generator=draw) * 2 - 1,
        "rewards": torch.rand(24, generator=draw),
        "terminals": last & False,
        "timeouts": last,
    }
    write_hdf5(path, columns)
    return path


def of(dataset: str, command: list[str]) -> list[str]:
    """A tiny command of the Hopper, of another dataset, for one iteration."""
    words = [word.replace("hopper-random-v2", dataset) for word in command]
    return [*words, "--iterations", "1", "--evaluation-episodes", "1"]


@pytest.mark.parametrize("dataset", WORLDS)
def test_a_tiny_iteration_of_each_method_in_each_world(dataset, tmp_path, monkeypatch):
    if not dataset.startswith("antmaze"):
        pytest.importorskip("gymnasium_robotics")
    monkeypatch.chdir(tmp_path)
    data = recorded(dataset, tmp_path / "data.hdf5")
    main([*of(dataset, tiny.PRETRAIN), "--data", str(data), "--out", "before"])
    for method, command in tiny.COMMANDS.items():
        main([*of(dataset, command), "--policy", "before/checkpoints/last", "--out", method])
        rows = read_rows(Path(method) / "metrics.csv")
        assert [row["iteration"] for row in rows] == [0, 1]
        assert rows[1].get("train/fresh_ratio_error", 0.0) < 1e-4  # AntMaze: all earn 0, and all groups are dropped
        assert rows[1]["eval/length"] <= task_info(dataset).horizon
        policy = load_policy(Path(method) / "checkpoints" / "last")
        assert policy.context_length == CONTEXT.get(dataset, 1)
        assert re.search(r'"return_scale": ' + ("1.0" if "antmaze" in dataset else "0.001"),
                         (Path(method) / "checkpoints" / "last" / "policy.json").read_text())  # fmt: skip
