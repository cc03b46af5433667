"""Implicit Q-learning: one update by hand, what counts as an end, in which unit rewards are, and an update a step."""

import math
from copy import deepcopy

import pytest
import torch
from learners import Witness, iql, parameters, same_state, seeded, walks_home
from pointmass import PointMass

from dtune.algorithms.iql import IQL, IQLConfig, make_policy
from dtune.data.datasets import Dataset
from dtune.data.experience import transitions
from dtune.errors import DataError, NumericError


def two_transitions() -> dict[str, torch.Tensor]:
    return {
        "observations": torch.tensor([[0.2, -0.1], [0.5, 0.4]]),
        "actions": torch.tensor([[0.3, 0.9], [-0.6, 0.1]]),
        "rewards": torch.tensor([1.5, -0.5]),
        "terminated": torch.tensor([False, True]),
        "next_observations": torch.tensor([[0.3, 0.0], [9.0, 9.0]]),
    }


def frozen_but(algorithm: IQL, *learning: str) -> None:
    """Keeps all networks but those named as they are."""
    for name, optimizer in algorithm.optimizers.items():
        if name not in learning:
            for group in optimizer.param_groups:
                group["lr"] = 0.0


def losses(algorithm: IQL) -> dict[str, float]:
    """What each step of the next updates minimises."""
    seen, step = {}, algorithm._step

    def spy(name, loss):
        seen[name] = loss.item()
        step(name, loss)

    algorithm._step = spy
    return seen


@torch.no_grad()
def test_one_update_by_hand():
    algorithm, batch = iql(expectile=0.8, inverse_temperature=2.0, gamma=0.9, learning_rate=1e-3), two_transitions()
    for parameter in algorithm.target.parameters():
        parameter.mul_(1.5)  # so that it is not the critic
    frozen_but(algorithm)
    seen = losses(algorithm)
    observations, actions = batch["observations"], batch["actions"]
    q1, q2 = algorithm.target(observations, actions)
    value, following = algorithm.value(observations), algorithm.value(batch["next_observations"])
    advantage = [min(q1[i].item(), q2[i].item()) - value[i].item() for i in (0, 1)]
    distribution = algorithm.policy.act(observations)
    normal = torch.distributions.Normal(distribution.mean.tanh(), distribution.std)
    likelihood = normal.log_prob(actions).sum(1).tolist()
    targets = [1.5 + 0.9 * following[0].item(), -0.5]  # nothing is earned behind the end
    values = algorithm.critic(observations, actions)
    with torch.enable_grad():
        row = algorithm._update(batch)
    assert seen["value"] == pytest.approx(sum((0.2 if u < 0 else 0.8) * u * u for u in advantage) / 2, rel=1e-4)
    expected = -sum(math.exp(2 * a) * likelihood[i] for i, a in enumerate(advantage)) / 2
    assert seen["policy"] == pytest.approx(expected, rel=1e-4)
    expected = sum((values[j, i].item() - targets[i]) ** 2 for j in (0, 1) for i in (0, 1)) / 2
    assert seen["critic"] == pytest.approx(expected, rel=1e-4)
    assert row["train/advantage"] == pytest.approx(sum(advantage) / 2, rel=1e-4)


def test_weights_of_good_actions_are_cut_off():
    algorithm, batch = iql(inverse_temperature=10.0), two_transitions()
    with torch.no_grad():
        for net in algorithm.target.nets:
            net[-1].bias.add_(50.0)
    frozen_but(algorithm)
    assert algorithm._update(batch)["train/weight"] == pytest.approx(100.0, rel=1e-5)


def test_value_comes_first_then_policy_then_critic():
    """Each step sees what the one before has made: the original's order."""
    algorithm, seen = iql(), []
    step = algorithm._step
    algorithm._step = lambda name, loss: (seen.append(name), step(name, loss))
    before = [parameters(algorithm.value), parameters(algorithm.policy), parameters(algorithm.critic)]
    algorithm._update(two_transitions())
    assert seen == ["value", "policy", "critic"]
    after = [parameters(algorithm.value), parameters(algorithm.policy), parameters(algorithm.critic)]
    assert all(not one.equal(other) for one, other in zip(before, after, strict=True))


def test_target_critics_follow_slowly():
    algorithm = iql(polyak=0.25)
    before = parameters(algorithm.target)
    assert before.equal(parameters(algorithm.critic))
    algorithm._update(two_transitions())
    torch.testing.assert_close(parameters(algorithm.target), before + 0.25 * (parameters(algorithm.critic) - before))


# What joins the replay


def online(algorithm: IQL) -> dict[str, torch.Tensor]:
    return algorithm.replay.state_dict()["rows"]


def test_a_time_limit_is_no_end():
    algorithm = iql(updates_per_step=0, min_steps=1)
    algorithm.iterate(PointMass(horizon=7))
    rows = online(algorithm)
    assert rows["terminated"].tolist() == [False] * 7
    assert rows["next_observations"][:-1].equal(rows["observations"][1:])
    last = (rows["observations"] + 0.2 * rows["actions"])[-1]
    torch.testing.assert_close(rows["next_observations"][-1], last, atol=1e-5, rtol=0)  # seen behind the last step


def test_leaving_the_box_is_one():
    algorithm = iql(updates_per_step=0, episodes_at_once=30, min_steps=1)
    simulator = Witness(box=1.05)
    row = algorithm.iterate(simulator)
    rows = online(algorithm)
    outside = (rows["next_observations"].abs() > 1.05).any(1)
    assert 0 < outside.sum() < 30
    assert rows["terminated"].equal(outside)
    assert len(outside) == row["count/env_steps"] == sum(simulator.stepped)


def test_actions_are_drawn_around_the_squashed_mean_and_stay_in_bounds():
    algorithm = iql(updates_per_step=0, episodes_at_once=50, min_steps=1)
    algorithm.iterate(PointMass())
    rows = online(algorithm)
    assert rows["actions"].abs().max() <= 1
    assert 0.1 < (rows["actions"].abs() > 0.9999).float().mean() < 0.6  # a deviation of 1 is often clipped


def test_a_broken_step_does_not_join():
    algorithm = iql(updates_per_step=0, episodes_at_once=150, min_steps=1)
    algorithm.iterate(PointMass(faults={3: 4}, broken=1e9))
    rows = online(algorithm)
    assert len(rows["rewards"]) == 149 * 20 + 4
    assert rows["next_observations"].abs().max() < 10


@pytest.mark.parametrize("updates_per_step", [1, 2])
def test_an_update_follows_each_step(updates_per_step):
    algorithm, simulator, seen = iql(updates_per_step=updates_per_step), PointMass(), []
    update = algorithm._update
    algorithm._update = lambda batch: (seen.append((sum(simulator.stepped), len(algorithm.replay))), update(batch))[1]
    begun = len(algorithm.replay)
    row = algorithm.iterate(simulator)
    expected = [(step, begun + step) for step in range(1, 41) for _ in range(updates_per_step)]
    assert seen == expected  # and what has just been seen is in the replay already
    assert row["count/gradient_steps"] == updates_per_step * row["count/env_steps"] == algorithm.updates


def test_walks_side_by_side_have_an_update_each():
    algorithm, simulator = iql(episodes_at_once=5, min_steps=1), PointMass(box=1.05)
    row = algorithm.iterate(simulator)
    assert row["rollout/length"] < 20  # some ended sooner
    assert row["count/gradient_steps"] == sum(simulator.stepped)


def test_walks_until_there_are_enough_steps():
    algorithm = iql(updates_per_step=0, min_steps=21)
    assert algorithm.iterate(PointMass())["count/env_steps"] == 40


# Rewards


@pytest.mark.parametrize(
    ("scaling", "recorded", "earned"), [("both", True, True), ("offline", True, False), ("none", False, False)]
)
@pytest.mark.parametrize("shift", [0.0, -1.0])
def test_readings_of_reward_scaling(scaling, recorded, earned, shift):
    data, simulator = walks_home(), Witness()
    unit = 1000 / (data.returns.max() - data.returns.min()).item()
    algorithm = iql(reward_scaling=scaling, reward_shift=shift, updates_per_step=0, min_steps=1)
    algorithm.iterate(simulator)
    learned = {}

    def note(batch):
        for observation, reward in zip(batch["observations"].tolist(), batch["rewards"].tolist(), strict=True):
            learned[tuple(observation)] = reward
        return {}

    algorithm._update = note
    algorithm._learn(60)
    walk = simulator.collected[0]
    offline, walked = transitions(data), (walk.observations[0].float(), walk.rewards[0])
    for (observations, rewards), scaled in (
        ((offline["observations"], offline["rewards"]), recorded),
        (walked, earned),
    ):
        both = zip(map(tuple, observations.tolist()), rewards.tolist(), strict=True)
        found = [(learned[observation], reward) for observation, reward in both if observation in learned]
        assert len(found) > 10
        for got, reward in found:
            assert got == pytest.approx(reward * (unit if scaled else 1.0) + shift, rel=1e-4)


def test_equal_returns_give_no_scale():
    rows = walks_home()
    same = Dataset(
        observations=rows.observations, actions=rows.actions, rewards=torch.zeros(rows.steps),
        terminated=rows.terminated, lengths=rows.lengths, name="nothing earned",
    )  # fmt: skip
    config = IQLConfig(replay_capacity=1000, width=8)
    with pytest.raises(DataError, match="nothing earned: all its returns are the same"):
        IQL(make_policy(config, 2, 2, seeded()), config, same)


# Offline first


def test_pretraining_walks_nowhere_and_then_comes_the_world():
    algorithm, simulator = iql(pretraining_updates=25, updates_per_offline_iteration=10), PointMass()
    rows = [algorithm.iterate(simulator) for _ in range(4)]
    assert [row["count/gradient_steps"] for row in rows] == [10, 20, 25, 65]
    assert [row["count/env_steps"] for row in rows] == [0, 0, 0, 40]
    assert "rollout/return" in rows[-1]


@pytest.mark.parametrize("cut", [1, 3])
def test_a_run_cut_in_either_phase_goes_on_as_if_never_interrupted(cut):
    def make(seed):
        return iql(seed=seed, pretraining_updates=4, updates_per_offline_iteration=2, min_steps=1, dropout=0.2)

    one, other = make(0), make(5)
    for _ in range(cut):
        one.iterate(PointMass())
    other.load_state_dict(deepcopy(one.state_dict()))
    rows = [[algorithm.iterate(PointMass()) for _ in range(2)] for algorithm in (one, other)]
    assert rows[0] == rows[1]
    assert same_state(one.state_dict(), other.state_dict())


def test_broken_numbers_stop_the_run_with_the_networks_as_they_were():
    algorithm, batch = iql(), two_transitions()
    batch["rewards"][0] = math.nan
    before = parameters(algorithm.critic)
    with pytest.raises(NumericError, match="IQL's critic stopped being finite at update 0"):
        algorithm._update(batch)
    assert parameters(algorithm.critic).equal(before)


def test_the_published_settings_are_the_default():
    config = IQLConfig()
    assert (config.expectile, config.inverse_temperature, config.gamma, config.polyak) == (0.7, 3.0, 0.99, 0.005)
    assert (config.learning_rate, config.batch_size, config.width, config.reward_scaling) == (3e-4, 256, 256, "both")
    assert (config.updates_per_step, config.episodes_at_once, config.replay_capacity) == (1, 1, 2_000_000)
