"""The replay of trajectories: who is in it, who has to leave, and what is drawn from it."""

import pytest
import torch

from dtune.data.datasets import Dataset, columns_of, recorded
from dtune.data.steps import empty_steps
from dtune.data.trajectories import TrajectoryReplay


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def earning(*returns: float, length: int = 2) -> Dataset:
    """Episodes that earn these returns, half of it at each of two steps, and show them as their observations."""
    each = torch.tensor(returns, dtype=torch.float32).repeat_interleave(length)
    ends = torch.arange(1, len(each) + 1) % length == 0
    return Dataset(
        observations=torch.stack([each, torch.arange(len(each)) % length + 1.0], 1),
        actions=torch.full((len(each), 1), 0.5),
        rewards=each / length,
        terminated=ends,
        lengths=torch.full((len(returns),), length),
        name="earning",
    )


def held(replay: TrajectoryReplay) -> list[float]:
    return replay.dataset.returns.tolist()


def test_begins_with_the_best_of_the_offline_trajectories_in_ascending_order():
    replay = TrajectoryReplay(3, earning(5, 1, 4, 2, 3))
    assert held(replay) == [3, 4, 5]
    assert replay.dataset.observations[:, 0].tolist() == [3, 3, 4, 4, 5, 5]
    assert held(TrajectoryReplay(9, earning(5, 1, 4))) == [1, 4, 5]


def test_first_in_first_out_the_worst_of_the_offline_ones_before_the_others():
    replay, seen = TrajectoryReplay(3, earning(5, 1, 4, 2, 3)), []
    for added in ((9,), (0,), (8, 1), (7,), (), (6, 6, 2, 1)):
        replay.extend(earning(*added))
        seen.append(held(replay))
    assert seen == [[4, 5, 9], [5, 9, 0], [0, 8, 1], [8, 1, 7], [8, 1, 7], [6, 2, 1]]


def test_fills_up_before_anything_leaves():
    replay = TrajectoryReplay(4, earning(2, 1))
    replay.extend(earning(0))
    assert held(replay) == [1, 2, 0]
    replay.extend(earning(3, 4))
    assert held(replay) == [2, 0, 3, 4]


def test_what_was_handed_out_stays_as_it_was():
    replay = TrajectoryReplay(2, earning(1, 2))
    before = replay.dataset
    copies = {name: value.clone() for name, value in columns_of(before).items()}
    replay.extend(earning(3))
    assert all(value.equal(copies[name]) for name, value in columns_of(before).items())


def test_windows_by_hand():
    """Left-padded at an episode's end, and never over it into the next."""
    replay = TrajectoryReplay(2, earning(6, 3, length=3))
    windows = replay.dataset.windows(torch.tensor([0, 0, 1]), torch.tensor([0, 2, 1]), 2)
    assert windows.observations[..., 1].tolist() == [[1, 2], [0, 3], [2, 3]]
    assert windows.mask.tolist() == [[True, True], [False, True], [True, True]]
    assert windows.timesteps.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert windows.returns_to_go.tolist() == [[3, 2], [0, 1], [4, 2]]


def test_drawn_by_length_and_started_anywhere():
    offline = earning(1, 1, length=1)
    replay = TrajectoryReplay(9, offline)
    replay.extend(earning(8, length=8))
    windows = replay.dataset.sample_windows(20_000, 1, seeded())
    long = windows.observations[:, 0, 0] == 8
    assert long.float().mean().item() == pytest.approx(0.8, abs=0.015)
    starts = windows.timesteps[long, 0].bincount(minlength=8) / long.sum()
    assert starts.tolist() == pytest.approx([1 / 8] * 8, abs=0.015)


def test_what_was_asked_for_is_replaced_by_what_was_earned():
    """Hindsight: a walked trajectory comes back with the returns it achieved."""
    steps = empty_steps(2, 3, 1, 1)
    steps.mask[0], steps.mask[1, :2] = True, True
    steps.rewards[0], steps.rewards[1, :2] = torch.tensor([1.0, 2, 4]), torch.tensor([8.0, 16])
    steps.returns_to_go.fill_(7200)
    walked = recorded(steps, torch.tensor([False, True]), "walked")
    assert walked.lengths.tolist() == [3, 2]
    assert walked.rewards.tolist() == [1, 2, 4, 8, 16]
    assert walked.terminated.tolist() == [False, False, False, False, True]
    assert walked.returns_to_go().tolist() == [7, 6, 4, 24, 16]


def test_other_columns_are_found_by_the_rows_of_windows():
    dataset = earning(6, 3, length=3)
    rows, mask = dataset.window_rows(torch.tensor([0, 1]), torch.tensor([1, 0]), 3)
    assert rows[mask].tolist() == [1, 2, 3, 4, 5]
    assert mask.tolist() == [[False, True, True], [True, True, True]]
    assert rows.max() < dataset.steps


@pytest.mark.parametrize("saved_after", [0, 1, 3])
def test_a_saved_replay_goes_on_as_if_never_interrupted(saved_after):
    replay, other = TrajectoryReplay(3, earning(5, 1, 4, 2)), TrajectoryReplay(3, earning(5, 1, 4, 2))
    for added in range(saved_after):
        replay.extend(earning(10 + added))
    other.extend(earning(99, 98, 97, 96))  # whatever it was before
    other.load_state_dict(replay.state_dict())
    for _ in range(2):
        assert held(other) == held(replay)
        assert other.dataset.sample_windows(9, 2, seeded()).observations.equal(
            replay.dataset.sample_windows(9, 2, seeded()).observations
        )
        replay.extend(earning(7, 20))
        other.extend(earning(7, 20))


@pytest.mark.parametrize(("capacity", "offline"), [(2, (5, 1, 4)), (3, (5, 1))])
def test_refuses_to_go_on_from_another_replay(capacity, offline):
    state = TrajectoryReplay(3, earning(5, 1, 4)).state_dict()
    with pytest.raises(ValueError, match="continue with the same"):
        TrajectoryReplay(capacity, earning(*offline)).load_state_dict(state)


def test_refuses_to_hold_nothing():
    with pytest.raises(ValueError, match="at least 1"):
        TrajectoryReplay(0, earning(1))
