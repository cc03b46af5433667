"""The batched engine: going back, leaving the batch, time, faults."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from dtune.envs.adroit import Door, Hammer, Pen
from dtune.envs.antmaze import AntMaze
from dtune.envs.locomotion import HOPPER, WALKER2D, Ant
from dtune.envs.mujoco import MujocoSimulator, _not_finite
from dtune.envs.simulator import Outcome, Restorable
from dtune.errors import ConfigError, SimulatorError

TASKS = [
    pytest.param(HOPPER, id="hopper"),
    pytest.param(WALKER2D, id="walker2d"),
    pytest.param(Ant(), id="ant"),
    pytest.param(AntMaze(), id="antmaze"),
]
HANDS = {Door: ("door_body_pos", 3), Hammer: ("board_pos", 3), Pen: ("desired_orien", 4)}
RECORDED = {AntMaze(): ("goal", 2)}  # the field of recorded states that memory begins with
if find_spec("gymnasium_robotics"):
    TASKS += [pytest.param(hand(), id=hand.__name__.lower()) for hand in HANDS]
    RECORDED |= {hand(): field for hand, field in HANDS.items()}
every_task = pytest.mark.parametrize("task", TASKS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw_actions(steps, rows, task, seed=1):
    """Over the whole range, and held for a while, so that bodies move far and hit the ground hard."""
    drawn = 2 * torch.rand(-(-steps // 5), rows, task.action_dim, generator=seeded(seed)) - 1
    return drawn.repeat_interleave(5, dim=0)[:steps]


def begin(task, rows, threads=1, warm_up=0):
    simulator = MujocoSimulator(task, threads)
    simulator.reset(rows, seeded())
    walk(simulator, draw_actions(warm_up, rows, task, seed=2))
    return simulator


def walk(simulator, actions):
    return [simulator.step(chosen) for chosen in actions]


def assert_equal(outcomes, others, rows=slice(None)):
    """Bit for bit, in every field, `others` in the order of `rows`."""
    for outcome, other in zip(outcomes, others, strict=True):
        for ours, theirs in zip(outcome, other, strict=True):
            assert torch.equal(ours, theirs[rows])


@every_task
def test_going_back_is_going_on(task):
    simulator = begin(task, 6, warm_up=37)
    snapshots, actions = simulator.snapshot(), draw_actions(400, 6, task)
    recorded = walk(simulator, actions)
    order = [5, 0, 3, 3, 1, 4, 2, 0, 5]  # other rows, some of them twice, of a batch of another size
    other = begin(task, 11, warm_up=3)
    observations = other.restore(snapshots[order])
    assert np.array_equal(other.snapshot(), snapshots[order])
    assert torch.equal(observations, begin(task, 6, warm_up=36).step(actions_at(task, 36)).observations[order])
    assert_equal(walk(other, actions[:, order]), recorded, order)
    assert np.array_equal(other.snapshot(), simulator.snapshot()[order])


def actions_at(task, step):
    return draw_actions(37, 6, task, seed=2)[step]


@pytest.mark.slow
@every_task
def test_a_hundred_random_states_go_on_to_the_last_bit(task):
    rows, steps, chance = 100, 400, seeded(3)
    at, order = torch.randint(1, 90, (rows,), generator=chance), torch.randperm(rows, generator=chance)
    actions, simulator = draw_actions(90 + steps, rows, task), begin(task, rows)
    outcomes, snapshots = [], []
    for chosen in actions:
        snapshots.append(simulator.snapshot() if len(snapshots) < 90 else None)
        outcomes.append(simulator.step(chosen))
    together = Outcome(*map(torch.stack, zip(*outcomes)))
    other = MujocoSimulator(task)
    other.restore(np.stack([snapshots[at[row]][row] for row in order]))
    for step in range(steps):
        ours = other.step(actions[at[order] + step, order])
        for field, theirs in zip(ours, together, strict=True):
            assert torch.equal(field, theirs[at[order] + step, order]), step


@every_task
def test_going_back_works_from_few_rows_to_many_and_back(task):
    simulator = begin(task, 1, warm_up=10)
    one, actions = simulator.snapshot(), draw_actions(20, 1, task)
    alone = walk(simulator, actions)
    simulator.restore(one.repeat(40, axis=0))
    assert_equal(walk(simulator, actions.expand(20, 40, -1)), alone, [0] * 40)
    simulator.restore(one)
    assert_equal(walk(simulator, actions), alone)


@every_task
def test_threads_change_nothing(task):
    actions = draw_actions(100, 16, task)
    assert_equal(walk(begin(task, 16, threads=2), actions), walk(begin(task, 16), actions))


@every_task
def test_rows_that_leave_do_not_touch_the_others(task):
    actions = draw_actions(60, 6, task)
    simulator, undisturbed = begin(task, 6), begin(task, 6)
    everybody = walk(undisturbed, actions)
    rows = torch.tensor([0, 1, 2, 3, 4, 5])
    for start, kept in ((0, [0, 1, 2, 3, 4, 5]), (20, [1, 2, 4, 5]), (40, [0, 3])):
        simulator.keep(torch.tensor(kept))
        rows = rows[kept]
        part = slice(start, start + 20)
        assert_equal(walk(simulator, actions[part, rows]), everybody[part], rows)
    assert np.array_equal(simulator.snapshot(), undisturbed.snapshot()[rows])


def test_rows_that_left_are_stepped_no_more():
    simulator = begin(HOPPER, 4)
    simulator.keep(torch.tensor([2]))
    batch = simulator._batch
    assert batch is not None
    gone = batch.state[1:].copy()
    walk(simulator, draw_actions(5, 1, HOPPER))
    assert np.array_equal(batch.state[1:], gone)
    simulator.keep(torch.tensor([], dtype=torch.int64))
    assert simulator.step(torch.zeros(0, 3)).rewards.shape == (0,)


def test_time_runs_out_at_the_horizon_also_after_going_back():
    simulator, still = MujocoSimulator(Ant()), torch.zeros(2, 8)
    rest = simulator.model.qpos0[None].repeat(2, axis=0)
    simulator.place(rest, np.zeros((2, simulator.model.nv)))
    outcomes = [simulator.step(still) for _ in range(600)]
    snapshots = simulator.snapshot()
    simulator.reset(3, seeded())
    simulator.restore(snapshots)
    outcomes += [simulator.step(still) for _ in range(400)]
    assert not torch.stack([outcome.terminated for outcome in outcomes]).any()
    truncated = torch.stack([outcome.truncated for outcome in outcomes])
    assert truncated[-1].all()
    assert not truncated[:-1].any()


def test_an_episode_that_has_ended_is_not_truncated():
    simulator, still = begin(HOPPER, 1), torch.zeros(1, 3)
    last = [simulator.step(still) for _ in range(1000)][-1]
    assert last.terminated.all()
    assert not last.truncated.any()


@pytest.mark.parametrize(
    ("values", "rows"),
    [
        ([[1.0, 2.0], [3.0, 4.0]], None),
        ([[1e308, 1e308], [1e308, 0.0]], None),  # only their sum is infinite
        ([[np.inf, -np.inf], [1.0, 1.0]], [True, False]),
        ([[0.0, 0.0], [np.nan, 1.0]], [False, True]),
        ([0.0, -np.inf, np.nan], [False, True, True]),
    ],
)
def test_rows_that_are_not_finite_are_found(values, rows):
    with np.errstate(all="ignore"):
        found = _not_finite(np.array(values))
    assert (found if found is None else found.tolist()) == rows


@every_task
@pytest.mark.parametrize("poison", [float("nan"), float("-inf")])
def test_a_poisoned_action_spoils_its_own_row_only(task, poison, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings to a file in the working directory
    actions = draw_actions(30, 4, task)
    clean = walk(begin(task, 4), actions)
    actions[10, 2, 1] = poison
    poisoned = walk(begin(task, 4), actions)
    others = [0, 1, 3]
    for step, (ours, theirs) in enumerate(zip(poisoned, clean, strict=True)):
        for field, other in zip(ours, theirs, strict=True):
            assert torch.equal(field[others], other[others])
        assert ours.faulty.tolist() == [False, False, step == 10, False]
    assert poisoned[10].terminated[2]
    assert not poisoned[10].truncated[2]
    assert poisoned[10].rewards[2] == 0
    assert not poisoned[10].observations[2].any()


@every_task
def test_a_simulation_that_mujoco_resets_silently_is_faulty(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    simulator = begin(task, 3, warm_up=5)
    good, actions = simulator.snapshot(), draw_actions(1, 3, task)[0]
    bad = good.copy()
    bad[1, 1 + simulator.model.nq] = np.nan  # the first velocity, after time and positions
    simulator.restore(bad)
    assert simulator.step(actions).faulty.tolist() == [False, True, False]
    assert np.isfinite(simulator.snapshot()).all()  # nothing but the counters has seen it
    simulator.restore(good)
    assert not simulator.step(actions).faulty.any()  # the fault is the step's, not the simulation's for ever
    for _ in range(2):  # the engine's silent reset sets its counters back as well
        simulator.restore(bad)
        assert simulator.step(actions).faulty.tolist() == [False, True, False]


@every_task
def test_the_same_generator_gives_the_same_episodes(task):
    simulator = MujocoSimulator(task)
    first = simulator.reset(5, seeded(3))
    walk(simulator, draw_actions(3, 5, task))
    assert torch.equal(simulator.reset(5, seeded(3)), first)
    fresh = begin(task, 5)
    fresh.reset(5, seeded(3))
    assert np.array_equal(simulator.snapshot(), fresh.snapshot())  # nothing is left of the former rows
    assert not torch.equal(simulator.reset(5, seeded(4)), first)
    assert len(torch.unique(first, dim=0)) == 5


@every_task
def test_placed_rows_are_where_they_were_put(task):
    simulator = begin(task, 3, warm_up=20)
    nq, nv = simulator.model.nq, simulator.model.nv
    recorded = simulator.snapshot()
    name, size = RECORDED.get(task, ("", 0))
    own = slice(-1 - task.memory_dim, -1 - task.memory_dim + size)
    fields = {name: recorded[:, own]} if name else {}
    observations = simulator.place(recorded[:, 1 : 1 + nq], recorded[:, 1 + nq : 1 + nq + nv], **fields)
    placed = simulator.snapshot()
    assert np.array_equal(placed[:, 1 : 1 + nq + nv], recorded[:, 1 : 1 + nq + nv])
    assert np.array_equal(placed[:, own], recorded[:, own])
    assert (placed[:, -1] == 0).all()  # the clock
    assert torch.equal(observations, simulator.restore(placed))


@every_task
def test_an_outcome_is_not_overwritten_by_the_next_step(task):
    simulator, actions = begin(task, 3), draw_actions(7, 3, task)
    before = simulator.snapshot()
    first = simulator.step(actions[0])
    copies = [field.clone() for field in first]
    walk(simulator, actions[1:])
    assert all(torch.equal(field, copy) for field, copy in zip(first, copies, strict=True))
    simulator.restore(before)
    walk(simulator, actions)
    assert np.array_equal(simulator.restore(before), simulator.restore(before.copy()))


def test_it_is_restorable():
    assert isinstance(MujocoSimulator(HOPPER), Restorable)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda s: s.step(torch.zeros(3, 3)), r"2 rows of 3 numbers"),
        (lambda s: s.step(torch.zeros(2, 4)), r"2 rows of 3 numbers"),
        (lambda s: s.keep(torch.tensor([0, 2])), r"\[0, 2\)"),
        (lambda s: s.keep(torch.tensor([-1])), r"\[0, 2\)"),
        (lambda s: s.restore(np.zeros((2, 7))), "same task"),
        (lambda s: s.place(np.zeros((2, 5)), np.zeros((2, 6))), "6 and 6 numbers"),
        (lambda s: s.place(np.full((2, 6), np.nan), np.zeros((2, 6))), "NaN"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(call, match):
    with pytest.raises(SimulatorError, match=match):
        call(begin(HOPPER, 2))


def test_nothing_goes_on_before_it_began():
    simulator = MujocoSimulator(HOPPER)
    for call in (lambda: simulator.step(torch.zeros(1, 3)), simulator.snapshot):
        with pytest.raises(SimulatorError, match="reset, restore or place"):
            call()
    with pytest.raises(SimulatorError, match="reset, restore or place"):
        simulator.keep(torch.tensor([0]))


def test_at_least_one_thread_is_needed():
    with pytest.raises(ConfigError, match="at least 1 thread"):
        MujocoSimulator(HOPPER, threads=0)
