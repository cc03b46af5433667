"""The policy without memory: what it looks at, what it leaves aside, and IQL's reading of it."""

import math

import pytest
import torch

from dtune.data.steps import empty_steps
from dtune.errors import ConfigError
from dtune.models.distributions import TanhNormal
from dtune.models.perceptron_policy import PerceptronPolicy, PerceptronPolicyConfig, explore, log_likelihood
from dtune.models.policy import Policy, TrainablePolicy


def make(**changes) -> PerceptronPolicy:
    config = PerceptronPolicyConfig(**{"observation_dim": 3, "action_dim": 2, "width": 8, **changes})
    return PerceptronPolicy(config, torch.Generator().manual_seed(1))


def test_is_a_policy():
    assert isinstance(make(), Policy)
    assert isinstance(make(), TrainablePolicy)
    assert make().context_length == 1


def test_looks_at_the_present_observation_and_nothing_else():
    policy, steps = make(), empty_steps(2, 4, 3, 2)
    steps.observations.copy_(torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)))
    before = policy(steps)
    steps.returns_to_go.fill_(7200.0)
    steps.actions.fill_(0.5)
    steps.observations[:, :3] = 9.0
    after = policy(steps)
    assert after.mean[:, 3].equal(before.mean[:, 3])
    assert not after.mean[:, 2].equal(before.mean[:, 2])


def test_the_deviation_is_the_same_everywhere_and_bounded():
    policy, observations = make(), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert policy.act(observations).std.equal(torch.ones(5, 2))
    with torch.no_grad():
        policy.log_std.copy_(torch.tensor([-9.0, 9.0]))
    assert policy.act(observations).std[0].tolist() == pytest.approx([math.exp(-5), math.exp(2)])


def test_drops_in_training_only():
    policy, observations = make(dropout=0.5, width=64), torch.ones(1, 3)
    assert policy.act(observations).mean.equal(policy.act(observations).mean)
    policy.train()
    assert not policy.act(observations).mean.equal(policy.act(observations).mean)


def test_the_likelihood_squashes_the_mean_and_not_the_action():
    distribution = TanhNormal(torch.tensor([[0.5, -1.0]]), torch.tensor([[0.3, 2.0]]))
    actions = torch.tensor([[0.9, 0.1]])
    normal = torch.distributions.Normal(torch.tensor([[0.5, -1.0]]).tanh(), torch.tensor([[0.3, 2.0]]))
    torch.testing.assert_close(log_likelihood(distribution, actions), normal.log_prob(actions).sum(1))


def test_explores_around_the_squashed_mean_and_clips():
    distribution = TanhNormal(torch.tensor([[0.5, -1.0, 0.0]]), torch.tensor([[0.3, 2.0, 2.0]]))
    acted = explore(distribution, torch.tensor([[1.0, -1.0, 1.0]])).tanh()
    assert acted[0].tolist() == pytest.approx([math.tanh(0.5) + 0.3, -1.0, 1.0], abs=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [("width", 0), ("layers", 0), ("observation_dim", 0), ("action_dim", 0), ("context_length", 5), ("dropout", 1.0)],
)
def test_refuses_shapes_that_make_no_sense(field, value):
    with pytest.raises(ConfigError, match=f"{field}.*{value}" if field != "dropout" else "dropout"):
        make(**{field: value})
