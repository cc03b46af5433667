"""Lamb against a slow implementation of its equations, and against its relatives."""

import math

import numpy as np
import pytest
import torch

from dtune.errors import ConfigError
from dtune.models.lamb import Lamb

SHAPES = [(4, 3), (5,), (2, 3, 2), ()]


def make(dtype=torch.float64, shapes=SHAPES, seed=0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    params = [torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes]
    params[1].zero_()  # a bias: its trust ratio starts at 1
    return [p.requires_grad_() for p in params]


def give_gradients(params, seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = scale * torch.randn(p.shape, dtype=p.dtype, generator=generator)


class SlowLamb:
    """The equations of the docstring, a tensor and a number at a time, in float64."""

    def __init__(self, params, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, max_grad_norm=math.inf):
        self.weights = [p.detach().numpy().astype(np.float64) for p in params]
        self.m = [np.zeros_like(w) for w in self.weights]
        self.v = [np.zeros_like(w) for w in self.weights]
        self.lr, self.betas, self.eps, self.decay, self.t = lr, betas, eps, weight_decay, 0
        self.max_grad_norm = max_grad_norm

    def step(self, grads):
        self.t += 1
        (b1, b2), t = self.betas, self.t
        total = math.sqrt(sum(float((g * g).sum()) for g in grads))
        shrink = min(1.0, self.max_grad_norm / total)
        for i, grad in enumerate(grads):
            g = np.asarray(grad * shrink)
            self.m[i] = b1 * self.m[i] + (1 - b1) * g
            self.v[i] = b2 * self.v[i] + (1 - b2) * g * g
            adam = (self.m[i] / (1 - b1**t)) / (np.sqrt(self.v[i] / (1 - b2**t)) + self.eps)
            update = adam + self.decay * self.weights[i]
            weight_norm, update_norm = np.linalg.norm(self.weights[i]), np.linalg.norm(update)
            trust = 1.0
            if self.decay != 0 and weight_norm > 0 and update_norm > 0:
                trust = weight_norm / update_norm
            self.weights[i] = self.weights[i] - self.lr * trust * update


def assert_same_walk(options: dict, dtype=torch.float64, rtol=1e-10, scale=1.0, steps=20) -> None:
    params = make(dtype)
    ours, slow = Lamb(params, **options), SlowLamb(params, **options)
    for i in range(steps):
        give_gradients(params, seed=100 + i, scale=scale)
        slow.step([p.grad.numpy().astype(np.float64) for p in params])
        ours.step()
    for p, w in zip(params, slow.weights, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("weight_decay", [0.0, 1e-4, 0.3])
def test_lamb_walks_as_its_equations_do(weight_decay):
    assert_same_walk({"lr": 1e-2, "weight_decay": weight_decay})


def test_lamb_walks_as_its_equations_do_whatever_the_settings():
    assert_same_walk({"lr": 3e-2, "betas": (0.5, 0.9), "eps": 0.1, "weight_decay": 0.1})


def test_lamb_walks_as_its_equations_do_in_float32():
    assert_same_walk({"lr": 1e-2, "weight_decay": 0.1}, dtype=torch.float32, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_the_inner_clip_holds_all_gradients_together(scale):
    assert_same_walk({"lr": 1e-2, "weight_decay": 0.1, "max_grad_norm": 1.0, "eps": 0.1}, scale=scale)


def test_lamb_without_decay_is_adam():
    ours, theirs = make(), make()
    lamb, adam = Lamb(ours, lr=1e-2), torch.optim.Adam(theirs, lr=1e-2)
    for i in range(20):
        give_gradients(ours, seed=i)
        give_gradients(theirs, seed=i)
        lamb.step()
        adam.step()
    assert all(torch.allclose(p, q, rtol=1e-12) for p, q in zip(ours, theirs, strict=True))


def test_lamb_agrees_with_timm():
    timm = pytest.importorskip("timm.optim")
    ours, theirs = make(), make()
    lamb = Lamb(ours, lr=1e-2, weight_decay=0.1, max_grad_norm=1.0)
    other = timm.Lamb(theirs, lr=1e-2, weight_decay=0.1, eps=1e-8, max_grad_norm=1.0)
    for i in range(20):
        give_gradients(ours, seed=i)
        give_gradients(theirs, seed=i)
        lamb.step()
        other.step()
    assert all(torch.allclose(p, q, rtol=1e-6) for p, q in zip(ours, theirs, strict=True))


def test_a_step_is_the_learning_rates_share_of_the_tensors_norm():
    params = make(shapes=[(4, 3), (5,), (6,)])
    before = [p.detach().clone() for p in params]
    give_gradients(params, seed=1, scale=1e5)
    Lamb(params, lr=1e-3, weight_decay=1e-4).step()
    for p, w in zip(params[::2], before[::2], strict=True):
        assert ((p - w).norm() / w.norm()).item() == pytest.approx(1e-3)
    # the zero tensor takes Adam's first step instead: lr along each sign
    assert torch.allclose(params[1].abs(), torch.full((5,), 1e-3, dtype=torch.float64))


def test_a_tensor_of_zeros_without_gradient_stays_finite():
    zeros = torch.zeros(3, requires_grad=True)
    zeros.grad = torch.zeros(3)
    Lamb([zeros], weight_decay=0.1).step()
    assert zeros.tolist() == [0, 0, 0]


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_tensors_without_gradient_are_skipped(max_grad_norm):
    params = make()
    before = [p.detach().clone() for p in params]
    optimizer = Lamb(
        [{"params": params[:2]}, {"params": params[2:]}],
        lr=0.1,
        weight_decay=0.1,
        max_grad_norm=max_grad_norm,
    )
    give_gradients(params[:1], seed=1)
    optimizer.step()
    assert not torch.equal(params[0], before[0])
    assert all(torch.equal(p, w) for p, w in zip(params[1:], before[1:], strict=True))
    assert list(optimizer.state) == [params[0]]  # nothing is kept for them either
    assert [group["step"] for group in optimizer.param_groups] == [1, 0]


def test_groups_keep_their_own_settings():
    params, alone = make(), make()
    together = Lamb([{"params": params[:2], "lr": 0.1, "weight_decay": 0.2}, {"params": params[2:]}], lr=1e-3)
    separate = [Lamb(alone[:2], lr=0.1, weight_decay=0.2), Lamb(alone[2:], lr=1e-3)]
    for i in range(3):
        give_gradients(params, seed=i)
        give_gradients(alone, seed=i)
        together.step()
        for optimizer in separate:
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params, alone, strict=True))


def test_gradients_are_left_as_they_are():
    params = make()
    give_gradients(params, seed=1, scale=100)
    before = [p.grad.clone() for p in params]
    Lamb(params, weight_decay=0.1, max_grad_norm=1.0).step()
    assert all(torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resuming_from_a_state_dict_is_never_having_stopped(dtype, tmp_path):
    options = {"lr": 1e-2, "weight_decay": 0.1, "max_grad_norm": 1.0}
    straight = make(dtype)
    optimizer = Lamb(straight, **options)
    for i in range(3):
        give_gradients(straight, seed=i)
        optimizer.step()
    resumed = [p.detach().clone().requires_grad_() for p in straight]
    torch.save(optimizer.state_dict(), tmp_path / "lamb.pt")
    again = Lamb(resumed, lr=1.0)
    again.load_state_dict(torch.load(tmp_path / "lamb.pt", weights_only=True))
    for i in range(3, 6):
        for params, lamb in [(straight, optimizer), (resumed, again)]:
            give_gradients(params, seed=i)
            lamb.step()
    assert all(torch.equal(p, q) for p, q in zip(straight, resumed, strict=True))


def test_a_closure_recomputes_the_loss():
    weight = torch.tensor([3.0], requires_grad=True)
    optimizer = Lamb([weight], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9
    assert weight.item() == pytest.approx(2.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "of 0 or more, got -1.0"),
        ({"eps": -1e-8}, "of 0 or more"),
        ({"weight_decay": -0.1}, "of 0 or more"),
        ({"betas": (0.9, 1.0)}, r"decay rates in \[0, 1\)"),
        ({"max_grad_norm": 0.0}, "must be above 0, got 0.0; None turns it off"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Lamb(make(), **options)
