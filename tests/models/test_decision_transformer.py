"""The transformer: causal, blind to padding, GPT-2 by the book, and in environment units."""

import math
from dataclasses import replace

import pytest
import torch
from draws import draw_steps, seeded
from torch import nn

from dtune.data.steps import concatenate, empty_steps
from dtune.errors import ConfigError
from dtune.models.decision_transformer import DecisionTransformer, DecisionTransformerConfig
from dtune.models.policy import TrainablePolicy

OBS, ACT = 5, 3
SMALL = DecisionTransformerConfig(observation_dim=OBS, action_dim=ACT, layers=2, heads=2, width=32)


def make(seed=0, **changes):
    return DecisionTransformer(replace(SMALL, **changes), seeded(seed))


def draw(rows, time, seed=0):
    return draw_steps(rows, time, OBS, ACT, seed=seed)


def everywhere(policy, context):
    """All the numbers a policy returns, `[batch, time, ...]`."""
    with torch.no_grad():
        distribution = policy(context)
    return torch.cat([distribution.mean, distribution.std], -1)


def changed(context, name, time):
    """The context with other numbers in one field, at `time` (an index or a slice)."""
    value = getattr(context, name).clone()
    value[:, time] = getattr(draw(*value.shape[:2], seed=99), name)[:, time]
    return replace(context, **{name: value})


def test_it_is_a_trainable_policy_and_evaluates_from_the_start():
    assert isinstance(make(), TrainablePolicy)
    assert not make().training


# ---- what may matter to what


@pytest.mark.parametrize("time", range(5))
@pytest.mark.parametrize("name", ["returns_to_go", "observations"])
def test_returns_and_observations_matter_from_their_own_step_on(name, time):
    policy, context = make(), draw(4, 5)
    before, after = everywhere(policy, context), everywhere(policy, changed(context, name, time))
    assert torch.equal(after[:, :time], before[:, :time])
    assert (after[:, time:] != before[:, time:]).any(-1).all()


@pytest.mark.parametrize("time", range(5))
def test_an_action_matters_from_the_next_step_on_so_the_last_never_does(time):
    policy, context = make(), draw(4, 5)
    before, after = everywhere(policy, context), everywhere(policy, changed(context, "actions", time))
    assert torch.equal(after[:, : time + 1], before[:, : time + 1])
    assert (after[:, time + 1 :] != before[:, time + 1 :]).any(-1).all()


@pytest.mark.parametrize("name", ["rewards", "raw_actions", "log_probs", "timesteps"])
def test_nothing_else_is_read(name):
    policy, context = make(), draw(4, 5)
    assert torch.equal(everywhere(policy, changed(context, name, slice(None))), everywhere(policy, context))


@pytest.mark.parametrize("length", range(1, 6))
def test_a_window_needs_no_more_than_itself(length):
    """The first outputs of a longer window are those of a shorter one."""
    policy, context = make(), draw(4, 5)
    short = everywhere(policy, context.slice_time(0, length))
    torch.testing.assert_close(everywhere(policy, context)[:, :length], short, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("real", range(1, 6))
def test_padding_never_changes_anything(real):
    """Alone or behind padding of whatever content: the same outputs."""
    policy, window = make(), draw(4, real)
    alone = everywhere(policy, window)
    for length in range(real + 1, 6):
        nothing = empty_steps(4, length - real, OBS, ACT)
        padded = everywhere(policy, concatenate([nothing, window], 1))
        torch.testing.assert_close(padded[:, -real:], alone, rtol=1e-5, atol=1e-6)
        content = replace(draw(4, length - real, seed=7), mask=nothing.mask)
        for scale in (1, 100_000):
            content = replace(content, observations=scale * content.observations, actions=scale * content.actions)
            behind = everywhere(policy, concatenate([content, window], 1))
            assert torch.equal(behind[:, -real:], padded[:, -real:])
            assert behind.isfinite().all()


def test_rows_padded_differently_share_a_batch():
    policy, context = make(), draw(5, 5)
    context.mask[:] = torch.arange(5) >= torch.arange(5)[:, None]  # row r begins at step r
    together = everywhere(policy, context)
    for row in range(5):
        alone = everywhere(policy, context.map(lambda x: x[row : row + 1, row:]))  # noqa: B023
        torch.testing.assert_close(together[row : row + 1, row:], alone, rtol=1e-5, atol=1e-6)


def test_padding_behind_the_end_of_an_episode_leaves_numbers_and_gradients_finite():
    policy, context = make(), draw(3, 5)
    context.mask[:, 2:] = False
    context.mask[2] = False
    whole = policy(context)
    torch.testing.assert_close(whole.mean[:2, :2], policy(context.map(lambda x: x[:2, :2])).mean)
    assert whole.mean.isfinite().all()
    assert whole.std.isfinite().all()
    whole.mean[:2, :2].sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters())


# ---- context 1


def test_context_one_uses_two_tokens_and_equals_the_general_path():
    policy, step = make(), draw(6, 1)
    seen = []
    policy.blocks[0].register_forward_hook(lambda block, args, output: seen.append(tuple(args[0].shape)))
    fast = everywhere(policy, step)
    assert seen == [(6, 2, 32)]
    general = everywhere(policy, concatenate([empty_steps(6, 1, OBS, ACT), step], 1))
    assert seen[1:] == [(6, 5, 32)]
    torch.testing.assert_close(fast[:, -1], general[:, -1], rtol=1e-5, atol=1e-6)
    assert (everywhere(policy, changed(step, "returns_to_go", 0)) != fast).any(-1).all()
    assert (everywhere(policy, changed(step, "observations", 0)) != fast).any(-1).all()


# ---- by the book


PAPER_SIZES = {"hopper": (11, 3, 12_623_878), "walker2d": (17, 6, 12_631_564), "ant": (27, 8, 12_639_760)}


@pytest.mark.parametrize(("observation_dim", "action_dim", "count"), PAPER_SIZES.values(), ids=PAPER_SIZES)
def test_the_papers_network_has_as_many_parameters_as_is_known(observation_dim, action_dim, count):
    policy = DecisionTransformer(DecisionTransformerConfig(observation_dim=observation_dim, action_dim=action_dim))
    assert sum(parameter.numel() for parameter in policy.parameters()) == count
    assert policy.context_length == 20


def test_every_parameter_learns():
    policy = make()
    distribution = policy(draw(4, 3))
    (distribution.mean.square().sum() + distribution.std.square().sum()).backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def layer_norm(x, weights, name):
    """(x - mean) / sqrt(variance + 1e-5), scaled and shifted."""
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x, weights, name):
    return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]


def attend(states, weights, name, heads, valid):
    """GPT-2's attention: for each head and token, a softmax over the tokens up to it that are no padding."""
    width = len(states[0])
    size = width // heads
    fused = [linear(state, weights, f"{name}.qkv") for state in states]
    outputs = []
    for t in range(len(states)):
        parts = []
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            query = fused[t][:width][own]
            among = [s for s in range(t + 1) if valid[s] or s == t]
            scores = torch.stack([query @ fused[s][width : 2 * width][own] for s in among]) / size**0.5
            shares = scores.exp() / scores.exp().sum()
            parts.append(sum(share * fused[s][2 * width :][own] for share, s in zip(shares, among)))
        outputs.append(linear(torch.cat(parts), weights, f"{name}.project"))
    return outputs


def block_by_the_book(states, weights, name, heads, valid):
    normed = [layer_norm(state, weights, f"{name}.norm_attention") for state in states]
    attended = attend(normed, weights, name, heads, valid)
    states = [state + more for state, more in zip(states, attended)]
    outputs = []
    for state in states:
        hidden = linear(layer_norm(state, weights, f"{name}.norm_mlp"), weights, f"{name}.expand")
        outputs.append(state + linear(hidden / (1 + (-hidden).exp()), weights, f"{name}.contract"))
    return outputs


def by_the_book(weights, config, row):
    """Means and deviations at each step of one row: online-dt with SiLU, token by token, head by head."""
    states, valid = [], []
    for t in range(len(row["mask"])):
        observation = (row["observations"][t] - weights["observation_mean"]) / weights["observation_std"]
        states.append(linear(row["returns_to_go"][t].view(1) * config.return_scale, weights, "embed_return"))
        states.append(linear(observation, weights, "embed_observation"))
        states.append(linear(row["actions"][t], weights, "embed_action"))
        valid += 3 * [bool(row["mask"][t])]
    states = [layer_norm(state, weights, "norm_embedding") for state in states]
    for layer in range(config.layers):
        states = block_by_the_book(states, weights, f"blocks.{layer}", config.heads, valid)
    outputs = [layer_norm(state, weights, "norm_final") for state in states[1::3]]
    means = [linear(output, weights, "head_mean") for output in outputs]
    raw = [linear(output, weights, "head_log_std") for output in outputs]
    return torch.stack(means), torch.stack([(-5 + 3.5 * (each.tanh() + 1)).exp() for each in raw])


ACTIVATED = {
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


@pytest.mark.parametrize("name", ACTIVATED)
def test_a_block_has_the_activation_it_is_told(name):
    block = make(activation=name).blocks[0]
    numbers = [-2.0, -0.3, 0.0, 0.7, 3.0]
    expected = [ACTIVATED[name](x) for x in numbers]
    assert block.activation(torch.tensor(numbers)).tolist() == pytest.approx(expected, abs=1e-6)


def test_with_a_timestep_embedding_the_clock_matters_from_its_step_on_and_the_last_stands_for_all_later():
    policy, context = make(timestep_embedding=40), draw(4, 5)
    context = replace(context, timesteps=context.timesteps.remainder(40))
    with torch.no_grad():
        policy.embed_timestep.weight.normal_(generator=seeded(3))
    before = everywhere(policy, context)
    for time in range(5):
        clock = context.timesteps.clone()
        clock[:, time] = (clock[:, time] + 1).remainder(40)
        after = everywhere(policy, replace(context, timesteps=clock))
        assert torch.equal(after[:, :time], before[:, :time])
        assert (after[:, time:] != before[:, time:]).any(-1).all()
    late = [everywhere(policy, replace(context, timesteps=torch.full((4, 5), time))) for time in (39, 4000)]
    assert torch.equal(*late)
    alone = make(timestep_embedding=0).state_dict().keys()
    assert policy.state_dict().keys() - alone == {"embed_timestep.weight"}


def shake(policy, seed=5):
    """Moves every number of a model a little, so that none is 0 or 1 and hides a mistake."""
    generator = seeded(seed)
    with torch.no_grad():
        for value in policy.state_dict().values():
            value.add_(0.05 * torch.randn(value.shape, generator=generator))
        policy.observation_std.abs_()


@pytest.mark.parametrize(("length", "hidden"), [(1, 0), (3, 1)])
def test_at_the_papers_size_it_is_gpt2_without_positions(length, hidden):
    config = DecisionTransformerConfig(observation_dim=OBS, action_dim=ACT)
    assert (config.layers, config.heads, config.width, config.return_scale) == (4, 4, 512, 0.001)
    policy, context = DecisionTransformer(config), draw(2, length)
    shake(policy)
    context.mask[1, :hidden] = False
    single = policy(context)
    policy.double()
    context = context.map(lambda x: x.double() if x.is_floating_point() else x)
    double = policy(context)
    for row in range(2):
        own = {name: value[row] for name, value in vars(context).items()}
        mean, std = by_the_book(policy.state_dict(), config, own)
        seen = slice(hidden * row, None)
        torch.testing.assert_close(double.mean[row, seen], mean[seen], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(double.std[row, seen], std[seen], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(single.mean[row, seen].double(), mean[seen], rtol=1e-3, atol=1e-4)


# ---- the start


def test_the_start_is_as_described():
    policy = make(width=128, heads=4)
    for embedding in (policy.embed_return, policy.embed_observation, policy.embed_action):
        bound = embedding.in_features**-0.5
        for values in (embedding.weight, embedding.bias):
            assert 0.8 * bound < values.abs().max() <= bound
            assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)
    for linear in (module for module in policy.blocks.modules() if isinstance(module, nn.Linear)):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert linear.weight.mean().item() == pytest.approx(0, abs=1e-3)
        assert not linear.bias.any()
    for head in (policy.head_mean, policy.head_log_std):
        torch.testing.assert_close(head.weight @ head.weight.T, torch.eye(ACT))
        assert not head.bias.any()
    norms = [module for module in policy.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 2 + 2 * 2
    for norm in norms:
        assert norm.eps == 1e-5
        assert (norm.weight == 1).all()
        assert not norm.bias.any()


def test_the_return_asked_for_matters_beyond_its_sign():
    """With an embedding without bias, as GPT-2 begins, the norm behind it would leave nothing but ±."""
    policy = make(width=128, heads=4)
    step = draw(1, 1).map(lambda x: x.expand(4, *x.shape[1:]).clone())
    step.returns_to_go[:, 0] = torch.tensor([600.0, 1200.0, 3600.0, 7200.0])
    means = everywhere(policy, step)[:, 0, :ACT]
    for one in range(4):
        for other in range(one):
            assert (means[one] - means[other]).abs().max() > 1e-3


def test_the_generator_alone_decides_the_start():
    torch.manual_seed(1)
    one, default = make(3), DecisionTransformer(SMALL)
    torch.manual_seed(2)
    again, other, default_again = make(3), make(4), DecisionTransformer(SMALL)
    context = draw(2, 3)
    assert torch.equal(everywhere(one, context), everywhere(again, context))
    assert torch.equal(everywhere(default, context), everywhere(default_again, context))
    assert not torch.equal(everywhere(one, context), everywhere(other, context))


# ---- the head


@pytest.mark.parametrize(("raw", "log_std"), [(-100.0, -5.0), (0.0, -1.5), (100.0, 2.0)])
def test_the_logarithm_of_sigma_is_squashed_into_its_bounds(raw, log_std):
    policy = make()
    nn.init.zeros_(policy.head_log_std.weight)
    nn.init.constant_(policy.head_log_std.bias, raw)
    std = policy(draw(4, 2)).std
    torch.testing.assert_close(std.log(), torch.full_like(std, log_std))


# ---- units


def test_observations_come_in_as_the_simulator_gives_them():
    plain, normalising, context = make(), make(), draw(4, 3)
    mean, std = 10 * torch.randn(OBS, generator=seeded(1)), torch.rand(OBS, generator=seeded(2)) + 0.5
    normalising.set_statistics(mean, std)
    seen = replace(context, observations=context.observations * std + mean)
    torch.testing.assert_close(everywhere(normalising, seen), everywhere(plain, context), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(everywhere(plain, seen), everywhere(plain, context), atol=1e-2)


def test_returns_come_in_in_reward_units_and_are_scaled_inside():
    context = draw(4, 3)
    thousandth, whole = make(), make(return_scale=1.0)
    scaled = replace(context, returns_to_go=context.returns_to_go / 1000)
    torch.testing.assert_close(everywhere(whole, scaled), everywhere(thousandth, context), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(everywhere(whole, context), everywhere(thousandth, context), atol=1e-2)


@pytest.mark.parametrize("length", [1, 4])
def test_a_state_dict_holds_all_that_is_needed_to_act_the_same_to_the_last_bit(length):
    policy, context = make(1), draw(4, length)
    policy.set_statistics(torch.randn(OBS, generator=seeded(1)), torch.rand(OBS, generator=seeded(2)) + 0.5)
    other = make(2)
    assert not torch.equal(everywhere(other, context), everywhere(policy, context))
    other.load_state_dict(policy.state_dict())
    assert torch.equal(everywhere(other, context), everywhere(policy, context))
    assert {"observation_mean", "observation_std"} < set(policy.state_dict())


def test_statistics_are_copied():
    policy, mean = make(), torch.ones(OBS)
    policy.set_statistics(mean, torch.full((OBS,), 2.0))
    mean.zero_()
    assert policy.observation_mean.tolist() == [1.0] * OBS
    assert policy.observation_std.tolist() == [2.0] * OBS


def test_what_is_still_to_be_earned_falls_by_what_was_earned_and_below_zero():
    left = make().next_return_to_go(torch.tensor([7200.0, 5.0, -1.0]), torch.tensor([3.5, 6.0, -2.0]))
    assert left.tolist() == [7196.5, -1.0, 1.0]


# ---- dropout


def only_embeddings(policy):
    for block in policy.blocks:
        block.dropout, block.drop.p = 0.0, 0.0


def only_attention_weights(policy):
    policy.drop.p = 0.0
    for block in policy.blocks:
        block.drop.p = 0.0


def only_attention_branch(policy):
    policy.drop.p = 0.0
    for block in policy.blocks:
        block.dropout = 0.0
        nn.init.zeros_(block.contract.weight)  # the other branch is zero, dropped or not


def only_mlp_branch(policy):
    policy.drop.p = 0.0
    for block in policy.blocks:
        block.dropout = 0.0
        nn.init.zeros_(block.project.weight)


@pytest.mark.parametrize("only", [only_embeddings, only_attention_weights, only_attention_branch, only_mlp_branch])
def test_in_training_dropout_is_on_in_each_of_its_places_and_off_outside(only):
    policy, context = make(dropout=0.5), draw(4, 3)
    only(policy)
    before = everywhere(policy, context)
    assert torch.equal(everywhere(policy, context), before)
    policy.train()
    torch.manual_seed(0)
    first, second = everywhere(policy, context), everywhere(policy, context)
    assert not torch.equal(first, before)
    assert not torch.equal(first, second)
    policy.eval()
    assert torch.equal(everywhere(policy, context), before)


def test_without_dropout_training_mode_changes_nothing():
    policy, context = make(dropout=0.0), draw(4, 3)
    assert torch.equal(everywhere(policy.train(), context), everywhere(policy.eval(), context))
    assert DecisionTransformerConfig(observation_dim=OBS, action_dim=ACT).dropout == 0.1


# ---- what cannot be


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 30, "heads": 4}, "multiple of heads, got 30 and 4"),
        ({"context_length": 0}, "context_length must be at least 1.*got 0"),
        ({"heads": 0}, "heads must be at least 1.*got 0"),
        ({"layers": 0}, "layers must be at least 1.*got 0"),
        ({"width": 0}, "width must be at least 1.*got 0"),
        ({"observation_dim": 0}, "observation_dim must be at least 1.*got 0"),
        ({"action_dim": -1}, "action_dim must be at least 1.*got -1"),
        ({"dropout": 1.0}, "dropout is a probability.*got 1.0"),
        ({"dropout": -0.1}, "dropout is a probability.*got -0.1"),
    ],
)
def test_shapes_that_cannot_be_are_refused_in_words(changes, words):
    with pytest.raises(ConfigError, match=words):
        replace(SMALL, **changes)
