import math

import pytest
import torch

from dtune.data.columns import make_dataset
from dtune.data.summary import bins, ranges, remarks, spread, summarise


def columns(rows: int = 12) -> dict[str, torch.Tensor]:
    """Three episodes of four steps, of which the clock ends the second."""
    generator = torch.Generator().manual_seed(0)
    row = torch.arange(rows)
    return {
        "observations": torch.randn(rows, 3, generator=generator),
        "actions": torch.rand(rows, 2, generator=generator) * 1.8 - 0.9,
        "rewards": torch.arange(1.0, rows + 1),
        "terminals": (row == 3) | (row == 11),
        "timeouts": row == 7,
    }


def said(given: dict[str, torch.Tensor]) -> list[str]:
    return list(remarks(given, make_dataset(given, name="made")))


def test_statistics_by_hand():
    found = summarise(make_dataset(columns(), name="made"))
    assert (found.episodes, found.steps, found.terminated) == (3, 12, 2)
    # returns 10, 26, 42: mean 26, variance (256 + 0 + 256) / 3
    assert found.returns == pytest.approx((10, 26, math.sqrt(512 / 3), 42))
    assert found.lengths == (4, 4, 0, 4)


def test_the_deviation_is_over_n():
    assert spread(torch.tensor([1.0, 3.0], dtype=torch.float64)).deviation == 1


def test_ranges_leave_out_what_is_not_finite():
    given = columns()
    given["rewards"][0], given["rewards"][5] = math.nan, math.inf
    given["actions"][:] = math.nan
    found = ranges(given)
    assert found["rewards"] == ((12,), 2, (78 - 1 - 6) / 10, 12)
    assert found["terminals"] == ((12,), 0, pytest.approx(2 / 12), 1)
    assert found["actions"][0] == (12, 2)
    assert all(math.isnan(number) for number in found["actions"][1:])


def test_bins_hold_every_number_once():
    numbers = torch.tensor([0.0, 1.0, 1.0, 2.0, 3.9, 4.0], dtype=torch.float64)
    assert bins(numbers, 4) == ([0, 1, 2, 3], [1, 2, 1, 2])
    assert bins(torch.ones(5, dtype=torch.float64), 4) == ([1], [5])
    many = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert sum(bins(many, 12)[1]) == 1000


def test_nothing_is_said_of_ordinary_data():
    assert said(columns()) == []


def test_a_tail_is_said():
    given = columns()
    given["terminals"][11] = False
    assert said(given) == ["4 of 12 rows are left out: no end follows them, or the splitting drops them"]


def test_both_flags_at_once_are_said():
    given = columns()
    given["timeouts"][3] = True
    assert said(given) == ["1 rows are terminals and timeouts at once: they count as terminals"]


def test_single_steps_are_said():
    given = columns()
    given["timeouts"][0] = given["timeouts"][4] = True
    assert said(given) == ["2 episodes have a single step"]


def test_episodes_that_are_there_twice_are_said():
    given = {key: torch.cat([value, value[:8]]) for key, value in columns().items()}
    assert said(given) == ["2 episodes are there before, number for number"]
    given["observations"][13, 1] += 1  # not in the first row, by which they are compared first
    assert said(given) == ["1 episodes are there before, number for number"]


def test_numbers_that_never_change_are_said():
    given = columns()
    given["observations"][:, 1] = 5
    given["actions"][:] = 0.5
    first, second = said(given)
    assert first.startswith("observations 1 never change")
    assert second == "actions 0, 1 never change: nothing is tried"


def test_actions_at_the_edge_and_no_rewards_are_said():
    given = columns()
    given["actions"][:6, 0] = 1
    given["rewards"][:] = 0
    edges, rewards = said(given)
    assert edges.startswith("25% of the actions lie at -1 or 1, where a tanh never comes: an `action_limit` below 1")
    assert rewards == "all rewards are 0"
