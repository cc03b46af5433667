import pytest
import torch
from torch import Tensor

from dtune.data.columns import make_dataset
from dtune.data.splitting import adroit_episode_ends, cut_antmaze, episode_ends


def flags(*rows: int, of: int) -> Tensor:
    result = torch.zeros(of, dtype=torch.bool)
    result[list(rows)] = True
    return result


def transitions(terminals: Tensor, timeouts: Tensor, observations: Tensor) -> tuple[list[int], list[int]]:
    """The published way, step by step: rows kept of D4RL's transitions, and lengths of the trajectories."""
    kept = [row for row in range(len(terminals) - 1) if not timeouts[row]]
    lengths = [0]
    for position, row in enumerate(kept):
        lengths[-1] += 1
        following = kept[position + 1] if position + 1 < len(kept) else None
        if following is not None and (
            terminals[row] or (observations[following] - observations[row + 1]).norm() > 1e-6
        ):
            lengths.append(0)
    return kept, lengths if kept else []


def test_locomotion_is_cut_at_terminals_and_timeouts():
    assert episode_ends(flags(0, 4, 5, of=8), flags(2, 4, of=8)).tolist() == [1, 3, 5, 6]
    assert episode_ends(flags(of=3), flags(of=3)).tolist() == []


def test_adroit_never_looks_at_the_last_row():
    assert adroit_episode_ends(flags(2, of=6), flags(5, of=6)).tolist() == [3]
    assert adroit_episode_ends(flags(2, of=6), flags(4, of=6)).tolist() == [3, 5]


def test_antmaze_loses_the_row_of_a_timeout_and_keeps_the_tail():
    #  row        0 1 2 3 4 5 6 7 8 9
    #  timeout        x       x
    #  terminal             x
    cut = cut_antmaze(flags(5, of=10), flags(2, 6, of=10))
    assert cut.rows.tolist() == [0, 1, 3, 4, 5, 7, 8]
    assert cut.lengths.tolist() == [2, 3, 2]


def test_antmaze_keeps_episodes_of_one_step():
    assert cut_antmaze(flags(2, 3, 4, of=8), flags(of=8)).lengths.tolist() == [3, 1, 1, 2]


@pytest.mark.parametrize("seed", range(20))
def test_antmaze_is_cut_as_published(seed: int):
    generator = torch.Generator().manual_seed(seed)
    terminals, timeouts = (torch.rand(60, generator=generator) < 0.15 for _ in range(2))
    rows, lengths = cut_antmaze(terminals, timeouts)
    kept, expected = transitions(terminals, timeouts, torch.randn(60, 2, generator=generator))
    assert (rows.tolist(), lengths.tolist()) == (kept, expected)


@pytest.mark.parametrize("of", [0, 1])
def test_antmaze_needs_two_rows(of: int):
    cut = cut_antmaze(torch.zeros(of, dtype=torch.bool), torch.zeros(of, dtype=torch.bool))
    assert (len(cut.rows), len(cut.lengths)) == (0, 0)


def test_antmazes_rows_are_taken_from_every_column():
    numbers = torch.arange(10.0)
    columns = {
        "observations": numbers[:, None],
        "actions": numbers[:, None] / 10,
        "rewards": numbers[:, None],
        "terminals": flags(5, of=10)[:, None],
        "timeouts": flags(2, 6, of=10),
    }
    dataset = make_dataset(columns, name="maze", splitting="antmaze")
    expected = [0, 1, 3, 4, 5, 7, 8]
    assert dataset.observations[:, 0].tolist() == dataset.rewards.tolist() == expected
    assert dataset.actions[:, 0].tolist() == pytest.approx([number / 10 for number in expected])
    assert dataset.terminated.tolist() == [number == 5 for number in expected]
    assert dataset.lengths.tolist() == [2, 3, 2]
