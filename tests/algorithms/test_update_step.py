"""How the clipped update moves the policy: leash, entropy, clipping, optimizers, rates, and when it refuses."""

import math
from dataclasses import replace

import pytest
import torch
from constant import Constant, acted, config
from learners import parameters, same_state, seeded

from dtune.algorithms.dual import EntropyDual
from dtune.algorithms.update import ClippedUpdate, make_optimizer
from dtune.errors import NumericError
from dtune.models.lamb import Lamb

# --- leash --------------------------------------------------------------------------------------------------------


def test_the_leash_pulls_towards_the_reference_by_its_weight():
    pulls = []
    for kl_coef in (0.0, 0.5):
        policy = Constant()
        update = ClippedUpdate(policy, config(kl_coef=kl_coef))
        with torch.no_grad():
            policy.mean.copy_(torch.tensor([0.4, -0.2]))
        metrics = update.step(acted(policy), torch.zeros(8), seeded())
        assert metrics["train/kl"] == pytest.approx(0.5 * (0.4**2 + 0.2**2), abs=1e-6)
        pulls.append((policy.mean.grad.clone(), policy.mean.detach().clone()))
    (none, stayed), (gradient, moved) = pulls
    assert none.abs().max() < 1e-9
    torch.testing.assert_close(gradient, 0.5 * torch.tensor([0.4, -0.2]))  # d KL / dμ = (μ - μ_ref) / σ²
    assert abs(moved[0]) < abs(stayed[0])
    assert abs(moved[1]) < abs(stayed[1])


def test_the_reference_is_a_copy_that_stays_between_its_syncs():
    policy = Constant()
    update = ClippedUpdate(policy, config(reference_sync_interval=4))
    for iteration in range(1, 9):
        update.step(acted(policy), torch.randn(8, generator=seeded()), seeded())
        before = parameters(update.reference)
        update.end_iteration(iteration)
        assert parameters(update.reference).equal(parameters(policy) if iteration % 4 == 0 else before)
    assert not any(parameter.requires_grad for parameter in update.reference.parameters())


# --- entropy ------------------------------------------------------------------------------------------------------


def test_the_dual_rises_below_its_target_and_falls_above():
    dual = EntropyDual(0.2, -1.0, 0.01)
    assert dual.coef == pytest.approx(0.2)
    dual.step(torch.tensor(-3.0))
    assert dual.coef == pytest.approx(0.2 * math.exp(0.01), rel=1e-4)  # Adam's first step, on the logarithm
    risen = dual.coef
    for _ in range(20):
        dual.step(torch.tensor(2.0))
    assert 0 < dual.coef < risen


def test_the_target_is_minus_the_action_dimensions_unless_given():
    assert ClippedUpdate(Constant(), config()).entropy_dual.target == -2
    metrics = ClippedUpdate(Constant(), config(target_entropy=0.7)).step(acted(Constant()), torch.zeros(8), seeded())
    assert metrics["train/entropy_target"] == 0.7


@pytest.mark.parametrize(("target", "sign"), [(5.0, 1), (-5.0, -1)])
def test_the_update_moves_its_dual(target, sign):
    """The squashed entropy is at most 2 log 2 and, of this policy, far above -5."""
    update = ClippedUpdate(Constant(), config(target_entropy=target, entropy_coef=0.1, entropy_coef_learning_rate=0.1))
    metrics = update.step(acted(Constant()), torch.zeros(8), seeded())
    assert sign * (update.entropy_dual.coef - 0.1) > 0.005
    assert metrics["train/entropy_coef"] == update.entropy_dual.coef


def test_entropy_is_raised_in_proportion_to_its_weight():
    gradients = []
    for coef in (0.1, 0.4):
        policy = Constant(std=0.3)
        update = ClippedUpdate(policy, config(entropy_coef=coef))
        before = policy.log_std.detach().clone()
        update.step(acted(policy, rows=64), torch.zeros(64), seeded())
        assert (policy.log_std > before).all()
        gradients.append(policy.log_std.grad.clone())
    torch.testing.assert_close(gradients[1], 4 * gradients[0])


# --- the step -----------------------------------------------------------------------------------------------------


def test_the_gradient_is_clipped_to_its_norm():
    policy = Constant()
    update = ClippedUpdate(policy, config(grad_norm_clip=0.5))
    metrics = update.step(acted(policy, rows=2), torch.tensor([100.0, -100.0]), seeded())
    assert metrics["train/grad_norm"] > 10  # as it was
    clipped = torch.cat([parameter.grad for parameter in policy.parameters()]).norm()
    assert clipped == pytest.approx(0.5, rel=1e-4)


def test_adamw_moves_every_number_alike():
    policy = Constant()
    update = ClippedUpdate(policy, config(learning_rate=1e-3))
    before = parameters(policy)
    update.step(acted(policy), torch.randn(8, generator=seeded(1)), seeded())
    torch.testing.assert_close((parameters(policy) - before).abs(), torch.full((4,), 1e-3), rtol=1e-3, atol=0)
    assert isinstance(update.optimizer, torch.optim.AdamW)


def test_lamb_moves_every_tensor_by_a_share_of_its_norm():
    policy = Constant(mean=0.5, std=0.5)
    update = ClippedUpdate(policy, config(optimizer="lamb", learning_rate=1e-3, weight_decay=1e-4))
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    update.step(acted(policy), torch.randn(8, generator=seeded(1)), seeded())
    for old, new in zip(before, policy.parameters()):
        assert (new - old).norm().item() == pytest.approx(1e-3 * old.norm().item(), rel=1e-3)
    assert isinstance(update.optimizer, Lamb)
    assert update.optimizer.param_groups[0]["weight_decay"] == 1e-4


def test_the_learning_rate_decays_by_updates_to_its_final_value():
    update = ClippedUpdate(Constant(), config(learning_rate=0.9, final_learning_rate=0.1, decay_updates=4))
    rates, used = [], []
    for _ in range(6):
        rates.append(update.step(acted(Constant()), torch.zeros(8), seeded())["train/learning_rate"])
        used.append(update.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.9, 0.7, 0.5, 0.3, 0.1, 0.1])
    assert used == rates
    constant = ClippedUpdate(Constant(), config(learning_rate=0.9, final_learning_rate=0.1))
    assert constant.step(acted(Constant()), torch.zeros(8), seeded())["train/learning_rate"] == 0.9
    assert constant.step(acted(Constant()), torch.zeros(8), seeded())["train/learning_rate"] == 0.9


@pytest.mark.parametrize("optimizer", ["lamb", "adamw"])
def test_a_gradient_that_is_not_finite_changes_nothing(optimizer):
    policy = Constant(mean=0.5, std=0.5)
    update = ClippedUpdate(policy, config(optimizer=optimizer, entropy_coef=0.1, decay_updates=10))
    steps, advantages = acted(policy), torch.randn(8, generator=seeded(1))
    update.step(steps, advantages, seeded())
    before, state = parameters(policy), update.state_dict()
    copied = {name: value if name == "updates" else _copy(value) for name, value in state.items()}
    broken = replace(steps, raw_actions=steps.raw_actions.index_fill(0, torch.tensor([3]), math.inf))
    with pytest.raises(NumericError, match="update 1: lower the learning rate"):
        update.step(broken, advantages, seeded())
    assert parameters(policy).equal(before)
    assert same_state(update.state_dict(), copied)
    update.step(steps, advantages, seeded())  # and one can go on
    assert parameters(policy).isfinite().all()
    assert not parameters(policy).equal(before)


def _copy(value):
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value.clone() if isinstance(value, torch.Tensor) else value


def test_a_step_of_adam_is_the_same_for_any_number_of_threads():
    """Sizes that no number of threads divides: who has a last odd element to do must round it as all others."""
    moved, threads = [], torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        try:
            policy, draws = Constant(), seeded(4)
            policy.more = torch.nn.ParameterList(torch.randn(size, generator=draws) for size in (7, 65_537, 100_003))
            optimizer = make_optimizer(policy, "adamw", 1e-2, 0.1)
            for _ in range(3):
                for parameter in policy.parameters():
                    parameter.grad = torch.randn(parameter.shape, generator=draws)
                optimizer.step()
        finally:
            torch.set_num_threads(threads)
        moved.append(parameters(policy))
    assert moved[0].equal(moved[1])
    assert moved[0].equal(moved[2])
