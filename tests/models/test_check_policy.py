"""The checker finds nothing in good policies, and each fault in a bad one, by its name."""

import pytest
import torch
from draws import seeded
from pointmass import TinyPolicy
from torch import nn

import dtune
from dtune.models.check import check_policy
from dtune.models.decision_transformer import DecisionTransformer, DecisionTransformerConfig
from dtune.models.distributions import TanhNormal
from dtune.models.reinformer import Reinformer, ReinformerConfig


def transformer(context):
    shape = DecisionTransformerConfig(
        observation_dim=2, action_dim=2, context_length=context, layers=2, heads=2, width=16
    )
    return DecisionTransformer(shape, seeded())


def reinformer(context):
    shape = ReinformerConfig(observation_dim=2, action_dim=2, context_length=context, layers=2, heads=2, width=16)
    return Reinformer(shape, seeded())


@pytest.mark.parametrize("context", [1, 5])
@pytest.mark.parametrize("make", [transformer, reinformer, TinyPolicy])
def test_good_policies_pass_and_are_left_as_they_were(make, context):
    policy = make(context).train()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    findings = dtune.check_policy(policy, 2)
    assert [found.name for found in findings if not found.passed] == []
    assert len(findings) == {TinyPolicy: 12, reinformer: 13, transformer: 14}[make]
    assert all(len(found.message) > 5 for found in findings)
    assert policy.training
    assert policy.context_length == context
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert all(parameter.grad is None for parameter in policy.parameters())


class Bad(TinyPolicy):
    """A tiny policy with one fault."""

    def __init__(self, fault: str):
        super().__init__(5)
        self.fault, self.calls = fault, 0

    def forward(self, context):
        fault, self.calls = self.fault, self.calls + 1
        distribution = super().forward(context)
        mean, std = distribution.mean, distribution.std
        changes = {
            "shape": lambda: (mean[:, -1], std[:, -1]),
            "negative": lambda: (mean, std - 1),
            "nan": lambda: (mean.log(), std),
            "random": lambda: (nn.functional.dropout(mean, 0.5), std),
            "company": lambda: (mean - mean.mean(0), std),
            "future": lambda: (mean + context.observations.mean(1, keepdim=True), std),
            "own action": lambda: (mean + 0.1 * context.actions, std),
            "padding": lambda: (mean + context.observations[:, :1] * torch.ones_like(mean), std),
            "reward": lambda: (mean + context.rewards[..., None], std),
            "window": lambda: (mean + 0.1 * context.mask.shape[1] * context.mask[:, :1, None], std),
            "rows": lambda: (mean + 0.1 * (len(mean) > 16), std),
            "detached": lambda: (mean.detach(), std.detach().requires_grad_()),
            "deaf": lambda: (0 * mean + context.observations * self.head.bias[0], torch.ones_like(std)),
            "overflow": lambda: (mean + (20 * context.observations).exp(), std),
        }
        return TanhNormal(*changes[fault]()) if fault in changes else distribution

    def next_return_to_go(self, returns_to_go, rewards):
        return rewards.sum() if self.fault == "next" else returns_to_go - rewards


FAULTS = {
    "shape": "output", "negative": "output", "nan": "output", "random": "deterministic", "company": "company",
    "future": "causal", "own action": "causal", "padding": "padding", "reward": "unread",
    "rows": "acting is training", "next": "next return-to-go", "detached": "gradients", "deaf": "return matters",
    "overflow": "likelihoods",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_by_its_name(fault):
    findings = check_policy(Bad(fault), 2)
    failed = {found.name: found for found in findings if not found.passed}
    assert FAULTS[fault] in failed
    assert len(failed[FAULTS[fault]].message.split()) > 5
    assert failed[FAULTS[fault]].needed == (fault != "deaf")
    if fault in ("reward", "next", "detached", "deaf"):  # the others break more than one promise
        assert len(failed) == 1


class Peeking(Reinformer):
    def predict_return_to_go(self, context):
        return super().predict_return_to_go(context) + context.returns_to_go


def test_a_prediction_that_sees_what_it_predicts_is_found():
    policy = Peeking(ReinformerConfig(observation_dim=2, action_dim=2, layers=1, heads=2, width=16), seeded())
    assert [found.name for found in check_policy(policy, 2) if not found.passed] == ["predicted return"]


class Doubling(DecisionTransformer):
    """One that others made a new network of, and forgot that it can be asked for its last step alone."""

    def forward(self, context):
        distribution = super().forward(context)
        return TanhNormal(2 * distribution.mean, distribution.std)


def test_a_last_step_that_is_another_is_found():
    shape = DecisionTransformerConfig(observation_dim=2, action_dim=2, context_length=3, layers=1, heads=2, width=16)
    assert "last step" in [found.name for found in check_policy(Doubling(shape, seeded()), 2) if not found.passed]


class Elsewhere(DecisionTransformer):
    """One that acts otherwise than it answers."""

    def acting(self, dtype=torch.float32):
        act = super().acting(dtype)
        return lambda window: TanhNormal(act(window).mean + 0.1, act(window).std)

    def last(self, context):
        self.seen = self.context_length
        return super().last(context)


@pytest.mark.parametrize("context", [1, 3])
def test_one_that_acts_otherwise_is_found(context):
    shape = DecisionTransformerConfig(
        observation_dim=2, action_dim=2, context_length=context, layers=1, heads=2, width=16
    )
    policy = Elsewhere(shape, seeded())
    assert [found.name for found in check_policy(policy, 2) if not found.passed] == ["acting"]
    assert policy.seen == context  # a check that breaks off leaves the next one its context


def test_what_is_no_policy_at_all_is_said_so():
    findings = check_policy(nn.Linear(2, 2), 2)
    assert len(findings) == 1
    assert "context_length has to be a whole number above 0, and is None" in findings[0].message


def test_what_raises_is_told():
    findings = check_policy(transformer(3), 7)  # it observes 2 numbers
    assert [found.passed for found in findings] == [True, False]
    assert "raised RuntimeError" in findings[1].message
