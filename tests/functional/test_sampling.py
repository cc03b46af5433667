"""Where the draws fall, and where they cannot."""

import math
from functools import partial

import pytest
import torch

from dtune.functional.sampling import (
    draw_steps,
    independent_noise,
    mirrored_noise,
    reset_point_distribution,
    shared_noise,
)

NAN = float("nan")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# reset points


def test_reset_points_follow_the_softmax_of_the_mean_variance():
    variance = torch.tensor([[[1.0, 3.0], [0.0, 0.0], [0.5, 1.5]]])  # means 2, 0, 1
    p = reset_point_distribution(variance, torch.ones(1, 3, dtype=torch.bool))
    total = math.exp(2) + 1 + math.exp(1)
    assert p[0].tolist() == pytest.approx([math.exp(2) / total, 1 / total, math.exp(1) / total])


def test_uncertain_steps_are_preferred():
    variance = torch.linspace(0, 4, 10)[None, :, None].expand(2, 10, 3)
    p = reset_point_distribution(variance, torch.ones(2, 10, dtype=torch.bool))
    assert (p.diff(dim=-1) > 0).all()


def test_forbidden_steps_are_never_reset_to():
    variance = torch.tensor([[[1.0], [1.0], [50.0]], [[2.0], [NAN], [NAN]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert reset_point_distribution(variance, mask).tolist() == [[0.5, 0.5, 0], [1, 0, 0]]


def test_the_largest_variance_does_not_overflow():
    variance = torch.tensor([[[1e4], [1e4], [0.0]]])
    p = reset_point_distribution(variance, torch.ones(1, 3, dtype=torch.bool))
    assert p.tolist() == [[0.5, 0.5, 0]]


def test_a_row_without_steps_is_refused_by_its_number():
    mask = torch.tensor([[True, True], [False, False]])
    with pytest.raises(ValueError, match=r"rows \[1\] have no step to reset to"):
        reset_point_distribution(torch.ones(2, 2, 1), mask)


# steps


def test_no_step_is_drawn_twice_where_there_are_enough():
    p = torch.rand(200, 9, generator=seeded())
    drawn = draw_steps(p, 8, seeded())
    assert drawn.shape == (200, 8)
    assert all(len(set(row)) == 8 for row in drawn.tolist())


def test_as_many_steps_as_the_draw_asks_for_are_all_drawn():
    p = torch.tensor([[0.0, 0.97, 0.0, 0.02, 0.01]]).expand(50, 5)
    assert all(sorted(row) == [1, 3, 4] for row in draw_steps(p, 3, seeded()).tolist())


def test_short_rows_are_drawn_from_with_replacement_beside_long_ones():
    p = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]])
    drawn = draw_steps(p, 3, seeded())
    assert set(drawn[0].tolist()) <= {0, 1}
    assert len(set(drawn[1].tolist())) == 3
    assert drawn[2].tolist() == [0, 0, 0]


def test_a_draw_may_ask_for_more_steps_than_there_are_columns():
    drawn = draw_steps(torch.tensor([[0.5, 0.5], [0.0, 1.0]]), 5, seeded())
    assert drawn.shape == (2, 5)
    assert drawn[1].tolist() == [1] * 5


def test_an_impossible_step_is_never_drawn():
    p = torch.rand(100, 20, generator=seeded())
    p[:, ::2] = 0
    assert (draw_steps(p, 4, seeded()) % 2 == 1).all()
    assert (draw_steps(p, 15, seeded()) % 2 == 1).all()


def test_draws_follow_the_probabilities():
    """The first draw as p; a pair (i, j) as p_i p_j / (1 - p_i). 40,000 rows: three sigma is under 0.008."""
    p = torch.tensor([0.5, 0.3, 0.2])
    drawn = draw_steps(p.expand(40_000, 3), 2, seeded())
    first = torch.bincount(drawn[:, 0], minlength=3) / 40_000
    assert torch.allclose(first, p, atol=0.008)
    for i, j in [(0, 1), (0, 2), (1, 0), (2, 1)]:
        share = ((drawn[:, 0] == i) & (drawn[:, 1] == j)).float().mean()
        assert share.item() == pytest.approx((p[i] * p[j] / (1 - p[i])).item(), abs=0.008)


def test_draws_with_replacement_follow_the_probabilities():
    p = torch.tensor([0.7, 0.3, 0.0])
    drawn = draw_steps(p.expand(10_000, 3), 4, seeded())
    assert (drawn == 0).float().mean().item() == pytest.approx(0.7, abs=0.01)


def test_draws_belong_to_the_generator_and_to_nothing_else():
    p = torch.rand(10, 20, generator=seeded())
    before = torch.get_rng_state()
    first, again, other = (
        draw_steps(p, 4, seeded(1)),
        draw_steps(p, 4, seeded(1)),
        draw_steps(p, 4, seeded(2)),
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("bad", [[0.0, 0.0], [0.5, NAN], [1.5, -0.5], [math.inf, 1.0]])
def test_rows_that_are_no_distribution_are_refused_by_their_number(bad):
    with pytest.raises(ValueError, match=r"rows \[1\] must be finite, non-negative and not all 0"):
        draw_steps(torch.tensor([[0.5, 0.5], bad]), 1, seeded())


# --- noise of groups ----------------------------------------------------------------------------------------------


def test_mirrored_noise_is_pairs_of_opposite_sign_each_standard_normal():
    noise = mirrored_noise((4000, 3, 2), seeded())
    assert noise[1::2].equal(-noise[::2])
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    assert (noise[::2] @ torch.ones(2)).mean().abs() < 0.05
    assert not noise[0].equal(noise[2])


def test_mirrored_noise_cancels_what_is_even_in_it():
    """A score estimate Σ R(ε)·ε of R = 3ε + 7ε²: over a pair only 3ε² each is left."""
    noise = mirrored_noise((2, 1, 1), seeded()).flatten()
    returns = 3 * noise + 7 * noise**2  # odd, and even
    assert (returns * noise).sum().item() == pytest.approx((3 * noise**2).sum().item(), rel=1e-5)


def test_mirrored_noise_needs_pairs():
    with pytest.raises(ValueError, match="must be even, got 3"):
        mirrored_noise((3, 1, 1), seeded())


def test_shared_noise_is_one_to_a_group():
    noise = shared_noise((12, 5, 2), seeded(), group_size=4).view(3, 4, 5, 2)
    assert noise.equal(noise[:, :1].expand_as(noise))
    assert len(noise[:, 0].flatten(1).unique(dim=0)) == 3
    assert shared_noise((4000, 1, 1), seeded(), group_size=2).std().item() == pytest.approx(1, abs=0.05)
    assert shared_noise((12, 5, 2), seeded(), group_size=4, scale=0.5).equal(0.5 * noise.view(12, 5, 2))


def test_shared_noise_needs_whole_groups():
    with pytest.raises(ValueError, match="10 walks are not whole groups of 4"):
        shared_noise((10, 1, 1), seeded(), group_size=4)


@pytest.mark.parametrize("draw", [independent_noise, mirrored_noise, partial(shared_noise, group_size=2)])
def test_noise_belongs_to_the_generator(draw):
    before = torch.get_rng_state()
    assert draw((4, 3, 2), seeded(1)).equal(draw((4, 3, 2), seeded(1)))
    assert not draw((4, 3, 2), seeded(1)).equal(draw((4, 3, 2), seeded(2)))
    assert torch.get_rng_state().equal(before)
