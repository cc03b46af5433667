"""TanhNormal against integrals, derivatives and Monte Carlo."""

import math

import pytest
import torch
from torch.distributions import Normal, TanhTransform, TransformedDistribution, kl_divergence

from dtune.models.distributions import TanhNormal, unsquash

CASES = [(0.0, 1.0), (0.7, 0.2), (-1.5, 0.5), (0.3, 2.5)]
DOUBLE = torch.float64


def one(mean: float, std: float, **options) -> TanhNormal:
    """A distribution of one action of one dimension."""
    return TanhNormal(torch.tensor([mean], dtype=DOUBLE, **options), torch.tensor([std], dtype=DOUBLE, **options))


def some(*shape: int, seed: int = 0) -> TanhNormal:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(*shape, dtype=DOUBLE, generator=generator)
    return TanhNormal(mean, 0.2 + torch.rand(*shape, dtype=DOUBLE, generator=generator))


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def action_grid(points: int = 200_001) -> torch.Tensor:
    """Actions in (-1, 1), dense where tanh is flat: even in raw space."""
    return torch.linspace(-16, 16, points, dtype=DOUBLE).tanh().unique()


# densities


@pytest.mark.parametrize(("mean", "std"), CASES)
def test_log_prob_integrates_to_one_over_actions(mean, std):
    actions = action_grid()[1:-1]  # the ends are ±1 in floating point
    density = one(mean, std).log_prob(actions.atanh()[:, None]).exp()
    assert torch.trapezoid(density, actions).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("mean", "std"), CASES)
def test_log_prob_is_the_slope_of_the_cumulative_distribution(mean, std):
    def cumulative(action):
        return Normal(mean, std).cdf(action.atanh())

    actions, step = torch.linspace(-0.9, 0.9, 7, dtype=DOUBLE), 1e-5
    slope = (cumulative(actions + step) - cumulative(actions - step)) / (2 * step)
    assert torch.allclose(one(mean, std).log_prob(actions.atanh()[:, None]).exp(), slope, rtol=1e-5, atol=1e-9)


def test_densities_are_summed_over_action_dimensions():
    distribution, raw = some(4, 3, 2), noise(4, 3, 2)
    base = Normal(distribution.mean, distribution.std)
    squashed = TransformedDistribution(base, TanhTransform())
    assert torch.allclose(distribution.base_log_prob(raw), base.log_prob(raw).sum(-1))
    assert torch.allclose(distribution.log_prob(raw), squashed.log_prob(raw.tanh()).sum(-1))


def test_the_jacobian_cancels_from_ratios():
    new, old, raw = some(5, 3), some(5, 3, seed=7), noise(5, 3)
    squashed = new.log_prob(raw) - old.log_prob(raw)
    assert torch.allclose(new.base_log_prob(raw) - old.base_log_prob(raw), squashed)


@pytest.mark.parametrize("raw", [-60.0, -25.0, -12.0, 12.0, 25.0, 60.0])
def test_log_prob_survives_saturated_actions(raw):
    """There log tanh'(u) = 2 log 2 - 2|u|, while 1 - tanh² has long been rounded to 0."""
    wide = TanhNormal(torch.zeros(1), torch.full((1,), 30.0))
    at = torch.tensor([raw])
    slope = wide.base_log_prob(at) - wide.log_prob(at)
    assert slope.item() == pytest.approx(2 * math.log(2) - 2 * abs(raw), rel=1e-5)


def test_likelihood_pulls_the_mean_towards_the_action():
    mean = torch.zeros(2, requires_grad=True)
    std = torch.full((2,), 0.5, requires_grad=True)
    TanhNormal(mean, std).log_prob(torch.tensor([0.1, -2.0])).backward()
    assert mean.grad.tolist() == pytest.approx([0.1 / 0.25, -2 / 0.25])  # (u - μ) / σ²
    assert std.grad.tolist() == pytest.approx([0.01 / 0.125 - 2, 4 / 0.125 - 2])  # (u - μ)² / σ³ - 1 / σ


# samples


def test_samples_are_mean_plus_std_times_noise():
    mean = torch.tensor([1.0, -2.0], requires_grad=True)
    std = torch.tensor([0.5, 2.0], requires_grad=True)
    raw = TanhNormal(mean, std).sample_raw(torch.tensor([2.0, -1.0]))
    assert raw.tolist() == [2, -4]
    raw.sum().backward()
    assert (mean.grad.tolist(), std.grad.tolist()) == ([1, 1], [2, -1])


def test_the_mode_is_the_squashed_mean():
    distribution = some(3, 2)
    assert torch.equal(distribution.mode, torch.tanh(distribution.mean))
    assert torch.equal(distribution.mode, TanhNormal.squash(distribution.sample_raw(torch.zeros(3, 2).double())))


def test_indexing_takes_both_parameters():
    distribution = some(4, 3, 2)
    last = distribution[:, -1]
    assert torch.equal(last.mean, distribution.mean[:, -1])
    assert torch.equal(last.std, distribution.std[:, -1])


def test_unsquash_undoes_squash():
    raw = torch.linspace(-5, 5, 11, dtype=DOUBLE)[:, None]
    assert torch.allclose(unsquash(TanhNormal.squash(raw)), raw)


@pytest.mark.parametrize("action", [1.0, 1.5])
def test_actions_at_the_bounds_have_a_finite_likelihood(action):
    raw = unsquash(torch.tensor([action, -action]))
    assert raw.tolist() == pytest.approx([7.25, -7.25], abs=0.02)
    assert TanhNormal(torch.zeros(2), torch.ones(2)).log_prob(raw).isfinite()


# entropy


def integrated_entropy(mean: float, std: float) -> float:
    """-∫ p log p da over the actions, by the trapezoidal rule; density from the oracle."""
    actions = action_grid()[1:-1]
    log_density = TransformedDistribution(
        Normal(torch.tensor(mean, dtype=DOUBLE), torch.tensor(std, dtype=DOUBLE)), TanhTransform()
    ).log_prob(actions)
    return torch.trapezoid(-log_density.exp() * log_density, actions).item()


@pytest.mark.parametrize(("mean", "std"), CASES)
def test_entropy_is_the_integral_on_average(mean, std):
    estimates = one(mean, std).entropy(noise(400_000, 1))
    error = 5 * estimates.std().item() / math.sqrt(len(estimates))
    assert estimates.mean().item() == pytest.approx(integrated_entropy(mean, std), abs=error)


def test_entropy_is_minus_the_log_prob_of_the_sample():
    distribution, eps = some(4, 3, 2), noise(4, 3, 2)
    assert torch.allclose(distribution.entropy(eps), -distribution.log_prob(distribution.sample_raw(eps)))


@pytest.mark.parametrize(("mean", "std"), CASES)
def test_the_gradient_of_the_estimate_is_that_of_the_entropy(mean, std):
    distribution, step = one(mean, std, requires_grad=True), 1e-3
    distribution.entropy(noise(400_000, 1)).mean().backward()
    by_mean = (integrated_entropy(mean + step, std) - integrated_entropy(mean - step, std)) / (2 * step)
    by_std = (integrated_entropy(mean, std + step) - integrated_entropy(mean, std - step)) / (2 * step)
    assert distribution.mean.grad.item() == pytest.approx(by_mean, abs=0.02)
    assert distribution.std.grad.item() == pytest.approx(by_std, abs=0.02)


def test_no_distribution_on_the_box_is_more_random_than_the_uniform():
    std = torch.linspace(0.1, 3, 30, dtype=DOUBLE)[:, None]
    entropy = TanhNormal(torch.zeros_like(std), std).entropy(noise(100_000, 30, 1)).mean(0)
    assert entropy.max().item() < math.log(2)
    assert entropy.max().item() > math.log(2) - 0.05  # σ near 0.9 comes close


# divergence


def test_kl_by_hand():
    # log(2/1) + (1 + 3²) / (2·4) - ½
    assert one(4.0, 1.0).kl(one(1.0, 2.0)).item() == pytest.approx(math.log(2) + 10 / 8 - 0.5)


def test_kl_is_the_gaussians():
    ours, theirs = some(4, 3, 2), some(4, 3, 2, seed=7)
    oracle = kl_divergence(Normal(ours.mean, ours.std), Normal(theirs.mean, theirs.std)).sum(-1)
    assert torch.allclose(ours.kl(theirs), oracle)


def test_kl_agrees_with_monte_carlo_over_squashed_actions():
    ours, theirs = some(3, 2), some(3, 2, seed=7)
    raw = ours.sample_raw(noise(400_000, 3, 2))
    estimates = ours.log_prob(raw) - theirs.log_prob(raw)
    error = 5 * estimates.std(0) / math.sqrt(len(estimates))
    assert ((estimates.mean(0) - ours.kl(theirs)).abs() < error).all()


def test_kl_to_itself_is_exactly_zero_and_flat():
    ours = TanhNormal(torch.randn(50, 3, requires_grad=True), torch.rand(50, 3) + 0.01)
    divergence = ours.kl(TanhNormal(ours.mean.detach().clone(), ours.std.clone()))
    assert (divergence == 0).all()
    divergence.sum().backward()
    assert (ours.mean.grad == 0).all()


def test_kl_is_never_negative_however_close():
    std = torch.rand(10_000, 1, generator=torch.Generator().manual_seed(0)) + 0.1
    ours = TanhNormal(torch.zeros_like(std), std)
    assert (ours.kl(TanhNormal(ours.mean, std * (1 + 1e-4))) > 0).all()


def test_kl_pulls_back_towards_the_reference():
    mean = torch.tensor([1.0], requires_grad=True)
    std = torch.tensor([2.0], requires_grad=True)
    TanhNormal(mean, std).kl(TanhNormal(torch.zeros(1), torch.full((1,), 0.5))).backward()
    assert mean.grad.item() == pytest.approx(1 / 0.25)  # (μ - μ') / σ'²
    assert std.grad.item() == pytest.approx(2 / 0.25 - 1 / 2)  # σ / σ'² - 1 / σ


def test_the_mode_is_shaken_after_squashing():
    mean, noise = torch.tensor([[0.3, 4.0], [-4.0, 0.0]]), torch.tensor([[1.0, 2.0], [-9.0, 0.0]])
    actions = TanhNormal(mean, torch.ones_like(mean)).perturbed_raw(noise, std=0.1).tanh()
    assert actions.allclose((mean.tanh() + 0.1 * noise).clamp(-1, 1), atol=2e-6)
    assert actions.atanh().isfinite().all()
