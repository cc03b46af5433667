"""Products by whichever library is faster: the same numbers, in any company, with gradients."""

import pytest
import torch
from draws import seeded
from torch.nn import functional

from dtune.models import products
from dtune.models.products import ACTIVATIONS, LARGE, linear, packed


def drawn(*size):
    return torch.randn(*size, generator=seeded(sum(size)))


def weights(large):
    to, of = (160, 256) if large else (24, 32)
    assert (to * of >= LARGE) == large
    return drawn(to, of) * of**-0.5, drawn(to)


LAYOUTS = {
    "rows": lambda x: x.flatten(0, 1),
    "batches": lambda x: x,
    "apart": lambda x: x[:, 1::3],
    "turned": lambda x: x.transpose(0, 1),
}


@pytest.mark.parametrize("large", [False, True])
def test_no_rows_are_no_rows(large):
    weight, bias = (part.requires_grad_() for part in weights(large))
    none = torch.zeros(0, 3, weight.shape[1], requires_grad=True)
    result = linear(none, weight, bias)
    assert result.shape == (0, 3, len(weight))
    result.sum().backward()
    assert none.grad.shape == none.shape
    assert not weight.grad.any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("large", [False, True])
def test_values_and_gradients_are_those_of_a_linear_map(large, layout):
    weight, bias = weights(large)
    base = drawn(9, 7, weight.shape[1])
    found = []
    for function in (linear, functional.linear):
        parts = [part.clone().requires_grad_() for part in (base, weight, bias)]
        result = function(LAYOUTS[layout](parts[0]), *parts[1:])
        result.square().sum().backward()
        found.append([result.detach(), *(part.grad for part in parts)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("large", [False, True])
def test_only_the_gradients_asked_for_are_made(large):
    weight, bias = weights(large)
    x = drawn(20, weight.shape[1])
    bias.requires_grad_()
    linear(x, weight, bias).sum().backward()
    assert torch.equal(bias.grad, torch.full_like(bias, 20))
    assert x.grad is None
    assert weight.grad is None


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("large", [False, True])
def test_packed_weights_give_the_same_and_the_activation_behind(large, activation):
    weight, bias = weights(large)
    x = drawn(33, weight.shape[1])
    expected = functional.linear(x, weight, bias)
    expected = ACTIVATIONS[activation](expected) if activation else expected
    torch.testing.assert_close(packed(weight, bias, activation=activation)(x), expected, rtol=1e-5, atol=1e-5)
    short = packed(weight, bias, torch.bfloat16, activation)(x)
    assert short.dtype == torch.bfloat16
    assert 1e-4 < (short - expected).abs().max() < 0.1


def test_a_processor_without_bfloat16_instructions_is_not_asked_for_them(monkeypatch):
    def refuse(*_):
        raise RuntimeError("mkldnn bf16 needs the cpu support avx512bw, avx512vl and avx512dq")

    monkeypatch.setattr(products, "_onednn", refuse)
    monkeypatch.setattr(products, "_bfloat16", lambda: False)
    weight, bias = weights(large=True)
    x = drawn(33, weight.shape[1])
    short = packed(weight, bias, torch.bfloat16)(x)
    assert short.dtype == torch.bfloat16
    assert (short - functional.linear(x, weight, bias)).abs().max() < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("large", [False, True])
def test_company_changes_no_row(large, dtype):
    weight, bias = weights(large)
    x, product = drawn(300, weight.shape[1]), packed(weight, bias, dtype)
    together, apart = product(x), linear(x, weight, bias)
    for count in (16, 17, 31, 64, 129, 255):
        assert torch.equal(product(x[:count]), together[:count])
        assert torch.equal(linear(x[:count], weight, bias), apart[:count])
