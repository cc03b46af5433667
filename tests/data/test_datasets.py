import math

import pytest
import torch

from dtune.data.datasets import Dataset, check_fits, drop_lowest_return
from dtune.errors import DataError


def counting(lengths: list[int], rewards: list[float] | None = None, observation_dim: int = 2) -> Dataset:
    """Episodes whose observations are (episode + 1, step + 1), and whose actions are small and distinct."""
    episode = torch.cat([torch.full((n,), e + 1.0) for e, n in enumerate(lengths)])
    step = torch.cat([torch.arange(1.0, n + 1) for n in lengths])
    terminated = torch.zeros(len(step), dtype=torch.bool)
    terminated[torch.tensor(lengths).cumsum(0) - 1] = True
    return Dataset(
        observations=torch.stack([episode, step] * (observation_dim // 2), dim=1),
        actions=(episode / 100 + step / 1000)[:, None],
        rewards=step if rewards is None else torch.tensor(rewards, dtype=torch.float32),
        terminated=terminated,
        lengths=torch.tensor(lengths),
        name="counting",
    )


def test_sizes_starts_and_returns():
    dataset = counting([2, 1, 3], rewards=[1, 2, -4, 0.5, 0.25, 0.125])
    assert (len(dataset), dataset.steps) == (3, 6)
    assert dataset.starts.tolist() == [0, 2, 3]
    assert dataset.returns.tolist() == [3, -4, 0.875]
    assert dataset.returns.dtype == torch.float64


def test_hindsight_adds_up_what_was_still_earned_in_the_episode():
    dataset = counting([2, 1, 3, 5], rewards=[1, 2, -4, 0.5, 0.25, 0.125, 1, 2, 3, 4, 5])
    assert dataset.returns_to_go().tolist() == [3, 2, -4, 0.875, 0.375, 0.125, 15, 14, 12, 9, 5]


def test_hindsight_agrees_with_a_sum_at_every_step_of_long_episodes():
    lengths = [1, 1000, 17, 513, 2]
    rewards = torch.randn(sum(lengths), generator=torch.Generator().manual_seed(0))
    got = counting(lengths, rewards.tolist()).returns_to_go().split(lengths)
    for hindsight, earned in zip(got, rewards.split(lengths)):
        expected = [math.fsum(earned[t:].tolist()) for t in range(len(earned))]
        torch.testing.assert_close(hindsight, torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_hindsight_loses_nothing_to_rounding_or_to_other_episodes():
    small = [0.1] * 1000
    dataset = counting([1, 1000], rewards=[1e30, *small])
    assert dataset.returns_to_go()[1].item() == pytest.approx(math.fsum(torch.tensor(small).tolist()), rel=1e-7)


def test_statistics_are_over_all_rows_in_float64():
    dataset = counting([2, 2])
    mean, std = dataset.observation_statistics()
    assert mean.tolist() == [1.5, 1.5]
    assert std.tolist() == pytest.approx([0.5 + 1e-6, 0.5 + 1e-6])  # over N, not N - 1
    assert mean.dtype == std.dtype == torch.float32


def test_a_dimension_that_never_changes_gets_the_floor_as_deviation():
    n = 100_000
    dataset = counting([n])
    dataset.observations[:, 0] = 1000.1
    mean, std = dataset.observation_statistics()
    assert std[0].item() == pytest.approx(1e-6, rel=1e-6)
    assert mean[0].item() == dataset.observations[0, 0].item()


def test_a_window_in_the_middle_of_an_episode():
    steps = counting([3, 5]).windows(torch.tensor([1]), torch.tensor([1]), length=3)
    assert steps.observations.tolist() == [[[2, 2], [2, 3], [2, 4]]]
    assert steps.rewards.tolist() == [[2, 3, 4]]
    assert steps.returns_to_go.tolist() == [[14, 12, 9]]
    assert steps.timesteps.tolist() == [[1, 2, 3]]
    assert steps.mask.tolist() == [[True, True, True]]
    assert steps.log_probs.tolist() == [[0, 0, 0]]
    torch.testing.assert_close(steps.actions[0, :, 0], torch.tensor([0.022, 0.023, 0.024]))


def test_a_window_is_cut_at_the_end_and_padded_on_the_left():
    steps = counting([3, 5]).windows(torch.tensor([0, 1]), torch.tensor([1, 4]), length=4)
    assert steps.mask.tolist() == [[False, False, True, True], [False, False, False, True]]
    assert steps.observations[0].tolist() == [[0, 0], [0, 0], [1, 2], [1, 3]]
    assert steps.observations[1].tolist() == [[0, 0], [0, 0], [0, 0], [2, 5]]
    assert steps.rewards.tolist() == [[0, 0, 2, 3], [0, 0, 0, 5]]
    assert steps.returns_to_go.tolist() == [[0, 0, 5, 3], [0, 0, 0, 5]]
    assert steps.timesteps.tolist() == [[0, 0, 1, 2], [0, 0, 0, 4]]
    for padded in (steps.actions, steps.raw_actions):
        assert (padded[~steps.mask] == 0).all()
        assert (padded[steps.mask] != 0).all()


def test_a_window_longer_than_its_episode_starts_at_the_beginning():
    steps = counting([2]).windows(torch.tensor([0]), torch.tensor([0]), length=5)
    assert steps.mask.tolist() == [[False, False, False, True, True]]
    assert steps.timesteps.tolist() == [[0, 0, 0, 0, 1]]


def test_raw_actions_are_the_atanh_of_actions_and_finite_at_the_bounds():
    dataset = counting([4])
    dataset.actions[:, 0] = torch.tensor([-1.0, -0.5, 0.3, 1.0])
    steps = dataset.windows(torch.tensor([0]), torch.tensor([0]), length=4)
    assert steps.actions.flatten().tolist() == pytest.approx([-1.0, -0.5, 0.3, 1.0])
    bound = math.atanh(1 - 1e-6)
    expected = [-bound, math.atanh(-0.5), math.atanh(0.3), bound]
    assert steps.raw_actions.flatten().tolist() == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(("start", "length"), [(3, 2), (-1, 2), (0, 0)])
def test_a_window_outside_its_episode_is_refused(start: int, length: int):
    with pytest.raises(ValueError, match="inside its episode"):
        counting([3, 5]).windows(torch.tensor([0]), torch.tensor([start]), length)


def test_windows_start_evenly_at_all_rows():
    lengths, draws = [1, 4, 15], 40_000
    dataset = counting(lengths)
    steps = dataset.sample_windows(draws, length=3, generator=torch.Generator().manual_seed(1))
    first = steps.mask.int().argmax(1)
    observation = steps.observations[torch.arange(draws), first].long() - 1
    row = dataset.starts[observation[:, 0]] + observation[:, 1]
    counts = row.bincount(minlength=20).double()
    expected = draws / 20  # a row of any episode as likely as another: p(episode) is proportional to its length
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_square < 43.8  # 19 degrees of freedom: exceeded once in a thousand seeds
    assert (observation[:, 0].bincount().double() / draws).tolist() == pytest.approx([0.05, 0.2, 0.75], abs=0.01)


def test_sampled_windows_depend_on_the_generator_alone():
    dataset = counting([4, 9])
    a, b, c = (dataset.sample_windows(8, 3, torch.Generator().manual_seed(seed)).observations for seed in (5, 5, 6))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_the_lowest_return_is_dropped_and_no_other():
    dataset = counting([2, 1, 3], rewards=[1, 2, -4, 0.5, 0.25, 0.125])
    kept = drop_lowest_return(dataset)
    assert kept.returns.tolist() == [3, 0.875]
    assert kept.starts.tolist() == [0, 2]
    assert kept.observations.tolist() == [[1, 1], [1, 2], [3, 1], [3, 2], [3, 3]]
    assert kept.terminated.tolist() == [False, True, False, False, True]
    assert len(dataset) == 3


def test_among_equal_lowest_returns_one_is_dropped():
    assert drop_lowest_return(counting([1, 1, 1], rewards=[2, 2, 3])).returns.tolist() == [2, 3]


def test_an_only_episode_is_kept():
    assert len(drop_lowest_return(counting([3]))) == 1


def test_sizes_that_do_not_fit_are_refused():
    check_fits(counting([3]), observation_dim=2, action_dim=1)
    for sizes in ((3, 1), (2, 4)):
        with pytest.raises(DataError, match=r"observations of 2 and actions of 1 .* are needed"):
            check_fits(counting([3]), *sizes)
