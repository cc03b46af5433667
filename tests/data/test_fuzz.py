"""Damaged files of every layout end in episodes or in a sentence: soon, and in little memory.

Files are read in processes of their own, because HDF5 could crash or hang instead of answering.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import mutations
import pytest

from dtune.data.guards import SMALL

SECONDS = 2.0  # of the processor: the machine may be busy


def read_batch(first: int, count: int) -> list[dict[str, Any]]:
    """What became of the damaged files `first`, `first + 1`, …; fails if the process did not live to the end."""
    path = Path(mutations.__file__)
    source = path.parents[1] / "src"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(source), *sys.path])}
    done = subprocess.run(
        [sys.executable, str(path), str(first), str(count)], capture_output=True, text=True, env=environment
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"died ({done.returncode}) at {lines[-1:]}: {done.stderr[-2000:]}"
    return [line for line in lines if "seconds" in line]


def check(outcomes: list[dict[str, Any]]) -> Counter[str]:
    """Refuses outcomes that break the promise; counts the others."""
    for outcome in outcomes:
        assert "error" not in outcome, outcome
        assert outcome["seconds"] < SECONDS, outcome
        # Of a file that stores next to nothing SMALL bytes may be claimed: of those, too, twice at most.
        assert outcome["memory"] <= 2 * max(outcome["read"], outcome["size"], SMALL), outcome
        assert "episodes" in outcome or outcome["file"] in outcome["refused"], outcome
    return Counter("episodes" if "episodes" in outcome else "refused" for outcome in outcomes)


def names_its_key(outcome: dict[str, Any]) -> bool:
    """Whether a refusal names what in the file it is about; a file that cannot be opened at all has nothing."""
    said = outcome["refused"]
    whole = ("is not a readable", "has no finished episode", "has no episode", "episodes of different sizes")
    return any(text in said for text in whole) or "'" in said or "episode_" in said


def test_some_damaged_files():
    outcomes = read_batch(0, 200)
    found = check(outcomes)
    assert len(outcomes) == 200
    assert found["episodes"] > 20  # the damage is not always fatal,
    assert found["refused"] > 70  # and not always harmless
    assert {Path(outcome["file"]).name.split("-")[0] for outcome in outcomes} == {"d4rl", "minari", "npz"}
    assert all(names_its_key(outcome) for outcome in outcomes if "refused" in outcome)


@pytest.mark.slow
def test_ten_thousand_damaged_files():
    found: Counter[str] = Counter()
    for first in range(0, 10_000, 500):
        outcomes = read_batch(first, 500)
        found += check(outcomes)
        assert all(names_its_key(outcome) for outcome in outcomes if "refused" in outcome)
    assert found.total() == 10_000
