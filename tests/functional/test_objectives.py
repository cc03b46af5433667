"""Objectives by hand: values, gradients, masks of unequal length."""

import math

import pytest
import torch

from dtune.functional.objectives import (
    clip_fraction,
    clipped_surrogate,
    entropy_dual,
    masked_mean,
    sequence_ratio,
    token_ratio,
    value_loss,
)

NAN = float("nan")
UNEQUAL = torch.tensor([[True, True, True], [True, False, False]])


def logs(*rows):
    return torch.tensor(rows).log()


# ratios


def test_token_ratio_is_new_over_old():
    ratio = token_ratio(logs([0.2, 0.5]), logs([0.1, 1.0]))
    assert ratio[0].tolist() == pytest.approx([2.0, 0.5])


def test_token_ratio_is_bounded_where_a_sample_is_stale():
    log_probs = torch.tensor([[1000.0, -1000.0, 0.0]], requires_grad=True)
    ratio = token_ratio(log_probs, torch.zeros(1, 3))
    assert ratio[0].tolist() == pytest.approx([math.exp(20), math.exp(-20), 1])
    ratio.sum().backward()
    assert log_probs.grad.tolist() == [[0, 0, 1]]


def test_sequence_ratio_is_the_product_over_real_steps():
    log_probs, old = logs([0.2, 0.5, 0.3], [0.3, 0.9, 0.9]), logs([0.1, 1.0, 0.1], [0.1, 0.1, 0.1])
    assert sequence_ratio(log_probs, old, UNEQUAL).tolist() == pytest.approx([2 * 0.5 * 3, 3])


def test_geometric_mean_is_the_root_of_each_rows_own_length():
    log_probs, old = logs([0.2, 0.5, 0.3], [0.3, 0.9, 0.9]), logs([0.1, 1.0, 0.1], [0.1, 0.1, 0.1])
    ratio = sequence_ratio(log_probs, old, UNEQUAL, geometric_mean=True)
    assert ratio.tolist() == pytest.approx([3 ** (1 / 3), 3])


@pytest.mark.parametrize("geometric_mean", [False, True])
def test_a_row_without_steps_has_ratio_one(geometric_mean):
    garbage = torch.full((1, 3), NAN)
    mask = torch.zeros(1, 3, dtype=torch.bool)
    assert sequence_ratio(garbage, garbage, mask, geometric_mean=geometric_mean).tolist() == [1]


@pytest.mark.parametrize(("geometric_mean", "share"), [(False, [1, 1]), (True, [1 / 3, 1])])
def test_sequence_ratio_pulls_every_real_step_alike_and_no_padding(geometric_mean, share):
    log_probs = torch.tensor([[0.1, -0.2, 0.3], [0.4, 5.0, 5.0]], requires_grad=True)
    ratio = sequence_ratio(log_probs, torch.zeros(2, 3), UNEQUAL, geometric_mean=geometric_mean)
    ratio.sum().backward()
    expected = (ratio.detach() * torch.tensor(share))[:, None] * UNEQUAL  # dw/dlogπ = w, or w / |τ|
    assert torch.allclose(log_probs.grad, expected)


def test_sequence_ratio_clamps_the_sum_and_not_its_terms():
    log_ratio = torch.tensor([[30.0, -25.0], [30.0, 30.0], [-30.0, -30.0]])
    ratio = sequence_ratio(log_ratio, torch.zeros(3, 2), torch.ones(3, 2, dtype=torch.bool))
    assert ratio.tolist() == pytest.approx([math.exp(5), math.exp(20), math.exp(-20)])


def test_sequence_ratio_sums_in_float64():
    log_ratio = torch.tensor([[2.0**24, 1.0, -(2.0**24)]])  # float32 loses the 1
    ratio = sequence_ratio(log_ratio, torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool))
    assert ratio.item() == pytest.approx(math.e)
    assert ratio.dtype == torch.float32


# clipped surrogate


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.1, 2.0, 2.2, 2.0),  # inside: wÂ
        (1.5, 2.0, 2.4, 0.0),  # good and already likelier by more than ε: enough
        (0.5, 2.0, 1.0, 2.0),  # good but less likely: pull it back, from however far
        (0.5, -2.0, -1.6, 0.0),  # bad and already rarer by more than ε: enough
        (1.5, -2.0, -3.0, -2.0),  # bad but likelier: push it down, from however far
    ],
)
def test_clipping_stops_the_gradient_only_where_it_would_overshoot(ratio, advantage, value, slope):
    ratios = torch.tensor([ratio], requires_grad=True)
    objective = clipped_surrogate(ratios, torch.tensor([advantage]), 0.2)
    objective.sum().backward()
    assert objective.item() == pytest.approx(value)
    assert ratios.grad.item() == pytest.approx(slope)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.25, 2.0, 2.5, 2.0),  # beyond ε but not beyond ε'
        (1.5, 2.0, 2.6, 0.0),
        (0.75, -2.0, -1.6, 0.0),  # the lower bound is still ε's
    ],
)
def test_the_upper_clip_may_be_its_own(ratio, advantage, value, slope):
    ratios = torch.tensor([ratio], requires_grad=True)
    objective = clipped_surrogate(ratios, torch.tensor([advantage]), 0.2, 0.3)
    objective.sum().backward()
    assert objective.item() == pytest.approx(value)
    assert ratios.grad.item() == pytest.approx(slope)


def test_before_the_first_update_the_gradient_is_the_policy_gradient():
    log_probs = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, 0.0, 0.0]], requires_grad=True)
    ratio = sequence_ratio(log_probs, log_probs.detach(), UNEQUAL)
    advantages = torch.tensor([0.7, -1.3])
    clipped_surrogate(ratio, advantages, 0.2).sum().backward()
    assert torch.allclose(log_probs.grad, advantages[:, None] * UNEQUAL)  # Â ∇log π


def test_the_surrogate_is_to_be_maximised():
    """One ascent step makes a good sub-trajectory likelier and a bad one rarer."""
    log_probs = torch.tensor([[-1.0, -1.0], [-1.0, -1.0]], requires_grad=True)
    ratio = sequence_ratio(log_probs, log_probs.detach(), torch.ones(2, 2, dtype=torch.bool))
    clipped_surrogate(ratio, torch.tensor([1.0, -1.0]), 0.2).mean().backward()
    after = (log_probs + log_probs.grad).sum(-1)
    assert after[0] > -2 > after[1]


# diagnostics and means


def test_clip_fraction_counts_both_sides_among_real_entries():
    ratio = torch.tensor([[0.5, 1.0, 1.5, 1.19], [0.81, 1.3, 9.0, NAN]])
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    assert clip_fraction(ratio, 0.2, mask).item() == pytest.approx(3 / 6)
    assert clip_fraction(ratio, 0.2, mask, 0.4).item() == pytest.approx(2 / 6)
    assert clip_fraction(ratio, 0.6, mask, 0.4).item() == pytest.approx(1 / 6)


def test_masked_mean_counts_each_real_step_once():
    values = torch.tensor([[1.0, 2.0, 3.0], [10.0, 99.0, NAN]])
    assert masked_mean(values, UNEQUAL).item() == 16 / 4  # not the mean of the rows' means, (2 + 10) / 2


def test_masked_mean_of_nothing_is_zero():
    assert masked_mean(torch.tensor([NAN]), torch.tensor([False])).item() == 0


def test_masked_mean_sends_padding_no_gradient():
    values = torch.ones(2, 3, requires_grad=True)
    masked_mean(values, UNEQUAL).backward()
    assert torch.equal(values.grad, UNEQUAL / 4)


# value loss


def test_value_loss_by_hand():
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 99.0, NAN]], requires_grad=True)
    targets = torch.tensor([[0.0, 2.0, 5.0], [3.0, 0.0, 0.0]], requires_grad=True)
    loss = value_loss(values, targets, UNEQUAL)
    assert loss.item() == (1 + 0 + 4 + 1) / 4
    loss.backward()
    assert values.grad[UNEQUAL].tolist() == [0.5, 0, -1, 0.5]  # 2(V - target) / 4
    assert targets.grad is None


def test_value_loss_sends_padding_no_gradient():
    values = torch.ones(2, 3, requires_grad=True)
    value_loss(values, torch.zeros(2, 3), UNEQUAL).backward()
    assert torch.equal(values.grad, 2 * UNEQUAL / 4)


# entropy dual


def test_entropy_dual_is_the_constraint_times_its_price():
    assert entropy_dual(torch.tensor(0.5), torch.tensor(-1.0), -3.0).item() == 1


@pytest.mark.parametrize(("entropy", "grows"), [(-4.0, True), (-2.0, False)])
def test_descending_the_dual_raises_its_price_while_the_policy_is_too_sure(entropy, grows):
    log_coef = torch.tensor(math.log(0.1), requires_grad=True)
    optimizer = torch.optim.Adam([log_coef], lr=1e-2)
    entropy_dual(log_coef.exp(), torch.tensor(entropy), -3.0).backward()
    optimizer.step()
    assert (log_coef.exp().item() > 0.1) == grows


def test_the_dual_does_not_reach_the_policy():
    entropy = torch.tensor(-4.0, requires_grad=True)
    coef = torch.tensor(0.1, requires_grad=True)
    entropy_dual(coef, entropy, torch.tensor(-3.0)).backward()
    assert entropy.grad is None
    assert coef.grad.item() == -1  # H - ρ
