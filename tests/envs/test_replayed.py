"""Every recorded file that is here is replayed as closely as its line in `results/benchmarks/replayed.csv` says."""

import csv
import importlib.util
from pathlib import Path

import pytest
from shared import sample_file

ROOT = Path(__file__).parents[2]
with (ROOT / "results" / "benchmarks" / "replayed.csv").open() as file:
    LINES = list(csv.DictReader(file))
FOLDERS = {"door": "adroit", "hammer": "adroit", "pen": "adroit", "antmaze": "antmaze"}


@pytest.fixture(scope="module")
def replayed():
    spec = importlib.util.spec_from_file_location("replayed", ROOT / "benchmarks" / "replayed.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.replayed


@pytest.mark.parametrize("line", LINES, ids=lambda line: line["file"].split(".")[0])
def test_recorded_states_are_replayed_as_the_record_says(line, replayed):
    name = line["file"].split(".")[0]
    folder = FOLDERS.get(name.split("-")[0], "mujoco")
    if folder == "adroit":
        pytest.importorskip("gymnasium_robotics")
    path = sample_file(f"{folder}/{name}")
    if path.name != line["file"]:
        pytest.skip(f"{line['file']} is not on this machine")
    found = replayed(path, every=10)
    assert 10 * found["rows"] == pytest.approx(int(line["rows"]), abs=10)
    assert found["median"] == pytest.approx(float(line["median"]), rel=0.2)
    assert found["below_1e-4"] == pytest.approx(float(line["below_1e-4"]), abs=0.03)
    assert found["reward_median"] == pytest.approx(float(line["reward_median"]), rel=0.2, abs=1e-12)


def test_the_record_has_all_but_ants_within_the_precision_of_their_files():
    """Ants touch the ground with more feet than the state says: the solver's warm start is in no file."""
    for line in LINES:
        if not line["file"].startswith("ant"):
            assert float(line["median"]) < 1e-6
            assert float(line["below_1e-4"]) > (0.9 if line["file"].startswith("pen") else 0.99)
