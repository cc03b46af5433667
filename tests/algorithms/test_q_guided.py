from copy import deepcopy

import pytest
import torch
from learners import Witness, q_guided, standardised
from pointmass import PointMass

from dtune.algorithms import q_guided as q_guided_module
from dtune.data.steps import Steps
from dtune.data.transitions import asked_returns_to_go
from dtune.envs.simulator import Restorable, Simulator


class OneWay:
    """A point mass one cannot go back in."""

    def __init__(self):
        self.world = PointMass()
        self.observation_dim, self.action_dim, self.horizon = 2, 2, self.world.horizon

    def reset(self, count, generator):
        return self.world.reset(count, generator)

    def step(self, actions):
        return self.world.step(actions)

    def keep(self, rows):
        self.world.keep(rows)


def test_needs_no_going_back():
    simulator = OneWay()
    assert isinstance(simulator, Simulator)
    assert not isinstance(simulator, Restorable)
    algorithm = q_guided()
    for _ in range(2):
        row = algorithm.iterate(simulator)
    assert row["count/env_steps"] == 2 * 4 * 20


def test_never_asks_for_a_snapshot_where_there_are_some():
    class Guarded(Witness):
        def snapshot(self):
            assert not self.walks or not self.walks[-1].taken, "a walk was looked at while it went on"
            return super().snapshot()

    simulator = Guarded()
    algorithm = q_guided()
    algorithm.iterate(simulator)
    assert not simulator.grown
    assert algorithm.replay.rows["snapshots"].numel() == 0


@pytest.mark.parametrize("context_length", [1, 5])
def test_a_group_is_several_actions_at_one_visited_state(context_length):
    algorithm = q_guided(context_length)
    row = algorithm.iterate(PointMass())
    rows = {name: value.unflatten(0, (-1, 8)) for name, value in algorithm.buffer.rows.items()}
    assert rows["mask"].shape == (64, 8, context_length)
    for name in ("observations", "returns_to_go", "timesteps", "mask"):
        assert rows[name].eq(rows[name][:, :1]).all(), name
    assert rows["actions"][:, :, :-1].eq(rows["actions"][:, :1, :-1]).all()
    assert (rows["actions"][:, 1:, -1] != rows["actions"][:, :1, -1]).all()
    assert rows["raw_actions"][:, :, -1].tanh().equal(rows["actions"][:, :, -1])
    visited = algorithm.replay.rows
    states = torch.cat([visited["observations"], visited["returns_to_go"][..., None]], 2)[visited["mask"]]
    tried = torch.cat([rows["observations"], rows["returns_to_go"][..., None]], 3)[:, 0, -1]
    assert (tried[:, None] == states).all(2).any(1).all()  # with what was asked for there, not what was earned
    assert row["train/fresh_ratio_error"] < 1e-5


@pytest.mark.parametrize("value", ["first", "min"])
def test_what_an_action_is_worth_is_what_the_critics_say(value):
    algorithm = q_guided(value=value)
    row = algorithm.iterate(PointMass())
    held = algorithm.buffer.rows
    with torch.no_grad():
        both = algorithm.critic.network(held["observations"][:, -1], held["actions"][:, -1])
    worth = (both[0] if value == "first" else both.amin(0)).double().view(-1, 8)
    assert held["advantages"].view(-1, 8).allclose(standardised(worth).float(), atol=1e-4)
    assert row["rollout/value"] == pytest.approx(worth.mean().item(), abs=1e-5)
    assert row["rollout/value_spread"] == pytest.approx(worth.std(1).mean().item(), abs=1e-5)
    assert not both[0].equal(both.amin(0))


def test_all_ranks_go_by_the_values_of_the_first(monkeypatch):
    """So that they agree on who is within the margin, however their processors round."""
    algorithm = q_guided()
    members = algorithm.dataset.sample_windows(3, 1, algorithm.generator)
    monkeypatch.setattr(q_guided_module.parallel, "from_first", lambda values: torch.full_like(values, 7.0))
    assert algorithm._try_actions(members)[1].eq(7).all()


def test_the_margin_drops_what_is_near_the_mean():
    assert len(q_guided_after(return_margin=None).buffer) == 512
    near = q_guided_after(return_margin=0.02)
    assert 0 < len(near.buffer) < 512
    assert near.metrics.values["rollout/dropped"] == pytest.approx(1 - len(near.buffer) / 512)


def q_guided_after(**changes):
    algorithm = q_guided(action_capacity=2048, **changes)
    algorithm.iterate(PointMass())
    return algorithm


def test_mirrored_actions_come_in_pairs():
    algorithm = q_guided(mirrored=True)
    policy = deepcopy(algorithm.policy)  # before it moves
    algorithm.iterate(PointMass())
    tried = {name: value for name, value in algorithm.buffer.rows.items() if name in Steps.__dataclass_fields__}
    with torch.no_grad():
        mean = policy(Steps(**tried))[:, -1].mean
    offsets = (tried["raw_actions"][:, -1] - mean).unflatten(0, (-1, 8))
    assert offsets[:, 0::2].allclose(-offsets[:, 1::2], atol=1e-5)


def test_the_critics_follow_the_policy_as_it_is_asked():
    algorithm = q_guided(critic_replay_capacity=4)
    algorithm.iterate(PointMass())
    dataset, walked = algorithm.transitions.dataset, algorithm.replay.rows  # only the four new ones are left
    assert asked_returns_to_go(dataset, -3.0).allclose(walked["returns_to_go"][walked["mask"]], atol=1e-4)
    assert algorithm._conditions(dataset).equal(asked_returns_to_go(dataset, -3.0))
    relabelled = q_guided(critic_returns_to_go="hindsight")
    assert relabelled._conditions(dataset).equal(dataset.returns_to_go())
    assert not dataset.returns_to_go().allclose(asked_returns_to_go(dataset, -3.0), atol=0.1)


def test_the_critics_learn_offline_first_and_once():
    algorithm = q_guided()
    assert algorithm.iterate(PointMass())["count/critic_steps"] == 200 + 20
    assert algorithm.iterate(PointMass())["count/critic_steps"] == 200 + 40
    assert len(algorithm.transitions) == 15 + 8  # all but the lowest of the 16 recorded ones, and those walked


def test_old_actions_stay_until_there_are_too_many():
    algorithm = q_guided(action_capacity=1024)
    sizes = []
    for _ in range(3):
        algorithm.iterate(PointMass())
        sizes.append(len(algorithm.buffer))
    assert sizes == [512, 1024, 1024]
    assert algorithm.buffer.rows["iteration"].unique().tolist() == [1, 2]
