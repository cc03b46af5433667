"""A decision transformer that only acts answers as it does when asked about whole windows."""

import gc
import math
import weakref
from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from draws import draw_steps, seeded

from dtune.data.steps import concatenate, empty_steps
from dtune.models import acting
from dtune.models.acting import ReturnTable, return_tokens
from dtune.models.decision_transformer import DecisionTransformer, DecisionTransformerConfig
from dtune.models.distributions import TanhNormal
from dtune.models.policy import ActingPolicy
from dtune.models.products import ACTIVATIONS

OBS, ACT = 11, 3


def make(context=1, seed=0, **changes):
    shape = {"layers": 2, "heads": 4, "width": 64} | changes
    config = DecisionTransformerConfig(observation_dim=OBS, action_dim=ACT, context_length=context, **shape)
    policy = DecisionTransformer(config, seeded(seed))
    policy.set_statistics(torch.full((OBS,), 0.3), torch.full((OBS,), 1.7))
    return policy


@cache
def fitted():
    """Briefly, to actions that depend on the return asked for: its weights are no longer those it began with."""
    policy, generator, losses = make(), seeded(5), []
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    for _ in range(80):
        batch = window(64, 1, generator)
        goal = torch.sin(batch.returns_to_go[..., None] / 900 + torch.arange(ACT)) + batch.observations[..., :ACT]
        losses.append(-policy(batch).base_log_prob(goal).mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 5
    return policy


def trained(context=1):
    policy = deepcopy(fitted())
    policy.context_length = context
    return policy


def window(rows, context=1, generator=None):
    steps = draw_steps(rows, context, OBS, ACT)
    generator = generator or seeded(1)
    steps.mask[:] = True
    return replace(
        steps,
        observations=torch.randn(rows, context, OBS, generator=generator),
        returns_to_go=9000 * torch.rand(rows, context, generator=generator) - 1500,
    )


@torch.no_grad()
def difference(answer, policy, asked):
    expected = policy(asked)[:, -1]
    return max((answer.mean - expected.mean).abs().max(), (answer.std.log() - expected.std.log()).abs().max()).item()


SIZES = {"small": {}, "paper": {"layers": 4, "width": 512}}


@pytest.mark.parametrize("context", [1, 5])
def test_a_trained_policy_acts_as_it_answers(context):
    policy, asked = trained(context), window(300, context)
    assert isinstance(policy, ActingPolicy)
    actor = policy.acting()
    assert actor.kind == ("tabulated" if context == 1 else "policy")
    assert difference(actor(asked), policy, asked) <= 1e-5
    assert difference(actor(asked), make(context), asked) > 0.1


def test_a_policy_of_the_papers_size_acts_as_it_answers():
    policy, asked = make(layers=4, width=512), window(40)
    actor = policy.acting()
    assert actor.kind == "tabulated"
    assert difference(actor(asked), policy, asked) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_company_changes_no_answer(size, dtype):
    actor, asked = make(**SIZES[size]).acting(dtype), window(150)
    assert actor.kind == "tabulated"
    whole = actor(asked)
    for count in (16, 17, 19, 31, 55, 64, 67, 129):
        part = actor(asked.gather(torch.arange(count), torch.zeros(count, 1, dtype=torch.long)))
        assert torch.equal(part.mean, whole.mean[:count]), count
        assert torch.equal(part.std, whole.std[:count]), count


def test_a_table_holds_all_returns_there_are():
    policy = trained()
    table = ReturnTable(policy)
    returns = torch.cat([torch.linspace(-3e3, 2e4, 5000), torch.tensor([-1e9, -1e6, 1e5, 1e6, 1e12])])
    with torch.no_grad():
        expected = return_tokens(policy, returns)
    error = (table(returns) - expected).abs().max()
    assert error < 1e-5 * expected.abs().max()
    assert (expected[:-1] - expected[1:]).abs().max() > 1e-3


def test_interpolation_is_of_the_fourth_order():
    """Few points, so that rounding does not hide it."""
    policy = trained().double()
    returns = torch.linspace(-2e3, 9e3, 999).double()
    with torch.no_grad():
        expected = return_tokens(policy, returns)
    errors = []
    for points in (16, 32):
        table = ReturnTable(policy.float(), points)
        errors.append((table(returns.float()) - expected).abs().max().item())
    assert errors[0] / errors[1] > 6


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("width", [32, 256])
def test_every_activation_has_a_fast_path(activation, width):
    policy, asked = make(activation=activation, width=width), window(50)
    actor = policy.acting()
    assert actor.kind == "tabulated"
    assert difference(actor(asked), policy, asked) <= 1e-5


def test_an_actor_has_the_weights_of_the_moment_it_was_made():
    policy, asked = make(), window(20)
    before = policy.acting()(asked)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.1)
    after = policy.acting()(asked)
    assert difference(after, policy, asked) <= 1e-5
    assert difference(before, policy, asked) > 1e-2


def test_an_actor_goes_when_nobody_has_it_any_more():
    """One is made for every advance: waiting for the collector of cycles, their packed weights would pile up."""
    actor, collecting = make().acting(), gc.isenabled()
    gone = weakref.ref(actor.act)
    actor(window(20))
    gc.disable()
    try:
        del actor
        assert gone() is None
    finally:
        if collecting:
            gc.enable()


def test_no_graph_is_recorded():
    answer = make().acting()(window(20))
    assert not answer.mean.requires_grad
    assert not answer.std.requires_grad


# ---- the check before use


@pytest.mark.parametrize("wrong", [1e-3, math.nan])
def test_a_table_that_errs_is_not_used(monkeypatch, wrong):
    look_up = ReturnTable.__call__
    monkeypatch.setattr(ReturnTable, "__call__", lambda table, returns: look_up(table, returns) + wrong)
    policy, asked = make(), window(20)
    actor = policy.acting()
    assert actor.kind == "direct"
    assert actor.error <= 1e-5
    assert difference(actor(asked), policy, asked) <= 1e-5


@pytest.mark.parametrize(("wrong", "kind"), [(1e-3, "tabulated"), (0.3, "direct")])
def test_where_products_may_be_rounded_a_table_may_err_as_much(monkeypatch, wrong, kind):
    look_up = ReturnTable.__call__
    monkeypatch.setattr(ReturnTable, "__call__", lambda table, returns: look_up(table, returns) + wrong)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    actor = make().acting()
    assert actor.kind == kind
    assert actor.error <= acting.ROUNDED


def test_where_all_shortcuts_err_the_policy_itself_acts(monkeypatch):
    monkeypatch.setattr(acting, "return_tokens", lambda policy, returns: torch.zeros(len(returns), 4 * 64))
    policy, asked = make(), window(20)
    actor = policy.acting()
    assert actor.kind == "policy"
    assert difference(actor(asked), policy, asked) <= 1e-6


def test_what_a_check_found_can_be_read():
    assert 0 < make().acting().error <= 1e-5
    assert 1e-4 < make().acting(torch.bfloat16).error <= acting.TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("context", [1, 5])
def test_bfloat16_is_near_and_where_it_is_not_float32_acts(monkeypatch, context):
    policy, asked = make(context), window(50, context)
    exact, near = policy.acting()(asked), policy.acting(torch.bfloat16)(asked)
    assert near.mean.dtype == near.std.dtype == torch.float32
    assert 1e-4 < difference(near, policy, asked) < 0.1
    monkeypatch.setitem(acting.TOLERANCE, torch.bfloat16, 1e-6)
    careful = policy.acting(torch.bfloat16)(asked)
    assert torch.equal(careful.mean, exact.mean)


def test_a_return_token_that_knows_the_clock_is_not_tabulated():
    policy, asked = make(timestep_embedding=40), window(20)
    actor = policy.acting()
    assert actor.kind == "policy"
    assert difference(actor(asked), policy, asked) <= 1e-6


# ---- longer contexts


@pytest.mark.parametrize("padding", [0, 3])
def test_the_last_step_is_answered_alone(padding):
    policy = make(5)
    asked = window(20, 5 - padding)
    asked = concatenate([empty_steps(20, padding, OBS, ACT), asked], 1) if padding else asked
    seen = []
    policy.blocks[-1].register_forward_hook(lambda block, args, output: seen.append(output.shape))
    answer = policy.last(asked)
    assert seen == [(20, 1, 64)]
    assert isinstance(answer, TanhNormal)
    assert answer.mean.shape == (20, ACT)
    assert difference(answer, policy, asked) <= 1e-6
