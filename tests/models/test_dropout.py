"""Dropout with cheap random numbers: the share dropped, the scale, the gradient; and attention that drops weights."""

import pytest
import torch
from draws import seeded
from torch.nn.functional import scaled_dot_product_attention

from dtune.models.dropout import Dropout, attention, dropout

LEAST = 2.0**-17 / 2  # rounds to no dropping at all, by the way that drops


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_so_many_are_dropped_and_the_rest_scaled(probability):
    x = torch.linspace(1, 2, 200_000)
    y = dropout(x, probability)
    dropped = y == 0
    assert dropped.float().mean().item() == pytest.approx(probability, abs=0.005)
    torch.testing.assert_close(y[~dropped], x[~dropped] / (1 - probability), rtol=2e-4, atol=0)
    assert (y.mean() / x.mean()).item() == pytest.approx(1, abs=0.02)


def test_elements_that_share_a_draw_are_dropped_independently():
    dropped = (dropout(torch.ones(100_000, 4), 0.5) == 0).double()
    correlations = torch.corrcoef(dropped.T) - torch.eye(4)
    assert correlations.abs().max() < 0.02


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 1), (5, 7), (2, 3, 4)])
def test_any_shape(shape):
    y = dropout(torch.ones(shape), 0.25)
    assert y.shape == shape
    assert set(y.unique().tolist()) <= {0.0, torch.tensor(4 / 3).item()}


def test_gradients_pass_where_values_do():
    x = torch.randn(1000, generator=seeded(1), requires_grad=True)
    y = dropout(x, 0.3)
    y.sum().backward()
    torch.testing.assert_close(x.grad * x, y)
    assert (x.grad == 0).any()


def test_the_global_generator_decides():
    torch.manual_seed(3)
    first = dropout(torch.ones(100), 0.5)
    assert not torch.equal(dropout(torch.ones(100), 0.5), first)
    torch.manual_seed(3)
    assert torch.equal(dropout(torch.ones(100), 0.5), first)


def test_nearly_everything_may_be_dropped():
    assert dropout(torch.ones(1000), 1 - 1e-9).isfinite().all()


def test_nothing_is_dropped_in_evaluation():
    layer, x = Dropout(0.5), torch.ones(100)
    assert (layer(x) == 0).any()
    assert layer.eval()(x) is x


@pytest.mark.parametrize("which", ["all", "causal", "some"])
def test_attention_without_dropping_is_pytorch_s(which):
    query, key, value = (torch.randn(2, 3, 5, 4, generator=seeded(n)) for n in range(3))
    mask = torch.rand(2, 1, 5, 5, generator=seeded(3)) < 0.5
    visible = mask | torch.eye(5, dtype=torch.bool) if which == "some" else None
    expected = scaled_dot_product_attention(query, key, value, visible, is_causal=which == "causal")
    for drop in (0.0, LEAST):
        found = attention(query, key, value, visible, causal=which == "causal", drop=drop)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_attention_drops_weights_and_not_values():
    query, key = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 4, 4)  # every weight is a quarter
    found = torch.cat(
        [attention(query, key, torch.eye(4)[None, None], None, causal=False, drop=0.5) for _ in range(64)]
    )
    assert set(found.unique().tolist()) == {0.0, 0.5}
