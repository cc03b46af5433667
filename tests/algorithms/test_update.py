"""What the clipped update maximises: ratios, clipping, masks."""

import math
from dataclasses import replace

import pytest
import torch
from constant import Constant, acted, config, hide
from learners import parameters, seeded
from pointmass import PointMass, TinyPolicy
from torch import nn

from dtune.algorithms.update import ClippedUpdate
from dtune.data.steps import concatenate
from dtune.envs.rollout import Rollout
from dtune.models import decision_transformer
from dtune.models.decision_transformer import DecisionTransformer, DecisionTransformerConfig

LEVELS = ("sequence", "geometric", "token")


# --- ratios and surrogate -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_the_level_of_the_ratio(level):
    """π / π_old of two rows, 3 and 1 steps long, whose log-ratios are given."""
    policy = Constant()
    update = ClippedUpdate(policy, config(ratio=level, clip_range=0.2))
    steps = hide(acted(policy, rows=2), [3, 1])
    log_ratios = torch.tensor([[0.1, 0.2, 0.3], [-0.3, 9.0, 9.0]])
    steps = replace(steps, log_probs=steps.log_probs - log_ratios)
    metrics = update.step(steps, torch.tensor([1.0, -2.0]), seeded())
    ratios = {
        "sequence": [math.exp(0.6), math.exp(-0.3)],
        "geometric": [math.exp(0.2), math.exp(-0.3)],
        "token": [math.exp(0.1), math.exp(0.2), math.exp(0.3), math.exp(-0.3)],
    }[level]
    weights = [1.0, -2.0] if level != "token" else [1.0, 1.0, 1.0, -2.0]
    clipped = [min(w * a, min(max(w, 0.8), 1.2) * a) for w, a in zip(ratios, weights)]
    assert metrics["train/ratio_mean"] == pytest.approx(sum(ratios) / len(ratios), abs=1e-5)
    assert metrics["train/ratio_max"] == pytest.approx(max(ratios), abs=1e-5)
    assert metrics["train/surrogate"] == pytest.approx(sum(clipped) / len(clipped), abs=1e-5)
    outside = [abs(w - 1) > 0.2 for w in ratios]
    assert metrics["train/clip_fraction"] == pytest.approx(sum(outside) / len(outside))


@pytest.mark.parametrize("level", LEVELS)
def test_the_upper_clip_may_be_its_own(level):
    policy = Constant()
    update = ClippedUpdate(policy, config(ratio=level, clip_range=0.2, clip_range_high=0.5))
    steps = acted(policy, rows=3, time=1)
    log_ratios = torch.tensor([[1.4], [1.6], [0.7]]).log()
    steps = replace(steps, log_probs=steps.log_probs - log_ratios)
    metrics = update.step(steps, torch.tensor([1.0, 1.0, -1.0]), seeded())
    assert metrics["train/surrogate"] == pytest.approx((1.4 + 1.5 - 0.8) / 3, abs=1e-5)
    assert metrics["train/clip_fraction"] == pytest.approx(2 / 3)


def test_token_ratios_take_an_advantage_an_action():
    policy = Constant()
    update = ClippedUpdate(policy, config(ratio="token"))
    metrics = update.step(hide(acted(policy, rows=2), [3, 1]), torch.arange(6.0).view(2, 3), seeded())
    assert metrics["train/surrogate"] == pytest.approx((0 + 1 + 2 + 3) / 4, abs=1e-6)


@pytest.mark.parametrize("level", LEVELS)
def test_good_actions_become_likelier_and_bad_ones_less(level):
    policy = Constant()
    update = ClippedUpdate(policy, config(ratio=level))
    steps = acted(policy, rows=2, time=1)
    update.step(steps, torch.tensor([1.0, -1.0]), seeded())
    with torch.no_grad():
        now = policy(steps).base_log_prob(steps.raw_actions)
    assert now[0] > steps.log_probs[0]
    assert now[1] < steps.log_probs[1]


@pytest.mark.parametrize("level", LEVELS)
def test_beyond_the_clip_nothing_pulls(level):
    policy = Constant()
    update = ClippedUpdate(policy, config(ratio=level))
    steps = acted(policy, rows=2, time=1)
    far = replace(steps, log_probs=steps.log_probs - torch.tensor([[1.0], [-1.0]]))  # ratios e and 1/e
    metrics = update.step(far, torch.tensor([1.0, -1.0]), seeded())
    assert metrics["train/clip_fraction"] == 1
    assert metrics["train/grad_norm"] < 1e-9
    metrics = update.step(far, torch.tensor([-1.0, 1.0]), seeded())  # the other way there is a pull
    assert metrics["train/grad_norm"] > 0.1


# --- what leaves the policy where it acted ------------------------------------------------------------------------


def small_transformer(context_length: int, dropout: float = 0.5) -> DecisionTransformer:
    shape = DecisionTransformerConfig(
        observation_dim=2, action_dim=2, context_length=context_length, layers=2, heads=2, width=16, dropout=dropout,
        return_scale=1.0,
    )  # fmt: skip
    return DecisionTransformer(shape, seeded(1))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("context_length", [1, 5])
def test_dropout_is_off_and_the_ratio_one(context_length, level):
    policy = small_transformer(context_length)
    steps = acted(policy, history=context_length - 1)
    update = ClippedUpdate(policy.train(), config(ratio=level))
    fresh = torch.arange(8) < 5
    metrics = update.step(steps, torch.randn(8, generator=seeded()), seeded(), fresh)
    assert not policy.training
    assert not update.reference.training
    assert metrics["train/fresh_ratio_error"] <= 1e-5
    again = update.step(steps, torch.randn(8, generator=seeded()), seeded(), fresh)
    assert again["train/fresh_ratio_error"] > 1e-3


def test_where_products_are_rounded_the_ratio_is_still_one(monkeypatch):
    """Walks and updates round alike: by hand here, because not every processor has such products."""

    def rounding(x, weight, bias):
        return nn.functional.linear(x.bfloat16().float(), weight.bfloat16().float(), bias)

    def walked_and_learned_from():
        shape = DecisionTransformerConfig(
            observation_dim=2, action_dim=2, context_length=2, layers=2, heads=2, width=16
        )
        policy, world = DecisionTransformer(shape, seeded(1)), PointMass()
        rollout = Rollout.begin(policy, world, 20, 10.0, seeded())
        before, taken = rollout._history, rollout.advance(5, generator=seeded(2))
        everybody, update = torch.ones(20, dtype=torch.bool), ClippedUpdate(policy, config())
        steps = concatenate([before, taken], 1)
        metrics = update.step(steps, torch.randn(20, generator=seeded()), seeded(), everybody)
        return taken.log_probs, metrics["train/fresh_ratio_error"]

    exact, _ = walked_and_learned_from()
    monkeypatch.setattr(decision_transformer, "linear", rounding)
    rounded, error = walked_and_learned_from()
    assert (rounded - exact).abs().max() > 1e-4
    assert error <= 1e-5


def test_only_fresh_rows_are_asked_for_ratio_one():
    policy = Constant()
    for level in LEVELS:
        update, steps = ClippedUpdate(policy, config(ratio=level)), acted(policy, rows=2)
        stale = replace(steps, log_probs=steps.log_probs + torch.tensor([[0.0], [1.0]]))
        step = [update.step(stale, torch.zeros(2), seeded(), fresh) for fresh in torch.eye(2, dtype=torch.bool)]
        assert step[0]["train/fresh_ratio_error"] <= 1e-5
        assert step[1]["train/fresh_ratio_error"] > 0.5
        for nobody in (None, torch.zeros(2, dtype=torch.bool)):
            assert "train/fresh_ratio_error" not in update.step(stale, torch.zeros(2), seeded(), nobody)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("context_length", [1, 5])
def test_what_the_mask_hides_has_no_influence(context_length, level):
    """Garbage in padding, before a row's first step and after its last, changes nothing at all."""
    outcomes = []
    for garbage in (0.0, 50.0):
        policy = small_transformer(context_length)
        steps = acted(policy, rows=6, time=4, history=context_length - 1)
        hidden = torch.ones_like(steps.mask)
        for row, (first, last) in enumerate([(0, 4), (0, 2), (2, 4), (0, 1), (0, 3), (0, 4)]):
            start = min(context_length - 1, first)  # history missing in front
            hidden[row, start : context_length - 1 + last] = False
        steps = replace(steps, mask=~hidden)

        def fill(x: torch.Tensor, hidden: torch.Tensor = hidden, garbage: float = garbage) -> torch.Tensor:
            wide = hidden.view(*hidden.shape, *[1] * (x.ndim - 2))
            return x if x.dtype == torch.bool else x.masked_fill(wide, garbage)

        steps = steps.map(fill)
        update = ClippedUpdate(policy, config(ratio=level, entropy_coef=0.3, kl_coef=0.1))
        advantages = torch.randn(6, generator=seeded(2))
        metrics = [update.step(steps, advantages, seeded(3)) for _ in range(3)]
        outcomes.append((metrics, parameters(policy)))
    (clean, untouched), (dirty, moved) = outcomes
    assert clean[0]["train/grad_norm"] > 0.01
    for one, other in zip(clean, dirty):
        assert one == pytest.approx(other, abs=1e-6)
    torch.testing.assert_close(untouched, moved, atol=1e-6, rtol=0)


def test_entropy_and_kl_are_means_over_real_steps():
    policy = TinyPolicy()
    update = ClippedUpdate(policy, config())
    with torch.no_grad():
        policy.head.bias += 0.3  # away from the reference
    steps = hide(acted(policy, rows=2), [3, 1])
    noise = torch.randn(2, 3, 2, generator=seeded(4))
    with torch.no_grad():
        now, then = (network(steps.windows(1))[:, 0] for network in (policy, update.reference))
        real = steps.mask.flatten()
        entropies, divergences = now.entropy(noise.flatten(0, 1))[real], now.kl(then)[real]
    metrics = update.step(steps, torch.zeros(2), seeded(4))
    assert len(entropies) == 4
    assert metrics["train/entropy"] == pytest.approx(entropies.mean().item(), abs=1e-5)
    assert metrics["train/kl"] == pytest.approx(divergences.mean().item(), abs=1e-5)
