"""The replay of single transitions: which steps have a successor, and which have to leave."""

import pytest
import torch

from dtune.data.datasets import Dataset
from dtune.data.experience import TransitionReplay, return_unit, transitions
from dtune.errors import ConfigError, DataError


def two_episodes() -> Dataset:
    """Three steps that the clock cuts, then two that terminate; observations count from 10 and from 20."""
    return Dataset(
        observations=torch.tensor([[10.0], [11], [12], [20], [21]]),
        actions=torch.tensor([[0.0], [0.1], [0.2], [0.3], [0.4]]),
        rewards=torch.tensor([1.0, 2, 3, 4, 5]),
        terminated=torch.tensor([False, False, False, False, True]),
        lengths=torch.tensor([3, 2]),
        name="two episodes",
    )


def new(*numbers: float) -> dict[str, torch.Tensor]:
    column = torch.tensor(numbers, dtype=torch.float32)
    return {
        "observations": column[:, None], "actions": column[:, None], "rewards": column,
        "terminated": torch.zeros(len(numbers), dtype=torch.bool), "next_observations": column[:, None] + 1,
    }  # fmt: skip


def held(replay: TransitionReplay) -> list[float]:
    return sorted(set(replay.sample(400, torch.Generator().manual_seed(0))["observations"].flatten().tolist()))


def test_a_time_limit_is_no_end_so_the_step_without_its_successor_is_left_out():
    rows = transitions(two_episodes())
    assert rows["observations"].flatten().tolist() == [10, 11, 20, 21]
    assert rows["next_observations"].flatten().tolist()[:3] == [11, 12, 21]  # never over into the next episode
    assert rows["terminated"].tolist() == [False, False, False, True]
    assert rows["rewards"].tolist() == [1, 2, 4, 5]


def test_begins_with_the_whole_dataset_and_writes_over_the_oldest():
    replay = TransitionReplay(5, two_episodes())
    assert (len(replay), held(replay)) == (4, [10, 11, 20, 21])
    replay.extend(new(30))
    assert (len(replay), held(replay)) == (5, [10, 11, 20, 21, 30])
    replay.extend(new(31, 32))
    assert (len(replay), held(replay)) == (5, [20, 21, 30, 31, 32])
    replay.extend(new(33, 34, 35))
    assert held(replay) == [31, 32, 33, 34, 35]


def test_columns_stay_together_and_are_drawn_evenly():
    replay = TransitionReplay(9, two_episodes())
    replay.extend(new(40))
    drawn = replay.sample(10_000, torch.Generator().manual_seed(1))
    assert drawn["next_observations"][drawn["observations"] == 40].unique().tolist() == [41]
    assert drawn["rewards"][drawn["observations"][:, 0] == 20].unique().tolist() == [4]
    shares = drawn["observations"].flatten().unique(return_counts=True)[1] / 10_000
    assert shares.tolist() == pytest.approx([0.2] * 5, abs=0.015)


def test_rewards_of_the_dataset_are_scaled_and_later_ones_are_not():
    replay = TransitionReplay(9, two_episodes(), reward_scale=10.0)
    replay.extend(new(7))
    rewards = replay.sample(400, torch.Generator().manual_seed(0))["rewards"]
    assert sorted(rewards.unique().tolist()) == [7, 10, 20, 40, 50]


def test_the_unit_is_the_range_of_returns():
    assert return_unit(two_episodes()) == pytest.approx(1 / 3)  # 9 - 6
    with pytest.raises(DataError, match="all its returns are the same"):
        return_unit(two_episodes().newest(1))


@pytest.mark.parametrize("added", [0, 1, 4, 7])
def test_a_saved_replay_goes_on_as_if_never_interrupted(added):
    one, other = (TransitionReplay(6, two_episodes(), reward_scale=2.0) for _ in range(2))
    for number in range(added):
        one.extend(new(30.0 + number))
    other.extend(new(*range(90, 96)))  # whatever it was before
    other.load_state_dict(one.state_dict())
    for _ in range(2):
        first, second = (replay.sample(50, torch.Generator().manual_seed(3)) for replay in (one, other))
        assert all(first[name].equal(second[name]) for name in first)
        one.extend(new(50, 51, 52))
        other.extend(new(50, 51, 52))


def test_refuses_another_replay_and_a_dataset_it_cannot_hold():
    state = TransitionReplay(6, two_episodes()).state_dict()
    with pytest.raises(ValueError, match="continue with the same"):
        TransitionReplay(7, two_episodes()).load_state_dict(state)
    with pytest.raises(ConfigError, match=r"4 transitions of two episodes.*holds 3: raise replay_capacity"):
        TransitionReplay(3, two_episodes())
