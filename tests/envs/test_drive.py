"""Walks that go in parts, in turns with the network or each in a thread, come out the same to the last bit."""

import threading
from functools import partial

import pytest
import torch
from pointmass import PointMass, TinyPolicy

from dtune import finetune
from dtune.algorithms.grpo import GRPO, GRPOConfig
from dtune.data.steps import empty_steps
from dtune.envs import drive as drive_module
from dtune.envs import rollout as rollouts
from dtune.envs.collect import collect_episodes
from dtune.envs.drive import alone, alternate, side_by_side
from dtune.envs.rollout import MIN_ROWS, ResetPoints, Rollout
from dtune.envs.simulator import Divisible
from dtune.envs.tasks import make_simulator
from dtune.functional.sampling import independent_noise
from dtune.models.decision_transformer import DecisionTransformer, DecisionTransformerConfig
from dtune.models.reinformer import Reinformer, ReinformerConfig


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def transformer(context):
    shape = DecisionTransformerConfig(
        observation_dim=11, action_dim=3, context_length=context, layers=2, heads=2, width=16
    )
    policy = DecisionTransformer(shape, seeded(1))
    with torch.no_grad():
        policy.head_mean.weight.mul_(0.3)
    return policy


def reinformer(context):
    shape = ReinformerConfig(
        observation_dim=11, action_dim=3, context_length=context, layers=2, heads=2, width=16, timesteps=64
    )
    return Reinformer(shape, seeded(1))


POLICIES = {
    "context 1": partial(transformer, 1),
    "context 3": partial(transformer, 3),
    "predicts its return": partial(reinformer, 3),
}


WAYS = {"whole": (False, False, 1), "in turns": (True, False, 2), "side by side": (False, True, 3)}
"""Whether the network is said to be elsewhere, and to be large; threads of the simulator."""


def go(way, monkeypatch):
    """Lets walks go that way; their simulator."""
    elsewhere, large, threads = WAYS[way]
    monkeypatch.setattr(rollouts, "lives_elsewhere", lambda policy: elsewhere)
    monkeypatch.setattr(rollouts, "is_large", lambda policy: large)
    return make_simulator("hopper", threads)


def walked(make, simulator):
    """Episodes, then a resumed group: sampled steps, steps by the mean, and all that the rollout knows at its end."""
    policy = make()
    episodes, _ = collect_episodes(policy, simulator, 50, 900.0, seeded(2), snapshots=True)
    rows = torch.arange(50)
    steps = (episodes.lengths - 3 - rows % 9).clamp(min=0)
    points = ResetPoints.choose(episodes, rows, steps, policy.context_length - 1)
    rollout = Rollout.resume(policy, simulator, points)
    first = rollout.advance(6, generator=seeded(3), draw=independent_noise)
    left, between = len(rollout.alive), [rollout.alive, rollout.observations, simulator.snapshot()]
    second = rollout.advance(60, log_probs=False)
    known = [rollout.alive, rollout.terminated, rollout.faulty, rollout.observations, rollout.final_observations]
    found = [*vars(episodes.steps).values(), episodes.snapshots, episodes.final_observations, episodes.terminated]
    return left, [*found, *vars(first).values(), *vars(second).values(), *known, *map(torch.as_tensor, between)]


@pytest.mark.parametrize("way", ["in turns", "side by side"])
@pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES)
def test_parts_walk_as_the_whole(make, way, monkeypatch):
    threads = torch.get_num_threads()
    (left, whole), (_, parts) = (walked(make, go(one, monkeypatch)) for one in ("whole", way))
    assert MIN_ROWS < left < 50  # some had ended when the last steps began
    assert len(whole) == len(parts)
    for one, other in zip(whole, parts):
        assert torch.equal(one, other)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("way", ["in turns", "side by side"])
def test_an_iteration_in_parts_is_the_same_iteration(way, monkeypatch):
    states = []
    for one in ("whole", way):
        simulator = go(one, monkeypatch)
        config = GRPOConfig(
            return_to_go=900.0, episodes_per_iteration=40, reset_trajectories=6, group_size=4, subtrajectory_length=5,
            lookahead_length=20, return_margin=0.0, batch_size=32,
        )  # fmt: skip
        learner = GRPO(transformer(1), config, seeded(4))
        rows = [learner.iterate(simulator) for _ in range(2)]
        states.append((rows, torch.cat([x.flatten() for x in learner.policy.state_dict().values()])))
    (one, before), (other, after) = states
    assert one == other
    assert torch.equal(before, after)


class Waiting(PointMass):
    """A step takes until all others have been asked for one more: whoever waits for their answers waits forever."""

    def __init__(self, index, asked):
        super().__init__()
        self.index, self.asked, self.threads = index, asked, set()
        self.reset(1, seeded())

    def step(self, actions):
        self.threads.add(threading.current_thread())
        others = [one for index, one in enumerate(self.asked) if index != self.index]
        assert all(one.acquire(timeout=20) for one in others)
        return super().step(actions)


def waiting_walk(index, asked):
    for _ in range(5):
        asked[index].release()
        yield torch.zeros(1, 2)
    asked[index].release()
    return empty_steps(1, 1, 1, 1).map(lambda x: torch.full_like(x, index))


@pytest.mark.parametrize(("drive", "many"), [(alternate, 1), (side_by_side, 2)])
def test_one_walks_while_another_is_thought_about(drive, many):
    asked = [threading.Semaphore(0), threading.Semaphore(0)]
    simulators = [Waiting(index, asked) for index in range(2)]
    taken = drive([waiting_walk(index, asked) for index in range(2)], simulators)
    assert [steps.mask.item() for steps in taken] == [0, 1]
    used = simulators[0].threads | simulators[1].threads
    assert len(used) == many
    assert threading.current_thread() not in used


def test_threads_that_walk_side_by_side_have_one_of_pytorch_each_and_no_gradients():
    seen = []

    def walk():
        seen.append((torch.get_num_threads(), torch.is_grad_enabled()))
        return empty_steps(1, 1, 1, 1)
        yield

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        side_by_side([walk(), walk()], [PointMass()] * 2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [(1, False)] * 2
    assert torch.is_grad_enabled()


class Failing(PointMass):
    def step(self, actions):
        raise RuntimeError("physics")


def first_alone(walks, simulators):
    return alone(walks[0], simulators[0].step)


@pytest.mark.parametrize("drive", [first_alone, alternate, side_by_side])
def test_a_step_that_fails_is_told_as_ever(drive):
    def walk():
        yield torch.zeros(1, 2)

    with pytest.raises(RuntimeError, match="physics"):
        drive([walk() for _ in range(2)], [Failing()] * 2)


@pytest.mark.parametrize("drive", [first_alone, alternate, side_by_side])
def test_the_end_of_something_else_is_not_the_end_of_a_walk(drive):
    class Ending(PointMass):
        def step(self, actions):
            raise StopIteration

    def walk():
        yield torch.zeros(1, 2)
        return empty_steps(1, 1, 1, 1)

    with pytest.raises((StopIteration, RuntimeError)):
        drive([walk(), walk()], [Ending()] * 2)


def test_walks_side_by_side_are_in_the_mode_of_their_caller(monkeypatch):
    with torch.inference_mode():
        walked(POLICIES["context 1"], go("side by side", monkeypatch))


def noted(drives, name, drive, walks, simulators):
    drives.append(name)
    return drive(walks, simulators)


@pytest.mark.parametrize("way", ["in turns", "side by side"])
def test_a_run_walks_in_parts_and_its_numbers_are_the_same(way, monkeypatch):
    """Through the loop, which watches its simulators."""
    rows, drives = [], []
    for one in ("whole", way):
        simulator = go(one, monkeypatch)
        for name in ("alternate", "side_by_side"):
            monkeypatch.setattr(rollouts, name, partial(noted, drives, name, getattr(drive_module, name)))
        config = GRPOConfig(
            return_to_go=900.0, reset_trajectories=4, group_size=4, subtrajectory_length=5, lookahead_length=20,
            return_margin=0.0, batch_size=32,
        )  # fmt: skip
        learner = GRPO(transformer(1), config, seeded(4))
        rows.append(finetune(learner, simulator, iterations=1, evaluation_episodes=40, quiet=True))
        assert bool(drives) == (one == way)
    timeless = [[{k: v for k, v in row.items() if "time" not in k} for row in one] for one in rows]
    assert timeless[0] == timeless[1]
    assert set(drives) == {{"in turns": "alternate", "side by side": "side_by_side"}[way]}


@pytest.mark.parametrize("first", [True, False])
def test_where_one_walk_fails_the_others_end(first):
    def walk():
        while True:
            yield torch.zeros(1, 2)

    endless = PointMass()
    endless.reset(1, seeded())
    simulators = [Failing(), endless] if first else [endless, Failing()]
    with pytest.raises(RuntimeError, match="physics"):
        side_by_side([walk(), walk()], simulators)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("walks")]


@pytest.mark.parametrize(
    ("elsewhere", "large", "threads", "walks", "parts"),
    [
        (True, False, 1, 2 * MIN_ROWS, 2),
        (True, True, 3, 3 * MIN_ROWS, 2),
        (True, True, 1, 2 * MIN_ROWS - 1, 0),
        (False, True, 3, 3 * MIN_ROWS, 3),
        (False, True, 3, 3 * MIN_ROWS - 1, 2),
        (False, True, 1, 3 * MIN_ROWS, 0),
        (False, False, 3, 3 * MIN_ROWS, 0),
    ],
)
def test_how_many_parts_there_are(elsewhere, large, threads, walks, parts, monkeypatch):
    monkeypatch.setattr(rollouts, "lives_elsewhere", lambda policy: elsewhere)
    monkeypatch.setattr(rollouts, "is_large", lambda policy: large)
    simulator = make_simulator("hopper", threads)
    assert isinstance(simulator, Divisible)
    found = Rollout.begin(transformer(1), simulator, walks, 1.0, seeded())._parts()
    assert len(found) == parts
    assert [part.simulator.threads for _, part in found] == [threads if elsewhere else 1] * parts
    assert len({id(part.simulator) for _, part in found} | {id(simulator)}) == parts + 1


def test_what_cannot_be_divided_or_asked_at_once_is_not(monkeypatch):
    for elsewhere, large in ((True, False), (False, True)):
        monkeypatch.setattr(rollouts, "lives_elsewhere", lambda policy, answer=elsewhere: answer)
        monkeypatch.setattr(rollouts, "is_large", lambda policy, answer=large: answer)
        assert not Rollout.begin(TinyPolicy(1), PointMass(), 64, 1.0, seeded())._parts()
        hoppers = make_simulator("hopper", 2)
        found = Rollout.begin(reinformer(3), hoppers, 64, 1.0, seeded())._parts()
        assert len(found) == (2 if elsewhere else 0)  # nobody promised that it may be asked by two threads at once


def test_which_networks_are_large_and_which_elsewhere():
    paper = DecisionTransformer(DecisionTransformerConfig(observation_dim=11, action_dim=3), seeded())
    assert rollouts.is_large(paper)
    assert not rollouts.is_large(transformer(1))
    assert not rollouts.lives_elsewhere(paper)
    assert rollouts.lives_elsewhere(transformer(1).to("meta"))


def test_twins_are_made_once():
    hopper = make_simulator("hopper", 2)
    two, three = hopper.twins(2, 1), hopper.twins(3, 1)
    assert two == three[:2]
    assert len(set(map(id, [hopper, *three, *hopper.twins(2, 2)]))) == 6
    assert [twin.threads for twin in (*three, *hopper.twins(2, 2))] == [1, 1, 1, 2, 2]
