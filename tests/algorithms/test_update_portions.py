"""A batch of any size is gone through in portions of bounded size, and nobody can tell from what comes out."""

import pytest
import torch
from constant import acted, config, hide
from learners import Witness, grpo, seeded
from torch import nn

from dtune.algorithms import update as updates
from dtune.algorithms.update import ClippedUpdate
from dtune.data.steps import portions
from dtune.models.decision_transformer import DecisionTransformer, DecisionTransformerConfig

LENGTHS = [4, 1, 3, 4, 2, 4, 1, 3, 2, 4]


def small(context_length: int) -> DecisionTransformer:
    shape = DecisionTransformerConfig(
        observation_dim=2, action_dim=2, context_length=context_length, layers=2, heads=2, width=16, return_scale=1.0
    )
    return DecisionTransformer(shape, seeded(1))


def watched(policy: nn.Module) -> list[int]:
    """Windows of each call of a policy with gradients, as they come."""
    calls: list[int] = []
    last = policy.last

    def counting(context):
        if torch.is_grad_enabled():
            calls.append(len(context.mask))
        return last(context)

    policy.last = counting
    return calls


def moved(context_length: int, level: str, at_once: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(updates, "STEPS_AT_ONCE", at_once)
    policy = small(context_length)
    steps = acted(policy, rows=10, time=4, history=context_length - 1)
    steps = hide(steps, [context_length - 1 + length for length in LENGTHS])
    update = ClippedUpdate(policy, config(ratio=level, entropy_coef=0.3, kl_coef=0.1, learning_rate=1e-3))
    calls = watched(policy)
    advantages, fresh = torch.randn(10, generator=seeded(2)), torch.arange(10) < 7
    metrics = [update.step(steps, advantages, seeded(3), fresh) for _ in range(2)]
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    return calls, metrics, gradient


@pytest.mark.parametrize("level", ["sequence", "geometric", "token"])
@pytest.mark.parametrize("context_length", [1, 3])
def test_portions_give_what_the_whole_batch_gives(context_length, level, monkeypatch):
    whole, together, gradient = moved(context_length, level, 10**6, monkeypatch)
    some, apart, summed = moved(context_length, level, 7 * context_length, monkeypatch)
    assert whole == [sum(LENGTHS)] * 2  # padding is not asked for
    assert some == [5, 7, 7, 5, 4] * 2
    for one, other in zip(together, apart):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-5)
    torch.testing.assert_close(gradient, summed, atol=1e-5, rtol=1e-4)
    assert together[0]["train/grad_norm"] > 0.01


def test_portions_are_as_large_as_the_limit_allows_and_hold_at_least_a_row():
    def sizes(lengths, limit):
        return [(rows.start, rows.stop) for rows in portions(torch.tensor(lengths), limit)]

    assert sizes([3, 3, 3], 6) == [(0, 2), (2, 3)]
    assert sizes([3, 3, 3], 9) == [(0, 3)]
    assert sizes([1, 20, 1, 1], 5) == [(0, 1), (1, 2), (2, 4)]
    assert sizes([20], 5) == [(0, 1)]
    assert sizes([0, 0], 5) == [(0, 2)]
    assert list(portions(torch.zeros(0, dtype=torch.long), 5)) == []


@pytest.mark.parametrize("context_length", [1, 3])
def test_what_the_reference_says_holds_for_any_of_the_rows(context_length, monkeypatch):
    monkeypatch.setattr(updates, "STEPS_AT_ONCE", 7 * context_length)
    policy = small(context_length)
    steps = acted(policy, rows=10, time=4, history=context_length - 1)
    steps = hide(steps, [context_length - 1 + length for length in LENGTHS])
    outcomes = []
    for told in (False, True):
        update = ClippedUpdate(small(context_length), config(kl_coef=0.5, learning_rate=1e-2))
        known, rows = update.refer(steps), torch.tensor([8, 2, 2, 5])
        some, advantages = steps.map(lambda x, rows=rows: x[rows]), torch.tensor([1.0, -1.0, 0.5, 2.0])
        given = {"reference": known[rows]} if told else {}
        outcomes.append([update.step(some, advantages, seeded(3), **given) for _ in range(3)])
    for asked, told in zip(*outcomes):
        assert told == pytest.approx(asked, rel=1e-5, abs=1e-6)
    assert outcomes[0][2]["train/kl"] > 1e-4


def test_the_reference_is_asked_about_each_member_once_an_iteration():
    algorithm, asked = grpo(passes=3, batch_size=4), []
    reference = algorithm.update.reference

    def watched(module, arguments):
        asked.append(int(arguments[0].mask[:, -1].sum()))

    reference.register_forward_pre_hook(watched)
    for iteration in range(3):
        algorithm.iterate(Witness())
        if not iteration:  # the reference is still the policy
            assert algorithm.metrics.updates[0]["train/kl"] < 1e-9
        assert sum(asked) == int(algorithm.buffer.rows["mask"][:, algorithm.policy.context_length - 1 :].sum())
        asked.clear()
