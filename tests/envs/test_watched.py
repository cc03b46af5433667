"""What is remembered of walks, and that nothing else changes."""

import numpy as np
import pytest
import torch
from draws import seeded
from pointmass import PointMass

from dtune.envs.check import check_simulator
from dtune.envs.collect import collect_episodes
from dtune.envs.simulator import Divisible, Restorable
from dtune.envs.tasks import make_simulator
from dtune.envs.watched import KEPT, Watched
from dtune.errors import SimulatorError


def step_all(simulator, actions):
    """Steps along `actions [time, rows, 2]`; rows that end leave."""
    rows = torch.arange(actions.shape[1])
    for chosen in actions:
        outcome = simulator.step(chosen[rows])
        stay = (~(outcome.terminated | outcome.truncated)).nonzero().squeeze(1)
        simulator.keep(stay)
        rows = rows[stay]


def draw(time: int, rows: int) -> torch.Tensor:
    return 2 * torch.rand(time, rows, 2, generator=seeded(1)) - 1


def test_nothing_changes():
    simulator = Watched(make_simulator("hopper"))
    assert isinstance(simulator, Restorable)
    assert all(finding.passed for finding in check_simulator(simulator, steps=10))


def test_a_walk_that_broke_is_kept_from_its_fresh_start_to_its_last_action():
    simulator = Watched(PointMass(faults={1: 3, 4: 6}))
    simulator.reset(6, generator := seeded())
    actions = draw(10, 6)
    step_all(simulator, actions)
    simulator.reset(3, generator)  # walks go on elsewhere
    assert simulator.broken == 2
    first, second = simulator.walks()
    alone = PointMass()
    alone.reset(6, seeded())
    np.testing.assert_array_equal(first.snapshot, alone.snapshot()[1])
    np.testing.assert_array_equal(second.snapshot, alone.snapshot()[4])
    np.testing.assert_array_equal(first.actions, actions[:4, 1])
    np.testing.assert_array_equal(second.actions, actions[:7, 4])


def test_a_walk_that_broke_is_kept_from_where_it_was_restored():
    simulator = Watched(PointMass(faults={2: 5}))
    simulator.reset(4, seeded())
    step_all(simulator, draw(5, 4))
    simulator.forget()
    snapshots = simulator.snapshot()[[3, 0, 1]]
    simulator.restore(snapshots)
    expected = snapshots[2].copy()
    snapshots[:] = 0  # the caller's own
    step_all(simulator, draw(5, 3))
    (walk,) = simulator.walks()
    np.testing.assert_array_equal(walk.snapshot, expected)
    assert len(walk.actions) == 1


def test_where_none_broke_the_present_walks_are_told():
    simulator = Watched(PointMass())
    simulator.reset(40, seeded())
    actions = draw(5, 40)
    step_all(simulator, actions)
    walks = simulator.walks()
    assert len(walks) == KEPT
    np.testing.assert_array_equal(walks[7].actions, actions[:, 7])
    assert Watched(PointMass()).walks() == []  # before anything was begun


def test_walks_that_another_process_walks_are_not_told():
    simulator = Watched(PointMass())
    simulator.reset(4, seeded())
    simulator.keep(torch.tensor([2, 3]))
    simulator.step(draw(1, 2)[0])
    walks = simulator.walks()
    alone = PointMass()
    alone.reset(4, seeded())
    np.testing.assert_array_equal([walk.snapshot for walk in walks], alone.snapshot()[2:])
    assert [walk.actions.shape for walk in walks] == [(1, 2)] * 2


def test_only_some_of_many_are_kept_until_they_are_forgotten():
    simulator = Watched(PointMass(faults=dict.fromkeys(range(50), 2)))
    simulator.reset(60, seeded())
    step_all(simulator, draw(5, 60))
    assert simulator.broken == len(simulator.walks()) == KEPT
    simulator.forget()
    assert simulator.broken == 0


class OneWay:
    """A simulator without a way back."""

    observation_dim, action_dim, horizon = 2, 2, 20

    def __init__(self):
        self.inner = PointMass(faults={0: 1})
        self.reset, self.step, self.keep = self.inner.reset, self.inner.step, self.inner.keep


def test_where_one_cannot_go_back_no_walk_can_be_told_but_all_else_works():
    from pointmass import TinyPolicy

    simulator = Watched(OneWay())
    sound, faulty = collect_episodes(TinyPolicy(), simulator, 3, -3.0, seeded())
    assert (len(sound), len(faulty)) == (2, 1)
    for call in (simulator.walks, simulator.snapshot):
        with pytest.raises(SimulatorError, match=r"OneWay has no snapshot and restore.*PPO-DT"):
            call()


class Pair(PointMass):
    """Two point masses side by side; one row of a part breaks."""

    threads = 2

    def twins(self, count, threads):
        self.made = getattr(self, "made", [PointMass(faults={1: 3}), PointMass(faults={0: 2})])
        return self.made[:count]


def test_twins_are_watched_with_their_simulator():
    whole = Watched(Pair())
    assert isinstance(whole, Divisible)
    assert whole.threads == 2
    whole.reset(4, seeded())
    snapshots, actions = whole.snapshot(), draw(5, 4)
    twins = whole.twins(2, 1)
    assert twins == whole.twins(2, 1)
    for part, twin in enumerate(twins):
        twin.restore(snapshots[part::2])
        step_all(twin, actions[:, part::2])
    assert whole.broken == 2
    first, second = whole.walks()
    np.testing.assert_array_equal(first.snapshot, snapshots[2])
    np.testing.assert_array_equal(first.actions, actions[:4, 2])
    np.testing.assert_array_equal(second.snapshot, snapshots[1])
    np.testing.assert_array_equal(second.actions, actions[:3, 1])
    whole.restore(snapshots)
    whole.forget()
    assert whole.broken == 0
    present = whole.walks()  # none broke: those that were walked in parts
    assert [len(walk.actions) for walk in present] == [5, 4, 3, 5]
    np.testing.assert_array_equal(present[0].snapshot, snapshots[0])


def test_what_cannot_be_divided_has_no_twins():
    assert Watched(PointMass()).twins(2, 1) == []
    assert Watched(PointMass()).threads == 1
