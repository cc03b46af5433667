"""The value network: its shape, its units, its start."""

import pytest
import torch
from draws import seeded
from torch import nn
from torch.nn.functional import layer_norm

from dtune.models.critics import TwinCritic, ValueNetwork, initialise_linear


def observations(count=50, seed=0):
    return 3 * torch.randn(count, 4, generator=seeded(seed)) + torch.tensor([5.0, 0, -100, 0.1])


def make(seed=0, **options):
    value = ValueNetwork(4, **options)
    initialise_linear(value, seeded(seed))
    return value


def linears(value):
    return [module for module in value.modules() if isinstance(module, nn.Linear)]


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5)])
def test_one_value_an_observation_whatever_the_batch(shape):
    assert make()(torch.randn(*shape, 4, generator=seeded())).shape == shape


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_it_is_a_perceptron_with_silu_on_normalised_observations(layers, norm):
    value, seen = make(width=16, layers=layers, layer_norm=norm, scale=100.0).double(), observations().double()
    value.set_statistics(seen)
    x = (seen - seen.mean(0)) / seen.std(0)
    *hidden, last = linears(value)
    assert len(hidden) == layers
    for linear in hidden:
        x = x @ linear.weight.T + linear.bias
        x = layer_norm(x, (16,)) if norm else x
        x = x * x.sigmoid()
    expected = 100 * (x @ last.weight[0] + last.bias)
    torch.testing.assert_close(value(seen), expected, rtol=1e-10, atol=1e-10)


def test_without_hidden_layers_it_is_linear():
    value = make(layers=0)
    one, two = observations(2)
    torch.testing.assert_close(value(one) + value(two), value(one + two) + value(torch.zeros(4)))


def test_the_paper_has_two_hidden_layers_of_256_and_its_layer_norm_has_no_parameters():
    sizes = [(linear.in_features, linear.out_features) for linear in linears(ValueNetwork(4))]
    assert sizes == [(4, 256), (256, 256), (256, 1)]
    plain, normed = (len(list(ValueNetwork(4, layer_norm=norm).parameters())) for norm in (False, True))
    assert plain == normed == 6


def test_observations_that_never_change_keep_their_unit():
    seen = observations()
    seen[:, 1] = 7.0
    value = make()
    value.set_statistics(seen)
    assert value.observation_std[1] == 1
    torch.testing.assert_close(value.observation_std[[0, 2, 3]], seen[:, [0, 2, 3]].std(0))
    seen[:, 1] = 8.0
    assert value(seen).abs().max() < 10  # a unit, not a millionth of one


def test_a_single_observation_has_no_spread():
    value = ValueNetwork(3)
    value.set_statistics(
        torch.tensor([[1.0, -2.0, 0.0]])
    )  # PyTorch warns of a deviation of one, which is an error here
    assert value.observation_mean.tolist() == [1.0, -2.0, 0.0]
    assert value.observation_std.tolist() == [1.0, 1.0, 1.0]


def test_what_hardly_moved_may_move_later():
    """A nail that trembled by some micrometres while nobody touched it."""
    seen = observations()
    seen[:, 1] = 5e-6 * seen[:, 1]
    value = make()
    value.set_statistics(seen)
    units = seen[:, [0, 2, 3]].std(0)
    torch.testing.assert_close(value.observation_std[[0, 2, 3]], units)
    assert value.observation_std[1].item() == pytest.approx(0.01 * seen.std(0).median().item())


def test_statistics_travel_with_the_parameters():
    value, other = make(1), make(2)
    value.set_statistics(observations())
    assert not torch.equal(other(observations()), value(observations()))
    other.load_state_dict(value.state_dict())
    assert torch.equal(other(observations()), value(observations()))


def test_one_output_is_worth_scale_reward_units():
    assert torch.equal(make(scale=8.0)(observations()), 8 * make()(observations()))


def test_the_start_is_pytorchs_but_from_the_generator_alone():
    torch.manual_seed(1)
    value = make(3)
    torch.manual_seed(2)
    same, other = make(3), make(4)
    for linear, again, else_ in zip(linears(value), linears(same), linears(other), strict=True):
        bound = linear.in_features**-0.5
        for ours, theirs, others in zip(linear.parameters(), again.parameters(), else_.parameters(), strict=True):
            assert torch.equal(ours, theirs)
            assert not torch.equal(ours, others)
            assert ours.abs().max() <= bound
        assert linear.weight.abs().max() > 0.95 * bound
        assert linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
        assert linear.bias.abs().max() > 0


def test_drawing_the_start_moves_the_global_generator_not_at_all():
    value = ValueNetwork(4)
    before = torch.get_rng_state()
    initialise_linear(value, seeded())
    assert torch.equal(torch.get_rng_state(), before)


# --- two critics --------------------------------------------------------------------------------------------------


def twins(**options):
    critic = TwinCritic(4, 2, **options)
    initialise_linear(critic, seeded())
    return critic


@pytest.mark.parametrize("norm", [False, True])
def test_each_critic_is_a_perceptron_with_relu_on_normalised_observation_and_action(norm):
    critic, seen = twins(width=16, layer_norm=norm).double(), observations().double()
    actions = torch.rand(50, 2, generator=seeded(3), dtype=torch.float64)
    critic.set_statistics(seen.mean(0), seen.std(0))
    values = critic(seen, actions)
    assert values.shape == (2, 50)
    for net, value in zip(critic.nets, values, strict=True):
        x = torch.cat([(seen - seen.mean(0)) / seen.std(0), actions], 1)
        *hidden, last = linears(net)
        for linear in hidden:
            x = x @ linear.weight.T + linear.bias
            x = layer_norm(x, (16,)) if norm else x
            x = x.relu()
        torch.testing.assert_close(value, x @ last.weight[0] + last.bias, rtol=1e-10, atol=1e-10)


def test_the_critics_share_nothing():
    critic = twins()
    first, second = critic(observations(), torch.zeros(50, 2))
    assert not first.equal(second)
    first.sum().backward()
    assert not any(parameter.grad.any() for parameter in critic.nets[1].parameters())
    assert [(linear.in_features, linear.out_features) for linear in linears(critic.nets[0])] == [
        (6, 256), (256, 256), (256, 1)
    ]  # fmt: skip


def test_a_critics_constant_observations_keep_their_unit():
    critic = twins()
    critic.set_statistics(torch.zeros(4), torch.tensor([2.0, 0.0, 1e-7, 3.0]))
    assert critic.observation_std.tolist() == [2.0, 1.0, 1.0, 3.0]
