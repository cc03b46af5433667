"""Gymnasium environments as simulators: the same rules for all, going back, workers that fail."""

import gc
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import gymnasium
import gymworlds as worlds
import numpy as np
import pytest
import torch
from draws import seeded
from gymnasium.spaces import Box

import dtune
from dtune.envs.simulator import Restorable
from dtune.envs.workers import LostError
from dtune.errors import ConfigError, SimulatorError

RESTORABLE = {
    "Pendulum-v1": "Pendulum-v1",
    "MountainCarContinuous-v0": "MountainCarContinuous-v0",
    "own": worlds.drift,
    "Hopper-v5": "Hopper-v5",
    "Ant-v5": partial(gymnasium.make, "Ant-v5", max_episode_steps=60),
    "Reacher-v5": "Reacher-v5",
    "moving model": worlds.shifty,
}


def here(environment, **options):
    return dtune.GymnasiumSimulator(environment, **{"workers": 0} | options)


def draw(steps, rows, simulator, seed=1):
    return 2 * torch.rand(steps, rows, simulator.action_dim, generator=seeded(seed)) - 1


def walk(simulator, actions):
    """Until the end of each, which is dropped; outcomes by step, and the rows they are of."""
    rows, outcomes = torch.arange(actions.shape[1]), []
    for chosen in actions:
        outcome = simulator.step(chosen[rows])
        outcomes.append((rows, outcome))
        stay = (~(outcome.terminated | outcome.truncated)).nonzero().squeeze(1)
        simulator.keep(stay)
        rows = rows[stay]
    return outcomes


def assert_same(walked, other):
    assert len(walked) == len(other)
    for (rows, outcome), (others, same) in zip(walked, other):
        assert torch.equal(rows, others)
        assert all(torch.equal(a, b) for a, b in zip(outcome, same))


# The rules


def test_it_does_what_the_environment_does():
    simulator = here("Pendulum-v1")
    assert (simulator.observation_dim, simulator.action_dim, simulator.horizon) == (3, 1, 200)
    assert isinstance(simulator, Restorable)
    observations, actions = simulator.reset(3, seeded()), draw(200, 3, simulator)
    seeds = torch.randint(2**31 - 1, (3,), generator=seeded()).tolist()
    walked = [simulator.step(chosen) for chosen in actions]
    for row, seed in enumerate(seeds):
        env = gymnasium.make("Pendulum-v1")
        assert torch.equal(torch.from_numpy(env.reset(seed=seed)[0]).double(), observations[row])
        for step, outcome in enumerate(walked):
            sight, reward, terminated, truncated, _ = env.step(2 * actions[step, row].numpy())
            assert torch.equal(torch.from_numpy(sight).double(), outcome.observations[row])
            assert float(reward) == outcome.rewards[row]
            assert (terminated, truncated) == (outcome.terminated[row], outcome.truncated[row])
    assert observations.dtype == torch.float64


def test_episodes_are_the_generators():
    simulator = here(worlds.drift)
    first = simulator.reset(5, seeded(3))
    walk(simulator, draw(5, 5, simulator))
    assert torch.equal(simulator.reset(5, seeded(3)), first)
    assert torch.equal(simulator.reset(2, seeded(3)), first[:2])
    assert not torch.equal(simulator.reset(5, seeded(4)), first)
    assert len(torch.unique(first, dim=0)) == 5


@pytest.mark.parametrize("environment", [worlds.drift, "Hopper-v5"])
def test_the_number_of_workers_changes_nothing(environment):
    alone = here(environment)
    actions = draw(40, 7, alone)
    start, walked = alone.reset(7, seeded()), walk(alone, actions)
    alone.reset(7, seeded())
    alone.step(actions[0])
    alone.keep(torch.tensor([4, 1, 6, 0]))
    saved = alone.snapshot()
    for workers in (1, 3):
        with dtune.GymnasiumSimulator(environment, workers=workers) as simulator:
            assert torch.equal(simulator.reset(7, seeded()), start)
            simulator.step(actions[0])
            simulator.keep(torch.tensor([4, 1, 6, 0]))
            assert np.array_equal(simulator.snapshot(), saved)
            simulator.reset(7, seeded())
            assert_same(walk(simulator, actions), walked)
            assert simulator.step(actions[0, :0]).rewards.shape == (0,)  # all have ended


@pytest.mark.parametrize(
    ("low", "high", "given", "felt"),
    [
        (-1, 1, [0.3, -0.7], [0.3, -0.7]),  # as it is, to the last bit
        (-2, 4, [-1.0, 0.5], [-2.0, 2.5]),
        ([0, -10], [1, 30], [0.0, 1.0], [0.5, 30.0]),
        (-2, 4, [3.0, -3.0], [4.0, -2.0]),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_actions_are_scaled_to_the_box(low, high, given, felt, dtype):
    box = Box(np.full(2, low, dtype), np.full(2, high, dtype), dtype=dtype)
    simulator = here(lambda: worlds.Shapely(Box(-50, 50, (2,)), box), horizon=5)
    simulator.reset(1, seeded())
    seen = simulator.step(torch.tensor([given])).observations[0]
    assert torch.equal(seen, torch.tensor(felt).double())


def test_the_clock_is_ours():
    assert here(worlds.drift).horizon == worlds.HORIZON
    for horizon in (5, 30):  # shorter and longer than the environment's own
        simulator = here(lambda: worlds.limited(worlds.Shapely(), 8), horizon=horizon)
        simulator.reset(2, seeded())
        truncated = [simulator.step(torch.zeros(2, 2)).truncated.tolist() for _ in range(horizon)]
        assert truncated == [[False, False]] * (horizon - 1) + [[True, True]]


def test_a_row_that_ended_is_not_truncated():
    simulator = here(worlds.drift)
    simulator.reset(8, seeded())
    for _ in range(worlds.HORIZON):
        outcome = simulator.step(torch.ones(8, 1))
    assert outcome.terminated.any()
    assert torch.equal(outcome.truncated, ~outcome.terminated)


@pytest.mark.parametrize("reward", [False, True])
def test_nan_from_the_environment_is_a_fault_of_its_row(reward):
    simulator = here(lambda: worlds.limited(worlds.Broken(reward)))
    right = simulator.reset(6, seeded())[:, 0] > 0
    outcomes = [simulator.step(torch.zeros(6, 1)) for _ in range(4)]
    assert 0 < right.sum() < 6
    assert [outcome.faulty.tolist() for outcome in outcomes] == [
        [False] * 6, [False] * 6, outcomes[2].faulty.tolist(), [False] * 6,
    ]  # fmt: skip
    third = outcomes[2]
    assert third.faulty.any()
    assert torch.equal(third.faulty, third.terminated)
    assert not third.observations[third.faulty].any()
    assert not third.rewards[third.faulty].any()


@pytest.mark.parametrize("environment", ["Pendulum-v1", "Hopper-v5"])
def test_a_poisoned_action_spoils_its_own_row_only(environment):
    simulator = here(environment)
    actions = draw(6, 4, simulator)
    simulator.reset(4, seeded())
    clean = [simulator.step(chosen) for chosen in actions]
    actions[3, 2, 0] = torch.nan
    simulator.reset(4, seeded())
    for step, (other, chosen) in enumerate(zip(clean, actions)):
        outcome = simulator.step(chosen)
        assert outcome.faulty.tolist() == [False, False, step == 3, False]
        assert all(torch.equal(a[[0, 1, 3]], b[[0, 1, 3]]) for a, b in zip(outcome, other))
        assert torch.isfinite(outcome.observations).all()


def test_mujocos_silent_resets_are_faults():
    def explosive():
        env = gymnasium.make("Hopper-v5").unwrapped
        env.model.actuator_gear[:] = 1e30
        return worlds.limited(env)

    simulator = here(explosive)
    simulator.reset(2, seeded())
    simulator.step(torch.zeros(2, 3))
    before = simulator.snapshot()  # of a walk: going back there is a step, not a reset, which would set counters to 0
    for _ in range(3):  # the counter, which a silent reset sets to 1, has to tell each of them
        outcome = simulator.step(torch.tensor([[1.0, 1, 1], [0, 0, 0]]))
        assert outcome.faulty.tolist() == [True, False]
        simulator.restore(before)
    assert not simulator.step(torch.zeros(2, 3)).faulty.any()  # what is past is forgotten


def test_an_outcome_is_not_overwritten_and_may_be():
    simulator = here("Pendulum-v1")
    simulator.reset(2, seeded())
    outcome = simulator.step(torch.ones(2, 1))
    saved, seen = simulator.snapshot(), outcome.observations.clone()
    simulator.step(torch.ones(2, 1))
    assert torch.equal(outcome.observations, seen)
    assert torch.equal(simulator.restore(saved), seen)
    outcome.observations[:] = 0
    assert torch.equal(simulator.restore(saved), seen)


# Refusals


@pytest.mark.parametrize(
    ("environment", "options", "kind", "match"),
    [
        ("Nothing-v0", {}, ConfigError, "no Gymnasium environment 'Nothing-v0'"),
        ("no_such_module:A-v0", {}, ConfigError, "no_such_module"),
        ("CartPole-v1", {}, SimulatorError, "actions of CartPole-v1 are a Discrete.*real numbers"),
        (lambda: worlds.Shapely(observations=worlds.NESTED), {}, SimulatorError, "a Dict.*FlattenObservation"),
        (lambda: worlds.Shapely(observations=worlds.DISCRETE), {}, SimulatorError, "observations .* a Discrete"),
        (lambda: worlds.Shapely(actions=Box(-np.inf, 1, (2,))), {}, SimulatorError, "no bounds.*finite"),
        (lambda: worlds.Shapely(actions=Box(-1, 1, (2,), np.int32)), {}, SimulatorError, "whole numbers"),
        (worlds.Shapely, {}, ConfigError, "no time limit.*horizon="),
        (lambda: 3, {}, ConfigError, "made a int instead"),
        ("Pendulum-v1", {"horizon": 0}, ConfigError, "horizon must be at least 1"),
        ("Pendulum-v1", {"workers": -1}, ConfigError, "workers .* negative"),
        ("Pendulum-v1", {"timeout": 0}, ConfigError, "timeout must be above 0"),
        ("Pendulum-v1", {"get_state": print}, ConfigError, "give both"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(environment, options, kind, match):
    with pytest.raises(kind, match=match):
        here(environment, **options)


def test_a_refusal_comes_through_a_worker_as_it_is():
    with pytest.raises(SimulatorError, match="CartPole-v1 are a Discrete"):
        dtune.GymnasiumSimulator("CartPole-v1")
    with pytest.raises(ConfigError, match="workers=0"):
        dtune.GymnasiumSimulator(partial(worlds.Shapely, iter([]).__next__, __import__("threading").Lock()))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda s: s.step(torch.zeros(3, 1)), "2 rows of 1 numbers"),
        (lambda s: s.keep(torch.tensor([0, 2])), r"\[0, 2\)"),
        (lambda s: s.keep(torch.tensor([-1])), r"\[0, 2\)"),
        (lambda s: s.keep(torch.tensor([1, 1])), "each once"),
        (lambda s: s.restore(np.zeros((2, 7))), "same environment"),
    ],
)
def test_what_does_not_fit_is_refused(call, match):
    simulator = here("Pendulum-v1")
    for early in (lambda: simulator.step(torch.zeros(1, 1)), simulator.snapshot):
        with pytest.raises(SimulatorError, match="call reset or restore"):
            early()
    simulator.reset(2, seeded())
    with pytest.raises(SimulatorError, match=match):
        call(simulator)


# Going back


@pytest.mark.parametrize("environment", RESTORABLE.values(), ids=RESTORABLE.keys())
def test_going_back_is_going_on(environment):
    simulator, other = here(environment), here(environment)
    simulator.reset(5, seeded())
    actions = draw(60, 5, simulator)
    saved, sights, before = [], [], []
    for chosen in actions[:7]:
        saved.append(simulator.snapshot())
        before.append(simulator.step(chosen))
        sights.append(before[-1].observations)
    recorded = walk(simulator, actions[7:])
    order = [4, 0, 3, 3, 1, 2, 0, 4]  # other rows, some of them twice, of another simulator
    other.reset(11, seeded(5))
    walk(other, draw(9, 11, other))
    for point in (0, 3, 6):
        restored = other.restore(saved[point][order])
        if point:
            assert torch.equal(restored, sights[point - 1][order])
        assert np.array_equal(other.snapshot(), saved[point][order])
        for step in range(point, 7):
            outcome = other.step(actions[step, order])
            assert all(torch.equal(a, b[order]) for a, b in zip(outcome, before[step]))
    for (rows, outcome), chosen in zip(recorded, actions[7:]):
        again = other.step(chosen[order])
        where = {int(row): index for index, row in enumerate(rows)}
        stay = [index for index, row in enumerate(order) if row in where]
        for a, b in zip(again, outcome):
            assert torch.equal(a[stay], b[[where[order[index]] for index in stay]])


def test_clocks_and_sights_stay_with_their_rows():
    simulator = here(partial(worlds.limited, worlds.Shapely()))
    simulator.reset(3, seeded())
    actions = draw(6, 3, simulator)
    saved = []
    for chosen in actions:
        simulator.step(chosen)
        saved.append(simulator.snapshot())
    mixed = np.stack((saved[0][0], saved[4][1], saved[2][2]))
    simulator.restore(mixed)
    simulator.keep(torch.tensor([1, 2]))
    assert np.array_equal(simulator.snapshot(), mixed[1:])
    truncated = [simulator.step(torch.zeros(2, 2)).truncated.tolist() for _ in range(worlds.HORIZON - 3)]
    assert [step.index(True) for step in zip(*truncated)] == [worlds.HORIZON - 6, worlds.HORIZON - 4]


def test_the_model_fields_of_a_reset_are_found():
    facts = here(worlds.shifty)._facts
    assert facts.fields == ("actuator_gear", "body_pos")


def test_get_state_and_set_state_do_it_too():
    simulator = here(worlds.mute, get_state=worlds.get_drift, set_state=worlds.set_drift)
    simulator.reset(3, seeded())
    actions = draw(8, 3, simulator)
    simulator.step(actions[0])
    saved = simulator.snapshot()
    recorded = [simulator.step(chosen) for chosen in actions[1:]]
    simulator.restore(saved)
    assert all(torch.equal(a, b) for o, c in zip(recorded, actions[1:]) for a, b in zip(o, simulator.step(c)))


@pytest.mark.parametrize(
    ("environment", "options", "match"),
    [
        (worlds.mute, {}, "cannot be deep-copied.*lock"),
        (worlds.closure, {}, "outside of its attributes"),
        (worlds.careless, {}, "np_random"),
        (worlds.hopper, {"get_state": worlds.get_half, "set_state": worlds.set_half}, "warm start"),
        (worlds.shifty, {"get_state": worlds.get_physics, "set_state": worlds.set_physics}, "model field body_pos"),
        *(
            (
                worlds.drift,
                {"get_state": partial(worlds.get_drift, without=(left_out,)), "set_state": worlds.set_drift},
                named,
            )
            for left_out, named in (("random", "random generator np_random"), ("pushes", "pushes"), ("notes", "notes"))
        ),
        (worlds.drift, {"get_state": lambda env: env, "set_state": worlds.set_drift}, "get_state gave a TimeLimit"),
    ],
)
def test_what_cannot_be_gone_back_in_says_why_and_what_does_not_need_it(environment, options, match):
    simulator = here(environment, **options)
    assert simulator.reset(2, seeded()).shape[0] == 2  # it is a simulator all the same
    simulator.step(torch.zeros(2, simulator.action_dim))
    for call in (simulator.snapshot, lambda: simulator.restore(np.zeros((1, 3)))):
        with pytest.raises(SimulatorError, match=match) as caught:
            call()
        assert "PPO-DT or Q-guided GRPO-DT" in str(caught.value)


# Workers that fail


@pytest.mark.parametrize(
    ("how", "environment"),
    [*((how, worlds.drift) for how in ("raise", "exit", "kill", "segv", "hang", "stop")), ("kill", worlds.hopper)],
)
def test_a_walk_in_a_worker_that_failed_is_as_if_it_had_not(how, environment, tmp_path):
    undisturbed = here(environment)
    actions, fuse, order = draw(worlds.HORIZON, 4, undisturbed), tmp_path / "fuse", [3, 1, 2]
    start = undisturbed.reset(4, seeded())
    expected = walk(undisturbed, actions)
    undisturbed.restore(saved_by(undisturbed, actions)[order])
    resumed = walk(undisturbed, actions[1:, order])
    timeout = 3.0 if how in ("hang", "stop") else 60.0
    with dtune.GymnasiumSimulator(partial(fused, environment, fuse, how), timeout=timeout) as simulator:
        assert torch.equal(simulator.reset(4, seeded()), start)
        fuse.write_bytes(b"x")
        assert_same(walk(simulator, actions), expected)
        assert fuse.read_bytes() == b""  # it did fail
        if how != "kill":
            return  # what follows takes a second, and is no other for those
        simulator.restore(saved_by(simulator, actions)[order])
        fuse.write_bytes(b"x")
        assert_same(walk(simulator, actions[1:, order]), resumed)
        assert fuse.read_bytes() == b""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["raise", "segv", "hang"])
def test_each_fault_at_twenty_random_steps_changes_nothing(how, tmp_path):
    undisturbed = here(worlds.drift)
    actions = draw(worlds.HORIZON, 4, undisturbed)
    undisturbed.reset(4, seeded())
    expected = walk(undisturbed, actions)
    lengths, chance = len(expected), seeded(7)
    for number in range(20):
        fuse = tmp_path / f"fuse{number}"
        at = int(torch.randint(1, lengths + 1, (1,), generator=chance))
        make = partial(fused, worlds.drift, fuse, how, at)
        with dtune.GymnasiumSimulator(make, workers=2, timeout=3.0 if how == "hang" else 60.0) as simulator:
            simulator.reset(4, seeded())
            fuse.write_bytes(b"x")
            assert_same(walk(simulator, actions), expected)
            assert fuse.read_bytes() == b"", at


def saved_by(simulator, actions):
    """Snapshots after one step."""
    simulator.reset(4, seeded())
    simulator.step(actions[0])
    return simulator.snapshot()


def fused(make, fuse, how, at=4):
    return worlds.Fuse(make(), fuse, how, at)


@pytest.mark.parametrize("workers", [0, 1])
def test_three_failures_in_a_row_are_the_end_in_the_environments_own_words(workers, tmp_path):
    (tmp_path / "fuse").write_bytes(b"")
    make = partial(fused, worlds.drift, tmp_path / "fuse", "raise")
    with dtune.GymnasiumSimulator(make, workers=workers) as simulator:
        simulator.reset(1, seeded())
        actions = torch.zeros(1, 1)
        for _ in range(3):
            simulator.step(actions)
        (tmp_path / "fuse").write_bytes(b"xxxx")
        with pytest.raises(SimulatorError, match=r"3 times in a row .* ValueError: the rope broke"):
            simulator.step(actions)
        assert (tmp_path / "fuse").read_bytes() == b"x"


def test_a_worker_killed_between_steps_is_replaced_and_none_is_left_behind():
    simulator, undisturbed = dtune.GymnasiumSimulator("Pendulum-v1", workers=2), here("Pendulum-v1")
    actions = draw(6, 4, simulator)
    first, second = (worker.hand.process for worker in simulator._workers)
    assert torch.equal(simulator.reset(4, seeded()), undisturbed.reset(4, seeded()))
    for step, chosen in enumerate(actions):
        if step == 3:
            os.kill(first.pid, signal.SIGKILL)
        assert all(torch.equal(a, b) for a, b in zip(simulator.step(chosen), undisturbed.step(chosen)))
    assert first.poll() == -signal.SIGKILL
    replaced = simulator._workers[0].hand.process
    del simulator
    gc.collect()
    assert [process.poll() for process in (second, replaced)] == [-signal.SIGKILL] * 2


def test_an_answer_that_nobody_waited_for_is_not_taken_for_another():
    undisturbed = here("Pendulum-v1")
    actions = draw(3, 2, undisturbed)
    undisturbed.reset(2, seeded())
    with dtune.GymnasiumSimulator("Pendulum-v1") as simulator:
        simulator.reset(2, seeded())
        for chosen in actions:
            simulator._workers[0].ask("step", np.arange(2), np.ones((2, 1), np.float32))  # then Ctrl-C, say
            assert all(torch.equal(a, b) for a, b in zip(simulator.step(chosen), undisturbed.step(chosen)))


@pytest.mark.parametrize("before", ["interrupt", "failure"])
def test_a_worker_that_is_late_while_it_is_brought_back_is_not_used_half_way(before, tmp_path):
    undisturbed = here(worlds.drift)
    actions, fuse = draw(8, 2, undisturbed), tmp_path / "fuse"
    undisturbed.reset(2, seeded())
    expected = [undisturbed.step(chosen) for chosen in actions]
    make = partial(fused, worlds.brittle, fuse, "late", 1)
    with dtune.GymnasiumSimulator(make, timeout=worlds.LATE * 2 / 3) as simulator:
        simulator.reset(2, seeded())
        walked = [simulator.step(chosen) for chosen in actions[:5]]
        if before == "interrupt":
            simulator._workers[0].ask("step", np.arange(2), np.zeros((2, 1), np.float32))
        else:
            with pytest.raises(SimulatorError, match=r"3 times in a row at the same step: ValueError: too hard a push"):
                simulator.step(torch.ones(2, 1))
        fuse.write_bytes(b"x")
        walked += [simulator.step(chosen) for chosen in actions[5:]]
    assert fuse.read_bytes() == b""
    assert all(torch.equal(a, b) for outcome, other in zip(walked, expected) for a, b in zip(outcome, other))


def test_a_step_that_fails_in_one_worker_moves_no_row_of_another():
    undisturbed = here(worlds.brittle)
    actions = draw(4, 4, undisturbed)
    undisturbed.reset(4, seeded())
    with dtune.GymnasiumSimulator(worlds.brittle, workers=2) as simulator:
        simulator.reset(4, seeded())
        for step, chosen in enumerate(actions):
            if step == 2:
                with pytest.raises(SimulatorError, match="too hard a push"):
                    simulator.step(torch.tensor([[0.0], [0.0], [0.0], [1.0]]))
            assert all(torch.equal(a, b) for a, b in zip(simulator.step(chosen), undisturbed.step(chosen)))


def test_a_reset_that_fails_in_one_worker_leaves_all_rows_where_they_were():
    undisturbed = here(worlds.drift)
    actions = draw(2, 4, undisturbed)
    undisturbed.reset(4, seeded())
    with dtune.GymnasiumSimulator(worlds.drift, workers=2) as simulator:
        simulator.reset(4, seeded())
        assert all(torch.equal(a, b) for a, b in zip(simulator.step(actions[0]), undisturbed.step(actions[0])))
        last = simulator._workers[1]
        start, last._start = last._start, lost
        last.close()
        with pytest.raises(SimulatorError, match="3 times in a row at the same reset: no memory left"):
            simulator.reset(7, seeded(1))
        last._start = start
        assert all(torch.equal(a, b) for a, b in zip(simulator.step(actions[1]), undisturbed.step(actions[1])))


def lost():
    raise LostError("no memory left")


def test_a_worker_is_brought_back_from_the_snapshots_that_were_given():
    undisturbed = here(worlds.drift)
    actions = draw(4, 4, undisturbed)
    saved = saved_by(undisturbed, actions)
    undisturbed.restore(saved)
    with dtune.GymnasiumSimulator(worlds.drift) as simulator:
        given = saved.copy()
        simulator.restore(given)
        for step, chosen in enumerate(actions):
            given[:] = saved[::-1]  # the caller's array, used for something else
            if step == 2:
                simulator._workers[0].hand.process.kill()
            assert all(torch.equal(a, b) for a, b in zip(simulator.step(chosen), undisturbed.step(chosen)))


def test_workers_end_with_a_parent_that_was_killed_even_in_a_step_that_hangs(tmp_path):
    script = (
        "import sys, torch, dtune, gymworlds as w\nfuse = sys.argv[1]\n"
        "s = dtune.GymnasiumSimulator(lambda: w.Fuse(w.drift(), fuse, 'hang', 1), workers=1)\n"
        "s.reset(1, torch.Generator())\n"
        "open(fuse, 'w').write('x')\n"
        "print(s._workers[0].hand.process.pid, flush=True)\n"
        "s.step(torch.zeros(1, 1))\n"
    )
    path = os.pathsep.join(filter(None, sys.path))
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "fuse")],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    worker = int(parent.stdout.readline())
    while not (tmp_path / "fuse").exists() or (tmp_path / "fuse").read_text():
        time.sleep(0.01)  # until it hangs
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and alive(worker):
        time.sleep(0.01)
    assert not alive(worker)


def alive(process):
    status = Path(f"/proc/{process}/status")
    return status.exists() and "zombie" not in status.read_text()


def test_a_closed_simulator_says_so():
    with here("Pendulum-v1") as simulator:
        simulator.reset(1, seeded())
    with pytest.raises(SimulatorError, match="closed"):
        simulator.step(torch.zeros(1, 1))
