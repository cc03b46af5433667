"""The page on worlds says of each task what the code says."""

import re
from pathlib import Path

from dtune.envs.tasks import TASKS

PAGE = Path(__file__).parent.parent / "docs" / "worlds.md"


def test_the_table_of_tasks_is_that_of_the_code():
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    told = {name: row for row in rows for name in re.findall(r"`([\w-]+)`", row[0])}
    assert set(told) == set(TASKS)
    for name, (_, horizon, observes, acts, reference, _) in told.items():
        info = TASKS[name]
        assert (int(horizon), int(observes), int(acts)) == (info.horizon, info.observation_dim, info.action_dim)
        low, high = map(float, reference.split(", "))
        assert (low, high) == (round(info.reference_min, 6), round(info.reference_max, 4))
