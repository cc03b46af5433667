"""Returns and advantages against sums done by hand."""

import math

import pytest
import torch

from dtune.functional.advantages import (
    discounted_return,
    generalized_advantages,
    group_advantages,
    outside_margin,
    returns_to_go,
)

NAN = float("nan")


def lengths_mask(lengths: list[int], time: int) -> torch.Tensor:
    return torch.arange(time) < torch.tensor(lengths)[:, None]


# returns-to-go


def test_returns_to_go_are_suffix_sums():
    rewards = torch.tensor([[1.0, 2.0, 4.0], [0.0, -1.0, 0.5]])
    assert returns_to_go(rewards).tolist() == [[7, 6, 4], [-0.5, -0.5, 0.5]]


def test_returns_to_go_stop_where_the_episode_does():
    rewards = torch.tensor([[1.0, 2.0, 99.0, NAN], [NAN, 99.0, 3.0, 4.0]])
    mask = torch.tensor([[True, True, False, False], [False, False, True, True]])
    assert returns_to_go(rewards, mask).tolist() == [[3, 2, 0, 0], [0, 0, 7, 4]]


def test_returns_to_go_keep_the_type_of_the_rewards():
    assert returns_to_go(torch.ones(1, 2)).dtype == torch.float32


# discounted return


def test_discounted_return_by_hand():
    rewards = torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]])
    # 1 + 2/2 + 4/4 = 3; the second row ended after its second step: 1 + 2/2 = 2
    assert discounted_return(rewards, lengths_mask([3, 2], 3), 0.5).tolist() == [3, 2]


def test_discounted_return_ignores_what_stands_in_padding():
    rewards = torch.tensor([[1.0, NAN], [1.0, math.inf]])
    assert discounted_return(rewards, lengths_mask([1, 1], 2), 0.9).tolist() == [1, 1]


@pytest.mark.parametrize(("gamma", "expected"), [(0.0, 3.0), (1.0, 12.0)])
def test_discounted_return_at_the_ends_of_gamma(gamma, expected):
    rewards = torch.tensor([[3.0, 4.0, 5.0]])
    assert discounted_return(rewards, lengths_mask([3], 3), gamma).tolist() == [expected]


def test_discounted_return_is_summed_in_float64():
    rewards = torch.rand(1, 415, generator=torch.Generator().manual_seed(0))
    total = discounted_return(rewards, lengths_mask([415], 415), 0.995)
    exact = math.fsum(0.995**j * r for j, r in enumerate(rewards[0].tolist()))
    assert total.dtype == torch.float64
    assert total.item() == pytest.approx(exact, rel=1e-13)


# group advantages


def test_group_advantages_by_hand():
    # mean 3, squared deviations 4 + 0 + 4 = 8, unbiased variance 8 / 2 = 4
    advantages = group_advantages(torch.tensor([[1.0, 3.0, 5.0]], dtype=torch.float64), eps=0.0)
    assert advantages.tolist() == [[-1, 0, 1]]


def test_group_advantages_on_the_scale_of_the_batch_by_hand():
    """Deviations (-1, 0, 1) and (-10, 0, 10): pooled variance (2 + 200) / (2 + 2) = 50.5."""
    returns = torch.tensor([[1.0, 2.0, 3.0], [0.0, 10.0, 20.0]], dtype=torch.float64)
    expected = torch.tensor([[-1.0, 0.0, 1.0], [-10.0, 0.0, 10.0]], dtype=torch.float64) / 50.5**0.5
    torch.testing.assert_close(group_advantages(returns, scale="batch"), expected)
    broken = returns.clone()
    broken[0, 1] = float("nan")  # left out: deviations (-1, 1) and (-10, 0, 10), pooled (2 + 200) / (1 + 2)
    valid = ~broken.isnan()
    expected = torch.tensor([[-1.0, 0.0, 1.0], [-10.0, 0.0, 10.0]], dtype=torch.float64) / (202 / 3) ** 0.5
    torch.testing.assert_close(group_advantages(broken, valid=valid, scale="batch"), expected)


def test_group_advantages_divided_by_nothing_stay_in_reward_units():
    returns = torch.tensor([[1.0, 2.0, 6.0], [0.0, 10.0, 20.0], [0.1, 0.1, 0.1]], dtype=torch.float64)
    assert group_advantages(returns, scale="none").tolist() == [[-2, -1, 3], [-10, 0, 10], [0, 0, 0]]


def test_leave_one_out_compares_each_with_the_others():
    """1 - (2 + 6)/2, 2 - (1 + 6)/2, 6 - (1 + 2)/2; where one member is left out, the two others with each other."""
    returns = torch.tensor([[1.0, 2.0, 6.0], [1.0, NAN, 6.0]], dtype=torch.float64)
    valid = ~returns.isnan()
    got = group_advantages(returns, valid=valid, scale="none", baseline="leave_one_out")
    assert got.tolist() == [[-3, -1.5, 4.5], [-5, 0, 5]]
    deviations = torch.tensor([[7.0**0.5], [12.5**0.5]], dtype=torch.float64)  # of the members, as without it
    torch.testing.assert_close(group_advantages(returns, valid=valid, baseline="leave_one_out"), got / deviations)


def test_group_advantages_use_the_unbiased_standard_deviation():
    returns = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    advantages = group_advantages(returns)
    assert torch.allclose(advantages.mean(-1), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(advantages.std(-1), torch.ones(5, dtype=torch.float64), atol=1e-6)


def test_group_advantages_add_eps_to_the_standard_deviation():
    returns = torch.tensor([[1.0, 3.0, 5.0]], dtype=torch.float64)  # standard deviation 2
    assert group_advantages(returns, eps=2.0).tolist() == [[-0.5, 0, 0.5]]


@pytest.mark.parametrize(("scale", "shift"), [(100, -700), (1e-9, 0)])
def test_group_advantages_do_not_change_with_scale_or_shift(scale, shift):
    returns = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved = group_advantages(scale * returns + shift, eps=0.0)
    assert torch.allclose(moved, group_advantages(returns, eps=0.0), atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -437.3])
def test_a_group_of_equal_returns_has_no_advantage(dtype, value):
    returns = torch.full((1, 3), value, dtype=dtype)
    assert group_advantages(returns, eps=0.0).tolist() == [[0, 0, 0]]


def test_a_difference_in_the_last_digits_is_no_advantage():
    returns = torch.tensor([[500.0, 500.0, 500.0, 500.0 + 1e-5]], dtype=torch.float64)
    assert group_advantages(returns).tolist() == [[0, 0, 0, 0]]


def test_a_small_but_real_difference_is_an_advantage():
    returns = torch.tensor([[500.0, 500.0, 500.0, 500.01]], dtype=torch.float64)
    assert group_advantages(returns)[0, 3] == pytest.approx(1.5, rel=1e-3)


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="at least 2 members to form a baseline, got 1"):
        group_advantages(torch.zeros(4, 1))


def test_invalid_members_count_in_nothing():
    returns = torch.tensor([[1.0, NAN, 3.0, 5.0], [1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    valid = ~returns.isnan()
    advantages = group_advantages(returns, eps=0.0, valid=valid)
    assert advantages[0].tolist() == [-1, 0, 0, 1]  # as of the group (1, 3, 5)
    assert torch.equal(advantages[1], group_advantages(returns[1:], eps=0.0)[0])


def test_invalid_members_count_in_nothing_though_finite():
    returns = torch.tensor([[1.0, 1e6, 3.0, 5.0]], dtype=torch.float64)
    valid = torch.tensor([[True, False, True, True]])
    assert group_advantages(returns, eps=0.0, valid=valid).tolist() == [[-1, 0, 0, 1]]


@pytest.mark.parametrize("valid", [[True, False, False], [False, False, False]])
def test_fewer_than_two_valid_members_have_no_advantage(valid):
    returns = torch.tensor([[4.0, NAN, NAN]], dtype=torch.float64)
    assert group_advantages(returns, valid=torch.tensor([valid])).tolist() == [[0, 0, 0]]
    alone = group_advantages(returns, valid=torch.tensor([valid]), scale="none", baseline="leave_one_out")
    assert alone.tolist() == [[0, 0, 0]]


# margin


def test_the_margin_is_strict():
    returns = torch.tensor([[1.0, 3.0, 5.0, 5.0, 1.0]])  # mean 3
    assert outside_margin(returns, 2.0).tolist() == [[False] * 5]
    assert outside_margin(returns, 1.9).tolist() == [[True, False, True, True, True]]


def test_a_margin_of_zero_drops_exact_ties_only():
    returns = torch.tensor([[1.0, 3.0, 5.0], [2.0, 2.0, 2.0], [2.0, 2.0, 2.001]])
    assert outside_margin(returns, 0.0).tolist() == [[True, False, True], [False] * 3, [True] * 3]


def test_whoever_has_no_advantage_because_all_are_equal_is_dropped():
    returns = torch.tensor([[500.0, 500.0, 500.0, 500.0 + 1e-5], [500.0, 500.0, 500.0, 500.01]], dtype=torch.float64)
    assert not group_advantages(returns)[0].any()
    assert outside_margin(returns, 0.0).tolist() == [[False] * 4, [True] * 4]
    assert outside_margin(returns, -1.0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -437.3, 1e6 / 7])
def test_rounding_of_the_mean_breaks_no_tie(dtype, value):
    for group in (3, 5, 6, 7):  # sums of which the mean is not exact: three times 0.1, for one
        assert not outside_margin(torch.full((1, group), value, dtype=dtype), 0.0).any()


def test_invalid_members_neither_pull_the_mean_nor_pass_the_margin():
    returns = torch.tensor([[1.0, NAN, 3.0, 5.0], [1.0, 1e6, 3.0, 5.0]])
    valid = torch.tensor([[True, False, True, True]]).expand(2, 4)
    assert outside_margin(returns, 1.9, valid).tolist() == [[True, False, False, True]] * 2


def test_a_negative_margin_keeps_all_but_the_invalid():
    returns = torch.tensor([[2.0, 2.0, NAN]])
    assert outside_margin(returns, -1.0, ~returns.isnan()).tolist() == [[True, True, False]]


# generalised advantages


def textbook_gae(rewards, values, bootstrap, length, gamma, lam):
    """Eq. 4 as printed, for one row: a double sum."""
    following = [*values[1:length], bootstrap]
    deltas = [rewards[h] + gamma * following[h] - values[h] for h in range(length)]
    return [sum((gamma * lam) ** k * deltas[h + k] for k in range(length - h)) for h in range(length)]


@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
def test_gae_is_the_textbook_double_sum(gamma, lam):
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 4, 9, dtype=torch.float64, generator=generator)
    bootstrap = torch.randn(4, dtype=torch.float64, generator=generator)
    lengths = [9, 1, 5, 8]
    mask = lengths_mask(lengths, 9)
    advantages = generalized_advantages(rewards, values, bootstrap, mask, gamma, lam)
    for row, length in enumerate(lengths):
        expected = textbook_gae(rewards[row].tolist(), values[row].tolist(), bootstrap[row].item(), length, gamma, lam)
        assert advantages[row, :length].tolist() == pytest.approx(expected, rel=1e-12)
        assert (advantages[row, length:] == 0).all()


def test_gae_by_hand():
    # last step: 2 + ½·8 - 1 = 5; first step: 1 + ½·1 - 3 = -1.5, and ½·½ of what follows: -1.5 + 1.25
    advantages = generalized_advantages(
        rewards=torch.tensor([[1.0, 2.0]]),
        values=torch.tensor([[3.0, 1.0]]),
        bootstrap=torch.tensor([8.0]),
        mask=torch.ones(1, 2, dtype=torch.bool),
        gamma=0.5,
        gae_lambda=0.5,
    )
    assert advantages.tolist() == [[-0.25, 5.0]]


def test_gae_bootstraps_at_time_limits_and_not_at_terminations():
    """With V the return of one reward a step for ever, a time limit is no news and an end is bad news."""
    value = 1 / (1 - 0.9)
    advantages = generalized_advantages(
        rewards=torch.ones(2, 5, dtype=torch.float64),
        values=torch.full((2, 5), value, dtype=torch.float64),
        bootstrap=torch.tensor([value, 0.0], dtype=torch.float64),
        mask=lengths_mask([5, 3], 5),
        gamma=0.9,
        gae_lambda=0.8,
    )
    assert advantages[0].tolist() == pytest.approx([0] * 5, abs=1e-12)
    assert advantages[1].tolist() == pytest.approx([-9 * 0.72**2, -9 * 0.72, -9, 0, 0], abs=1e-12)


def test_gae_does_not_read_padding_on_either_side():
    rewards = torch.tensor([[NAN, 1.0, 2.0, NAN]])
    values = torch.tensor([[NAN, 3.0, 1.0, NAN]])
    mask = torch.tensor([[False, True, True, False]])
    advantages = generalized_advantages(rewards, values, torch.tensor([8.0]), mask, 0.5, 0.5)
    assert advantages.tolist() == [[0, -0.25, 5.0, 0]]


def test_gae_is_a_constant():
    values = torch.randn(2, 3, requires_grad=True)
    bootstrap = torch.randn(2, requires_grad=True)
    advantages = generalized_advantages(torch.ones(2, 3), values, bootstrap, lengths_mask([3, 2], 3), 0.9, 0.9)
    assert not advantages.requires_grad
