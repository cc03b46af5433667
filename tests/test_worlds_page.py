"""The page on worlds says of each task what the code says."""

import re
from pathlib import Path

from dtune.envs.tasks import TASKS

PAGE = Path(__file__).parent.parent / "docs" / "worlds.md"


def told(cells: int) -> dict[str, list[str]]:
    """The row of each task in the table of so many columns."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return {name: row for row in rows if len(row) == cells for name in re.findall(r"`([\w-]+)`", row[0])}


def test_the_table_of_successes_is_that_of_the_code():
    rules = {name: info.success.steps for name, info in TASKS.items() if info.success}
    assert {name: int(steps) for name, (_, _, steps) in told(3).items()} == rules


def test_the_table_of_tasks_is_that_of_the_code():
    assert set(told(6)) == set(TASKS)
    for name, (_, horizon, observes, acts, reference, _) in told(6).items():
        info = TASKS[name]
        assert (int(horizon), int(observes), int(acts)) == (info.horizon, info.observation_dim, info.action_dim)
        low, high = map(float, reference.split(", "))
        assert (low, high) == (round(info.reference_min, 6), round(info.reference_max, 4))
