"""Reinformer: causal in its own order, blind to padding, and what its authors' code computes."""

import math
from dataclasses import replace

import pytest
import torch
from draws import draw_steps, seeded

from dtune.data.steps import concatenate, empty_steps
from dtune.errors import ConfigError
from dtune.functional.sampling import reset_point_distribution
from dtune.models.policy import Policy, ReturnPredictor, TrainablePolicy
from dtune.models.reinformer import Reinformer, ReinformerConfig

OBS, ACT = 5, 3
SMALL = ReinformerConfig(observation_dim=OBS, action_dim=ACT, layers=2, heads=2, width=32, timesteps=1000)


def make(seed=0, **changes):
    return Reinformer(replace(SMALL, **changes), seeded(seed))


def draw(rows, time, seed=0):
    return draw_steps(rows, time, OBS, ACT, seed=seed)


@torch.no_grad()
def outputs(policy, context):
    """Means and predicted returns at every step."""
    return policy(context).mean, policy.predict_return_to_go(context)


def test_it_is_a_policy_that_predicts_its_return():
    for protocol in (Policy, TrainablePolicy, ReturnPredictor):
        assert isinstance(make(), protocol)
    assert not make().training


@pytest.mark.parametrize("time", range(5))
@pytest.mark.parametrize(
    ("name", "action_lag", "return_lag"),
    [("observations", 0, 0), ("timesteps", 0, 0), ("returns_to_go", 0, 1), ("actions", 1, 1)],
)
def test_what_matters_from_when_on(name, action_lag, return_lag, time):
    """In the order (s, g, a): the prediction of a step does not see its return, its action sees both."""
    policy, context = make(), draw(4, 5)
    value = getattr(context, name).clone()
    value[:, time] = getattr(draw(4, 5, seed=9), name)[:, time]
    for before, after, lag in zip(
        outputs(policy, context), outputs(policy, replace(context, **{name: value})), (action_lag, return_lag)
    ):
        assert torch.equal(after[:, : time + lag], before[:, : time + lag])
        assert (after[:, time + lag :] != before[:, time + lag :]).all()


@pytest.mark.parametrize("real", range(1, 5))
def test_padding_never_changes_anything(real):
    policy, window = make(), draw(4, real)
    alone = outputs(policy, window)
    nothing = empty_steps(4, 5 - real, OBS, ACT)
    content = replace(draw(4, 5 - real, seed=7), mask=nothing.mask)
    padded = outputs(policy, concatenate([nothing, window], 1))
    behind = outputs(policy, concatenate([content, window], 1))
    for one, two, three in zip(alone, padded, behind):
        torch.testing.assert_close(two[:, -real:], one, rtol=1e-4, atol=1e-4)
        assert torch.equal(three[:, -real:], two[:, -real:])
        assert three.isfinite().all()


def test_the_last_timestep_stands_for_all_behind_it():
    policy, context = make(timesteps=10), draw(2, 3)
    late = [replace(context, timesteps=torch.full((2, 3), time)) for time in (8, 9, 10, 5000)]
    eighth, ninth, tenth, last = (outputs(policy, each)[0] for each in late)
    assert not torch.equal(eighth, ninth)
    assert torch.equal(ninth, tenth)
    assert torch.equal(ninth, last)


def test_the_size_its_authors_give_has_as_many_parameters_as_one_can_count():
    policy = Reinformer(ReinformerConfig(observation_dim=11, action_dim=3))
    width = 256
    block = 12 * width**2 + 13 * width  # qkv, projection, both halves of the mlp; their biases; two norms
    tokens = (11 + 1) * width + (1 + 1) * width + (3 + 1) * width + 4096 * width + 2 * width
    heads = (width + 1) + 3 * (width + 1) + 3
    assert sum(parameter.numel() for parameter in policy.parameters()) == 4 * block + tokens + heads
    assert (policy.context_length, policy.config.heads, policy.config.dropout) == (5, 8, 0.1)


def norm(x, weights, name):
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x, weights, name):
    return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]


def block_by_the_book(tokens, weights, name, heads):
    width = len(tokens[0])
    size, fused = width // heads, [linear(token, weights, f"{name}.qkv") for token in tokens]
    done = []
    for t, token in enumerate(tokens):
        parts = []
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            keys = [f[width : 2 * width][own] for f in fused[: t + 1]]
            shares = torch.stack([fused[t][:width][own] @ key / size**0.5 for key in keys]).softmax(0)
            parts.append(sum(share * f[2 * width :][own] for share, f in zip(shares, fused)))
        x = norm(token + linear(torch.cat(parts), weights, f"{name}.project"), weights, f"{name}.norm_attention")
        hidden = linear(x, weights, f"{name}.expand")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        done.append(norm(x + linear(hidden, weights, f"{name}.contract"), weights, f"{name}.norm_mlp"))
    return done


def test_it_computes_what_its_authors_do_token_by_token():
    """In double precision: two of its authors' heads, post-norm, GELU, one time for all three tokens of a step."""
    policy, context = make(), draw(1, 4)
    with torch.no_grad():
        for value in policy.state_dict().values():
            value.add_(0.05 * torch.randn(value.shape, generator=seeded(5)))
    policy.double()
    context = context.map(lambda x: x.double() if x.is_floating_point() else x)
    weights, tokens = policy.state_dict(), []
    for t in range(4):
        clock = weights["embed_timestep.weight"][context.timesteps[0, t]]
        observation = (context.observations[0, t] - weights["observation_mean"]) / weights["observation_std"]
        tokens += [
            linear(observation, weights, "embed_observation") + clock,
            linear(context.returns_to_go[0, t].view(1) * 0.001, weights, "embed_return") + clock,
            linear(context.actions[0, t], weights, "embed_action") + clock,
        ]
    tokens = [norm(token, weights, "norm_embedding") for token in tokens]
    for layer in range(2):
        tokens = block_by_the_book(tokens, weights, f"blocks.{layer}", 2)
    mean, predicted = outputs(policy, context)
    expected = torch.stack([linear(token, weights, "head_mean") for token in tokens[1::3]])
    torch.testing.assert_close(mean[0], expected, rtol=1e-9, atol=1e-11)
    expected = torch.cat([linear(token, weights, "head_return") for token in tokens[::3]]) * 1000
    torch.testing.assert_close(predicted[0], expected, rtol=1e-9, atol=1e-8)


def test_sigma_is_the_same_everywhere_so_reset_points_are_drawn_evenly():
    policy, context = make(), draw(2, 5)
    std = policy(context).std.detach()
    assert torch.equal(std, torch.ones_like(std))
    even = reset_point_distribution(std.square(), context.mask)
    torch.testing.assert_close(even, torch.full((2, 5), 0.2))
    with torch.no_grad():
        policy.log_std.copy_(torch.tensor([-9.0, 0.5, 9.0]))
    assert policy(context).std[0, 0].log().tolist() == pytest.approx([-5, 0.5, 2])


def test_finetuning_sends_no_gradient_to_the_return_head():
    policy = make()
    policy(draw(4, 3)).mean.sum().backward()
    unmoved = {name for name, parameter in policy.named_parameters() if parameter.grad is None}
    assert unmoved == {"head_return.weight", "head_return.bias", "log_std"}  # of the mean alone


def test_units_are_the_environments():
    policy, context = make(), draw(3, 4)
    coarse = Reinformer(replace(SMALL, return_scale=0.01), seeded(0))
    tenth = replace(context, returns_to_go=context.returns_to_go / 10)
    (mean, predicted), (same, smaller) = outputs(policy, context), outputs(coarse, tenth)
    torch.testing.assert_close(same, mean)
    torch.testing.assert_close(10 * smaller, predicted)


@pytest.mark.parametrize(("name", "value"), [("heads", 5), ("timesteps", 0), ("dropout", 1.0), ("return_scale", 0.0)])
def test_shapes_that_cannot_be_are_refused_in_words(name, value):
    with pytest.raises(ConfigError, match=name):
        replace(SMALL, **{name: value})
