"""Targets and losses of values, by hand."""

import math

import pytest
import torch

from dtune.functional.bellman import (
    advantage_weights,
    expectile_loss,
    smoothed_actions,
    soft_update,
    td_target,
    twin_loss,
)

NAN = float("nan")


def test_smoothing_cuts_the_noise_then_the_action():
    actions = torch.tensor([[0.0, 0.0, 0.0, 0.9]])
    noise = torch.tensor([[1.0, 10.0, -10.0, 10.0]])
    assert smoothed_actions(actions, noise).tolist() == [pytest.approx([0.2, 0.5, -0.5, 1.0])]
    assert smoothed_actions(actions, noise, std=0.1, limit=0.3).tolist() == [pytest.approx([0.1, 0.3, -0.3, 1.0])]


def test_the_target_looks_one_step_ahead_and_not_past_the_end():
    rewards, following = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, NAN, -10.0], requires_grad=True)
    targets = td_target(rewards, torch.tensor([False, True, False]), following, 0.9)
    assert targets.tolist() == pytest.approx([10.0, 2.0, -6.0])
    assert not targets.requires_grad


def test_the_twin_loss_adds_both_critics_errors_over_real_steps():
    values = torch.tensor([[1.0, 5.0, 0.0], [3.0, 5.0, 0.0]], requires_grad=True)
    targets = torch.tensor([2.0, 9.0, 1.0], requires_grad=True)
    loss = twin_loss(values, targets, torch.tensor([True, False, True]))
    assert loss.item() == pytest.approx(((1 + 1) + (1 + 1)) / 2)
    loss.backward()
    assert values.grad.tolist() == [[-1.0, 0.0, -1.0], [1.0, 0.0, -1.0]]
    assert targets.grad is None
    assert twin_loss(values, targets, torch.zeros(3, dtype=torch.bool)).item() == 0


def test_the_expectile_loss_leans_to_one_side():
    errors = torch.tensor([2.0, -2.0, 0.0])
    assert expectile_loss(errors, 0.7).tolist() == pytest.approx([2.8, 1.2, 0.0])
    assert expectile_loss(errors, 0.5).tolist() == pytest.approx([2.0, 2.0, 0.0])


@pytest.mark.parametrize(("expectile", "expected"), [(0.5, 5.0), (0.9, 9.0), (0.1, 1.0)])
def test_its_minimum_is_the_expectile(expectile, expected):
    """Of 0 and 10: τ(10 - v) = (1 - τ)v, so v = 10τ."""
    grid = torch.linspace(0, 10, 1001)
    loss = expectile_loss(torch.tensor([0.0, 10.0])[:, None] - grid, expectile).sum(0)
    assert grid[loss.argmin()].item() == pytest.approx(expected, abs=0.011)


def test_better_actions_weigh_more_up_to_a_limit():
    advantages = torch.tensor([0.0, 1.0, -1.0, 50.0, 1e9], requires_grad=True)
    weights = advantage_weights(advantages, 3.0)
    assert weights.tolist() == pytest.approx([1.0, math.exp(3), math.exp(-3), 100.0, 100.0], rel=1e-5)
    assert not weights.requires_grad
    assert advantage_weights(advantages, 0.0).tolist() == [1.0] * 5


def test_a_target_follows_slowly():
    target, source = (
        [torch.tensor([0.0, 4.0]), torch.tensor([[1.0]])],
        [torch.tensor([1.0, 0.0]), torch.tensor([[1.0]])],
    )
    soft_update(target, source, 0.25)
    assert [t.tolist() for t in target] == [[0.25, 3.0], [[1.0]]]
    assert source[0].tolist() == [1.0, 0.0]
    soft_update(target, source, 1.0)
    assert target[0].equal(source[0])
