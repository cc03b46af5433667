"""What has to hold of any numbers: properties, tried with many that hypothesis makes up."""

import math

import hypothesis.strategies as some
import pytest
import torch
from hypothesis import given, settings

from dtune.functional.advantages import discounted_return, group_advantages, outside_margin, returns_to_go
from dtune.functional.objectives import LOG_RATIO_LIMIT, sequence_ratio, token_ratio
from dtune.models.distributions import TanhNormal

# Seldom a second each, and the same every time: what is found here once is found again.
quick = settings(max_examples=60, deadline=None, derandomize=True)
LEAST, LARGEST = math.exp(-LOG_RATIO_LIMIT), math.exp(LOG_RATIO_LIMIT)
log_probs = some.floats(-1e6, 1e6, width=32)
LOG_STD = some.floats(-5, 2, width=32)  # the bounds of every policy
finite = some.floats(-1e6, 1e6, width=32)


def rows(values: list[float]) -> torch.Tensor:
    return torch.tensor([values])


@quick
@given(some.lists(some.tuples(log_probs, log_probs), min_size=1, max_size=30))
def test_ratios_are_finite_and_clamped_as_documented(pairs):
    new, old = (rows(list(values)) for values in zip(*pairs, strict=True))
    mask = torch.ones_like(new, dtype=torch.bool)
    ratios = [token_ratio(new, old), *(sequence_ratio(new, old, mask, geometric_mean=geo) for geo in (False, True))]
    for ratio in ratios:
        assert ratio.isfinite().all()
        assert (ratio >= LEAST * (1 - 1e-6)).all()
        assert (ratio <= LARGEST * (1 + 1e-6)).all()


@quick
@given(
    some.lists(some.floats(-(2**-7), 2**-7, width=32), min_size=300, max_size=1000), some.floats(-1000, 1000, width=32)
)
def test_sums_over_hundreds_of_terms_are_accurate(steps, level):
    """Of log-probabilities that are large and nearly cancel, as those of 24 action dimensions do."""
    old = rows([level] * len(steps))
    new = old + rows(steps)
    exact = math.fsum((new - old)[0].tolist())
    ratio = sequence_ratio(new, old, torch.ones_like(new, dtype=torch.bool)).item()
    assert ratio == pytest.approx(math.exp(exact), rel=1e-5)


@quick
@given(some.lists(finite, min_size=300, max_size=1000), some.sampled_from([0.9, 0.99, 1.0]))
def test_returns_over_hundreds_of_steps_are_accurate(rewards, gamma):
    given_rewards, mask = rows(rewards), torch.ones(1, len(rewards), dtype=torch.bool)
    terms = [gamma**step * reward for step, reward in enumerate(given_rewards[0].tolist())]
    scale = max(1.0, math.fsum(map(abs, terms)))
    assert abs(discounted_return(given_rewards, mask, gamma).item() - math.fsum(terms)) <= 1e-12 * scale
    undiscounted = math.fsum(given_rewards[0].tolist())
    assert abs(returns_to_go(given_rewards)[0, 0].item() - undiscounted) <= 1e-5 * max(1.0, abs(undiscounted))


@quick
@given(
    some.floats(-(2.0**60), 2.0**60, width=32), some.integers(2, 16), some.sampled_from([torch.float32, torch.float64])
)
def test_equal_returns_have_no_advantage_and_are_dropped(value, members, dtype):
    returns = torch.full((3, members), value, dtype=dtype)
    for scale in ("group", "none"):
        assert not group_advantages(returns, scale=scale).any()
    assert not outside_margin(returns, 0.0).any()


@quick
@given(some.lists(some.lists(finite, min_size=4, max_size=4), min_size=1, max_size=6))
def test_advantages_are_finite_and_add_up_to_nothing(groups):
    advantages = group_advantages(torch.tensor(groups, dtype=torch.float64))
    assert advantages.isfinite().all()
    assert advantages.sum(1).abs().max() <= 1e-4
    assert advantages.abs().max() <= math.sqrt(4)


@quick
@given(LOG_STD, LOG_STD, some.floats(-20, 20, width=32), some.floats(-20, 20, width=32))
def test_divergences_are_right_at_every_deviation_a_policy_may_have(log_std, other, mean, mean_of_other):
    one, two = (TanhNormal(torch.tensor([m]), torch.tensor([s]).exp())
                for m, s in ((mean, log_std), (mean_of_other, other)))  # fmt: skip
    ratio = math.exp(2 * (math.log(one.std.item()) - math.log(two.std.item())))
    exact = 0.5 * (ratio - 1 - math.log(ratio) + ((mean - mean_of_other) / two.std.item()) ** 2)
    assert one.kl(two).item() == pytest.approx(exact, rel=1e-4, abs=1e-6)
    assert one.kl(two).item() >= 0
    assert one.kl(one).item() == 0


@quick
@given(LOG_STD, some.floats(-6, 6, width=32), some.floats(-4, 4, width=32))
def test_entropies_are_minus_the_density_at_every_deviation_a_policy_may_have(log_std, mean, noise):
    policy = TanhNormal(torch.tensor([mean]), torch.tensor([log_std]).exp())
    std = policy.std.item()
    raw = policy.sample_raw(torch.tensor([noise])).item()
    slope = 2 * (math.log(2) - abs(raw) - math.log1p(math.exp(-2 * abs(raw))))  # of tanh, by its symmetry
    exact = 0.5 * noise**2 + math.log(std) + 0.5 * math.log(2 * math.pi) + slope
    assert policy.entropy(torch.tensor([noise])).item() == pytest.approx(exact, rel=1e-4, abs=1e-4)
    assert policy.entropy(torch.tensor([noise])).isfinite()


@quick
@given(LOG_STD, some.floats(-60, 60, width=32))
def test_likelihoods_stay_finite_at_the_edges(log_std, raw):
    std = torch.tensor([log_std]).exp().requires_grad_()
    mean = torch.zeros(1, requires_grad=True)
    likelihood = TanhNormal(mean, std).log_prob(torch.tensor([raw]))
    likelihood.backward()
    assert likelihood.isfinite()
    assert mean.grad is not None
    assert std.grad is not None
    assert mean.grad.isfinite().all()
    assert std.grad.isfinite().all()
