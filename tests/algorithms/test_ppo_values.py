"""Line 3 of Algorithm 2 and Eqs. 4 and 6: advantages and the value network."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from learners import Witness, parameters, ppo, seeded, spied

from dtune.algorithms.ppo import PPO
from dtune.data.steps import Steps
from dtune.errors import NumericError


def estimates(algorithm: PPO, value: Callable, *, bootstrap: bool = True) -> dict[tuple[float, ...], float]:
    """Generalised advantages of all steps in the replay, by the observation and clock they were taken at.

    Summed forwards as Eq. 4 is printed, one episode at a time.
    """
    replay, config, found = algorithm.replay.rows, algorithm.config, {}
    for row, length in enumerate(replay["mask"].sum(1).tolist()):
        observations = torch.cat([replay["observations"][row, :length], replay["final_observations"][row, None]])
        with torch.no_grad():
            values = value(observations).double()
        if replay["terminated"][row] or not bootstrap:
            values[-1] = 0
        deltas = replay["rewards"][row, :length].double() + config.gamma * values[1:] - values[:-1]
        for h in range(length):
            decay = (config.gamma * config.gae_lambda) ** torch.arange(length - h).double()
            place = (*observations[h].tolist(), replay["timesteps"][row, h].item())
            found[place] = (decay * deltas[h:]).sum().item()
    return found


def looked_up(found: dict[tuple[float, ...], float], own: Steps) -> torch.Tensor:
    """The estimates at some steps, padding left out."""
    places = torch.cat([own.observations, own.timesteps[..., None]], -1)[own.mask]
    return torch.tensor([found[tuple(place)] for place in places.tolist()])


@pytest.mark.parametrize("context_length", [1, 5])
@pytest.mark.parametrize("bootstrap", [True, False])
def test_advantages_are_gae_over_all_of_the_replay_with_the_present_value_network(context_length, bootstrap):
    algorithm = ppo(context_length, bootstrap_time_limits=bootstrap, updates_per_iteration=3, batch_size=256)
    simulator = Witness(box=1.1)
    algorithm.iterate(simulator)
    with torch.no_grad():
        algorithm.value.net[-1].bias -= 20  # so that much hangs on what stands for the future
    value, seen = deepcopy(algorithm.value), spied(algorithm)
    algorithm.iterate(simulator)
    terminated = algorithm.replay.rows["terminated"]
    assert terminated.any()
    assert not terminated.all()
    found = estimates(algorithm, value, bootstrap=bootstrap)
    for batch in seen:  # that of the iteration's beginning, while it learns
        own = batch.own(context_length)
        drawn = looked_up(found, own)
        expected = (drawn - drawn.mean()) / drawn.std()
        torch.testing.assert_close(batch.advantages[own.mask], expected.float(), atol=1e-4, rtol=1e-4)
    old = (algorithm.replay.rows["iteration"] == 0).sum()
    assert old == 8
    other = looked_up(estimates(algorithm, value, bootstrap=not bootstrap), own)
    assert (other - drawn).abs().max() > 0.5  # the reading matters here


def test_nothing_is_earned_beyond_a_termination():
    """A value network that says 100 everywhere raises the last step of a truncated episode, not of a terminated one."""
    algorithm, simulator = ppo(updates_per_iteration=1, batch_size=512, gae_lambda=0.0, gamma=1.0), Witness(box=1.1)
    algorithm.iterate(simulator)
    last = algorithm.value.net[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(100.0)
    seen = spied(algorithm)
    algorithm.iterate(simulator)
    replay = algorithm.replay.rows
    ends = {
        (*replay["observations"][row, length - 1].tolist(), length - 1)
        for row, length in enumerate(replay["mask"].sum(1).tolist())
        if replay["terminated"][row]
    }
    own = seen[0].own(1)
    places = torch.cat([own.observations, own.timesteps[..., None]], -1)[:, 0].tolist()
    at_end = torch.tensor([tuple(place) in ends for place in places])
    assert 0 < at_end.sum() < 50
    advantages = seen[0].advantages[:, 0]  # normalised; raw ones are the reward, less 100 at terminations
    assert advantages[at_end].max() < advantages[~at_end].min() - 3


def test_value_targets_are_advantages_plus_values():
    """Eq. 6: with V unchanged, V - (Â + V) = -Â, before normalisation."""
    algorithm, simulator = ppo(updates_per_iteration=1), Witness(box=1.1)
    algorithm.iterate(simulator)
    value, seen = deepcopy(algorithm.value), spied(algorithm)
    row = algorithm.iterate(simulator)
    drawn = looked_up(estimates(algorithm, value), seen[0].own(1))
    assert row["train/value_loss"] == pytest.approx(drawn.square().mean().item(), rel=1e-4)


def test_the_value_network_learns():
    """Of a future that does not count, the value is the next reward: minus the distance to the origin."""
    algorithm, simulator = ppo(updates_per_iteration=60, gamma=1e-9), Witness()
    losses = [algorithm.iterate(simulator)["train/value_loss"] for _ in range(2)]
    assert losses[1] < losses[0] / 3
    corner, home = algorithm.value(torch.tensor([[-0.7, 0.7], [0.0, 0.0]])).tolist()
    assert corner == pytest.approx(-1, abs=0.3)
    assert home == pytest.approx(-0.1, abs=0.2)


def test_the_value_network_normalises_by_the_first_episodes_for_good():
    algorithm, simulator = ppo(), Witness(box=1.1)
    assert algorithm.value is None
    algorithm.iterate(simulator)
    replay = algorithm.replay.rows
    first = replay["observations"][replay["mask"]]
    torch.testing.assert_close(algorithm.value.observation_mean, first.mean(0))
    torch.testing.assert_close(algorithm.value.observation_std, first.std(0))
    mean, value = algorithm.value.observation_mean.clone(), algorithm.value
    algorithm.iterate(simulator)
    assert algorithm.value is value
    assert algorithm.value.observation_mean.equal(mean)


def test_the_value_network_is_as_asked_for():
    algorithm = ppo(value_width=48, value_layer_norm=True, value_scale=7.0)
    algorithm.iterate(Witness())
    kinds = [type(layer).__name__ for layer in algorithm.value.net]
    assert kinds == ["Linear", "LayerNorm", "SiLU"] * 2 + ["Linear"]
    assert algorithm.value.net[0].out_features == 48
    assert algorithm.value.scale == 7.0
    assert algorithm.value_optimizer.param_groups[0]["lr"] == algorithm.config.value_learning_rate


def test_a_broken_value_network_stops_the_run_and_is_not_stepped_further():
    algorithm, simulator = ppo(), Witness()
    algorithm.iterate(simulator)
    with torch.no_grad():
        algorithm.value.net[-1].bias.fill_(1e30)
    before = parameters(algorithm.value)
    with pytest.raises(NumericError, match="value network"):
        algorithm.iterate(simulator)
    assert parameters(algorithm.value).equal(before)


def test_its_value_network_is_drawn_from_the_runs_generator():
    networks = []
    for undisturbed in (1, 2):
        torch.manual_seed(undisturbed)
        algorithm = ppo()
        algorithm.generator = seeded(4)
        algorithm.iterate(Witness())
        networks.append(parameters(algorithm.value))
    assert networks[0].equal(networks[1])
