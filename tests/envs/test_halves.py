"""Where network and physics can work at the same time, walks go in two halves, and come out the same bit for bit."""

import threading
from functools import partial

import pytest
import torch
from pointmass import PointMass, TinyPolicy

from dtune.algorithms.grpo import GRPO, GRPOConfig
from dtune.data.steps import empty_steps
from dtune.envs import rollout as rollouts
from dtune.envs.collect import collect_episodes
from dtune.envs.drive import drive
from dtune.envs.rollout import MIN_ROWS, ResetPoints, Rollout
from dtune.envs.simulator import Twinned
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


def walked(make, monkeypatch, halves):
    """Episodes, then a resumed group: sampled steps, steps by the mean, and all that the rollout knows at its end."""
    monkeypatch.setattr(rollouts, "lives_elsewhere", lambda policy: halves)
    policy, simulator = make(), make_simulator("hopper")
    episodes, _ = collect_episodes(policy, simulator, 40, 900.0, seeded(2), snapshots=True)
    rows = torch.arange(40)
    points = ResetPoints.choose(
        episodes, rows, (episodes.lengths - 3 - rows % 9).clamp(min=0), policy.context_length - 1
    )
    rollout = Rollout.resume(policy, simulator, points)
    first = rollout.advance(6, generator=seeded(3), draw=independent_noise)
    left, between = len(rollout.alive), [rollout.alive, rollout.final_observations.clone(), simulator.snapshot()]
    second = rollout.advance(60, log_probs=False)
    known = [rollout.alive, rollout.terminated, rollout.faulty, rollout.observations, rollout.final_observations]
    found = [*vars(episodes.steps).values(), episodes.snapshots, episodes.final_observations, episodes.terminated]
    return left, [*found, *vars(first).values(), *vars(second).values(), *known, *map(torch.as_tensor, between)]


@pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES)
def test_two_halves_walk_as_one(make, monkeypatch):
    (left, whole), (_, halves) = (walked(make, monkeypatch, halves) for halves in (False, True))
    assert MIN_ROWS < left < 40  # some had ended when the last steps began
    assert len(whole) == len(halves)
    for one, other in zip(whole, halves):
        assert torch.equal(one, other)


def test_an_iteration_in_halves_is_the_same_iteration(monkeypatch):
    states = []
    for halves in (False, True):
        monkeypatch.setattr(rollouts, "lives_elsewhere", lambda policy, halves=halves: halves)
        config = GRPOConfig(
            return_to_go=900.0, episodes_per_iteration=40, reset_trajectories=6, group_size=4, subtrajectory_length=5,
            lookahead_length=20, return_margin=0.0, batch_size=32,
        )  # fmt: skip
        learner = GRPO(transformer(1), config, seeded(4))
        rows = [learner.iterate(make_simulator("hopper")) for _ in range(2)]
        states.append((rows, torch.cat([x.flatten() for x in learner.policy.state_dict().values()])))
    (one, before), (other, after) = states
    assert one == other
    assert torch.equal(before, after)


def test_a_half_walks_while_the_other_is_thought_about():
    """Each step waits until the other half's actions were asked for after its own: in turns they would wait forever."""
    asked = [threading.Semaphore(0), threading.Semaphore(0)]

    class Waiting(PointMass):
        def __init__(self, index):
            super().__init__()
            self.index, self.threads = index, set()

        def step(self, actions):
            self.threads.add(threading.current_thread())
            assert asked[1 - self.index].acquire(timeout=20)
            return super().step(actions)

    def walk(index):
        for _ in range(5):
            asked[index].release()
            yield torch.zeros(1, 2)
        asked[index].release()
        return empty_steps(1, 1, 1, 1).map(lambda x: torch.full_like(x, index))

    simulators = [Waiting(0), Waiting(1)]
    for simulator in simulators:
        simulator.reset(1, seeded())
    assert [steps.mask.item() for steps in drive([walk(0), walk(1)], simulators)] == [0, 1]
    (thread,) = simulators[0].threads | simulators[1].threads
    assert thread is not threading.current_thread()


def test_a_step_that_fails_in_the_other_thread_is_told_as_ever():
    class Failing(PointMass):
        def step(self, actions):
            raise RuntimeError("physics")

    def walk():
        yield torch.zeros(1)

    for many in (1, 2):
        with pytest.raises(RuntimeError, match="physics"):
            drive([walk() for _ in range(many)], [Failing()] * many)


def test_halves_need_a_twin_and_enough_walks(monkeypatch):
    monkeypatch.setattr(rollouts, "lives_elsewhere", lambda policy: True)
    hopper = make_simulator("hopper")
    assert isinstance(hopper, Twinned)
    assert hopper.twin() is hopper.twin() is not hopper
    made = []
    monkeypatch.setattr(
        rollouts, "drive", lambda walks, simulators: made.append(len(walks)) or drive(walks, simulators)
    )
    for simulator, policy, count, halves in (
        (hopper, transformer(1), 2 * MIN_ROWS, 2),
        (hopper, transformer(1), 2 * MIN_ROWS - 1, 1),
        (PointMass(), TinyPolicy(1), 2 * MIN_ROWS, 1),
    ):
        Rollout.begin(policy, simulator, count, 1.0, seeded()).advance(2)
        assert made.pop() == halves


def test_a_network_on_the_cpu_walks_whole():
    assert not rollouts.lives_elsewhere(transformer(1))
    assert rollouts.lives_elsewhere(transformer(1).to("meta"))
    assert not rollouts.lives_elsewhere(TinyPolicy(1))
