"""Walks: who is in the batch, what is written down where, how an episode ends."""

import math

import pytest
import torch
from draws import draw_steps, seeded
from pointmass import PointMass, TinyPolicy

from dtune.data.buffers import Fifo
from dtune.data.steps import concatenate, empty_steps
from dtune.envs.collect import collect_episodes
from dtune.envs.rollout import MIN_ROWS, Episodes, ResetPoints, Rollout
from dtune.errors import ConfigError
from dtune.models.decision_transformer import DecisionTransformer, DecisionTransformerConfig
from dtune.models.distributions import TanhNormal
from dtune.models.perceptron_policy import PerceptronPolicy, PerceptronPolicyConfig
from dtune.models.reinformer import Reinformer, ReinformerConfig

GOAL = 15.0


def policy(context=1):
    return TinyPolicy(context, seed=3)


def begin(simulator, count, context=1):
    return Rollout.begin(policy(context), simulator, count, GOAL, seeded(1))


class Spy:
    """A policy that writes down what it is asked, stands nearly still, and wants half as much at every step."""

    action_dim = 2

    def __init__(self, context_length):
        self.context_length = context_length
        self.asked = []

    def __call__(self, context):
        self.asked.append(context)
        mean = context.observations * 0 + context.timesteps[..., None] / 100
        return TanhNormal(mean, torch.ones_like(mean))

    def next_return_to_go(self, returns_to_go, rewards):
        return returns_to_go / 2 + 0 * rewards


# ---- a step


@pytest.mark.parametrize("context", [1, 2, 5])
def test_the_policy_sees_its_last_steps_and_the_present_one_without_an_action(context):
    spy = Spy(context)
    rollout = Rollout.begin(spy, PointMass(), MIN_ROWS, 64.0, seeded(1))
    walked = concatenate([rollout.advance(4, generator=seeded(2)), rollout.advance(3, generator=seeded(3))], 1)
    assert len(spy.asked) == 7
    for time, window in enumerate(spy.asked):
        first = max(0, time - context + 1)
        padding = context - 1 - (time - first)
        assert window.mask.tolist() == [[False] * padding + [True] * (context - padding)] * MIN_ROWS
        for name in ("observations", "returns_to_go", "timesteps"):
            assert torch.equal(getattr(window, name)[:, padding:], getattr(walked, name)[:, first : time + 1])
        assert torch.equal(window.actions[:, padding:-1], walked.actions[:, first:time])
        assert not window.actions[:, -1].any()


def test_what_is_written_down_is_what_happened():
    simulator = PointMass()
    rollout = begin(simulator, 20)
    start = simulator.position.clone()
    walked = rollout.advance(6, generator=seeded(2))
    position = start
    for time in range(6):
        assert torch.equal(walked.observations[:, time], position.float())
        position = position + 0.2 * walked.actions[:, time].double()
        assert torch.equal(walked.rewards[:, time], -position.norm(dim=1).float())
    assert torch.equal(walked.actions, walked.raw_actions.tanh())
    assert walked.timesteps.tolist() == [list(range(6))] * 20
    assert walked.mask.all()
    expected = GOAL - walked.rewards.cumsum(1)
    assert (walked.returns_to_go[:, 0] == GOAL).all()
    torch.testing.assert_close(walked.returns_to_go[:, 1:], expected[:, :-1])


def test_the_noise_of_all_steps_is_drawn_ahead_and_decides_the_actions():
    walker = policy()
    walked = Rollout.begin(walker, PointMass(), 20, GOAL, seeded(1)).advance(6, generator=seeded(2))
    distribution = walker(walked.map(lambda x: x.flatten(0, 1)[:, None]))
    noise = torch.randn(20, 6, 2, generator=seeded(2)).flatten(0, 1)[:, None]
    raw = distribution.sample_raw(noise)
    torch.testing.assert_close(walked.raw_actions.flatten(0, 1)[:, None], raw)
    torch.testing.assert_close(walked.log_probs.flatten()[:, None], distribution.base_log_prob(raw))


def test_without_a_generator_the_mode_is_taken():
    walker = policy()
    walked = Rollout.begin(walker, PointMass(), 20, GOAL, seeded(1)).advance(6)
    distribution = walker(walked.map(lambda x: x.flatten(0, 1)[:, None]))
    torch.testing.assert_close(walked.actions.flatten(0, 1)[:, None], distribution.mode)
    density = -distribution.std.log().sum(-1) - math.log(2 * math.pi)
    torch.testing.assert_close(walked.log_probs.flatten()[:, None], density)


def test_the_policy_says_what_it_asks_for_next():
    walked = Rollout.begin(Spy(2), PointMass(), 3, 64.0, seeded(1)).advance(4)
    assert walked.returns_to_go.tolist() == [[64.0, 32.0, 16.0, 8.0]] * 3


@pytest.mark.parametrize("kind", [DecisionTransformer, Reinformer, PerceptronPolicy])
def test_a_policy_of_another_world_is_told_in_a_sentence(kind):
    shape = {
        DecisionTransformer: DecisionTransformerConfig, Reinformer: ReinformerConfig,
        PerceptronPolicy: PerceptronPolicyConfig,
    }[kind]  # fmt: skip
    policy = kind(shape(observation_dim=3, action_dim=2, width=16), seeded())
    with pytest.raises(
        ConfigError, match="the policy observes 3 numbers and this world has 2: give a policy made for it"
    ):
        Rollout.begin(policy, PointMass(), 4, 1.0, seeded())


def test_no_graph_is_recorded():
    assert not begin(PointMass(), 3).advance(2, generator=seeded(2)).raw_actions.requires_grad


@pytest.mark.parametrize("context", [1, 3])
def test_advancing_twice_is_advancing_once(context):
    once = begin(PointMass(box=1.1), 20, context)
    twice = begin(PointMass(box=1.1), 20, context)
    whole, first, second = once.advance(12), twice.advance(5), twice.advance(7)
    for name, value in vars(whole).items():
        assert torch.equal(torch.cat([getattr(first, name), getattr(second, name)], 1), value), name
    assert torch.equal(once.alive, twice.alive)
    assert torch.equal(once.final_observations, twice.final_observations)


def test_advancing_by_nothing_takes_nothing():
    rollout = begin(PointMass(), 3)
    assert rollout.advance(0, generator=seeded()).mask.shape == (3, 0)
    assert rollout.advance(1).timesteps.tolist() == [[0]] * 3


# ---- leaving the batch


@pytest.mark.parametrize("context", [1, 4])
@pytest.mark.parametrize("sample", [False, True])
def test_others_ending_changes_no_walk(sample, context):
    """The same walks with and without a wall: until they hit it, nothing differs."""
    free, walled = PointMass(), PointMass(box=1.0)
    ours, theirs = (
        begin(world, 40, context).advance(20, generator=seeded(2) if sample else None) for world in (walled, free)
    )
    lengths = ours.mask.sum(1)
    assert lengths.unique().numel() > 3
    assert (lengths == 20).any()
    assert theirs.mask.all()
    for name, value in vars(ours).items():
        assert torch.equal(value[ours.mask], getattr(theirs, name)[ours.mask]), name
        assert not value[~ours.mask].any(), name
    assert torch.equal(ours.mask, torch.arange(20) < lengths[:, None])


def test_a_walk_that_has_ended_costs_nothing():
    """Stepping it again is an error of this simulator."""
    simulator = PointMass(box=1.0)
    rollout = begin(simulator, 40)
    walked = rollout.advance(30, generator=seeded(2))
    assert simulator.stepped == walked.mask.sum(0)[:20].tolist()
    assert simulator.stepped[0] > simulator.stepped[-1] > 0
    assert not len(rollout.alive)
    assert not rollout.advance(5, generator=seeded(2), snapshots=True).mask.any()
    assert len(simulator.stepped) == 20


def test_the_policy_is_asked_about_the_living_alone_but_never_about_few():
    spy = Spy(1)
    simulator = PointMass(faults=dict.fromkeys(range(4, 40), 1))
    Rollout.begin(spy, simulator, 40, GOAL, seeded(1)).advance(3)
    assert [len(window.mask) for window in spy.asked] == [40, 40, MIN_ROWS]
    assert simulator.stepped == [40, 40, 4]


def test_the_living_keep_their_rows():
    simulator = PointMass(faults={0: 0, 3: 1})
    rollout = begin(simulator, 5)
    assert rollout.advance(1).mask[:, 0].tolist() == [True] * 5
    assert rollout.alive.tolist() == [1, 2, 3, 4]
    assert rollout.advance(1).mask[:, 0].tolist() == [False, True, True, True, True]
    assert rollout.alive.tolist() == [1, 2, 4]
    walked = rollout.advance(1)
    living = walked.mask[:, 0]
    assert living.tolist() == [False, True, True, False, True]
    moved = walked.observations[living, 0] + 0.2 * walked.actions[living, 0]
    torch.testing.assert_close(moved, simulator.position.float())
    assert walked.timesteps[living, 0].tolist() == [2, 2, 2]


# ---- ends


def ended(sample=True):
    simulator = PointMass(box=1.0)
    rollout = begin(simulator, 40)
    return rollout, rollout.advance(20, generator=seeded(2) if sample else None)


def test_an_episode_that_ended_is_terminated_and_one_out_of_time_is_not():
    rollout, walked = ended()
    lengths = walked.mask.sum(1)
    outside = (rollout.final_observations.abs() > 1).any(1)
    assert torch.equal(rollout.terminated, outside)
    assert (lengths[~rollout.terminated] == 20).all()
    assert (lengths[rollout.terminated] < 20).any()
    assert not rollout.faulty.any()


def test_the_end_of_the_task_at_the_last_moment_is_no_truncation():
    simulator = PointMass(box=1.0, horizon=1)
    rollout = Rollout.begin(Spy(1), simulator, 2, 0.0, seeded())
    simulator.position = torch.tensor([[1.5, 0.0], [0.5, 0.0]], dtype=torch.float64)
    rollout.advance(1)
    assert rollout.terminated.tolist() == [True, False]
    assert not len(rollout.alive)


def test_final_observations_are_what_was_seen_after_the_last_step():
    rollout, walked = ended()
    last = walked.mask.sum(1) - 1
    row = torch.arange(40)
    expected = walked.observations[row, last] + 0.2 * walked.actions[row, last]
    torch.testing.assert_close(rollout.final_observations, expected)


def test_walks_that_go_on_have_not_ended():
    rollout = begin(PointMass(), 3)
    rollout.advance(19)
    assert rollout.alive.tolist() == [0, 1, 2]
    assert not rollout.terminated.any()


def test_a_walk_resumed_late_has_the_rest_of_its_time():
    simulator = PointMass()
    rollout = begin(simulator, 2)
    walked = rollout.advance(20, snapshots=True)
    episodes = Episodes(walked, rollout.snapshots, rollout.final_observations, rollout.terminated)
    points = ResetPoints.choose(episodes, torch.tensor([0, 1, 1]), torch.tensor([19, 17, 0]), 0)
    again = Rollout.resume(policy(), simulator, points).advance(25)
    assert again.mask.sum(1).tolist() == [1, 3, 20]
    assert again.timesteps[:, 0].tolist() == [19, 17, 0]


# ---- snapshots


def test_snapshots_are_of_the_moments_before_the_steps():
    simulator = PointMass(box=1.0)
    rollout = begin(simulator, 40)
    for steps in (4, 6):
        walked = rollout.advance(steps, generator=seeded(2), snapshots=True)
        assert rollout.snapshots.shape == (40, steps, 3)
        for time in range(steps):
            seen = simulator_at(rollout.snapshots[:, time])
            there = walked.mask[:, time]
            assert torch.equal(seen[there], walked.observations[there, time])
            assert torch.equal(rollout.snapshots[there, time, 2].long(), walked.timesteps[there, time])
            assert not rollout.snapshots[~there, time].any()
    assert not walked.mask.all()
    rollout.advance(1)
    assert not rollout.snapshots.numel()


def simulator_at(snapshots):
    return PointMass().restore(snapshots.numpy()).float()


# ---- episodes


@pytest.mark.parametrize("broken", [0.0, math.nan])
def test_faulty_episodes_are_set_apart_and_spoil_no_other(broken):
    simulator = PointMass(box=1.0, faults={1: 3, 4: 0}, broken=broken)
    sound, faulty = collect_episodes(policy(3), simulator, 20, GOAL, seeded(1), snapshots=True)
    clean, none = collect_episodes(policy(3), PointMass(box=1.0), 20, GOAL, seeded(1), snapshots=True)
    others = [row for row in range(20) if row not in (1, 4)]
    assert (len(sound), len(faulty), len(clean), len(none)) == (18, 2, 20, 0)
    for name, value in sound.rows().items():
        assert torch.equal(value, clean.rows()[name][others]), name
    assert faulty.lengths.tolist() == [4, 1]
    assert simulator.stepped[:5] == (clean.steps.mask.sum(0)[:5] - torch.tensor([0, 1, 1, 1, 2])).tolist()


def test_where_all_are_faulty_no_episode_is_left():
    sound, faulty = collect_episodes(
        policy(), PointMass(faults={0: 5, 1: 0}, broken=math.nan), 2, GOAL, seeded(1), snapshots=True
    )
    assert len(sound) == 0
    assert faulty.lengths.tolist() == [6, 1]
    assert sound.returns.shape == (0,)


def test_a_rollout_says_which_walks_were_faulty():
    rollout = begin(PointMass(faults={2: 1}), 4)
    rollout.advance(5)
    assert rollout.faulty.tolist() == rollout.terminated.tolist() == [False, False, True, False]
    assert rollout.alive.tolist() == [0, 1, 3]


def test_collected_episodes_are_whole():
    sound, _ = collect_episodes(policy(), PointMass(box=1.0), 40, GOAL, seeded(1), snapshots=True)
    rollout = begin_with(generator := seeded(1))
    walked = rollout.advance(20, generator=generator, snapshots=True)
    for name, value in vars(walked).items():
        assert torch.equal(getattr(sound.steps, name), value), name
    assert torch.equal(sound.snapshots, rollout.snapshots)
    assert torch.equal(sound.final_observations, rollout.final_observations)
    assert torch.equal(sound.terminated, rollout.terminated)


def begin_with(generator):
    return Rollout.begin(policy(), PointMass(box=1.0), 40, GOAL, generator)


def test_evaluations_collect_by_the_mode_and_take_no_noise_from_the_generator():
    generator, untouched = seeded(1), seeded(1)
    sound, _ = collect_episodes(policy(), PointMass(), 20, GOAL, generator, sample=False)
    rollout = Rollout.begin(policy(), PointMass(), 20, GOAL, untouched)
    assert torch.equal(sound.steps.raw_actions, rollout.advance(20).raw_actions)
    assert torch.equal(generator.get_state(), untouched.get_state())
    assert sound.snapshots.shape == (20, 20, 0)


def four_episodes():
    steps = draw_steps(4, 6, 3, 2)
    lengths = torch.tensor([6, 1, 4, 5])
    steps.mask[:] = torch.arange(6) < lengths[:, None]
    return Episodes(
        steps.map(lambda x: x * steps.mask.view(4, 6, *[1] * (x.ndim - 2))),
        torch.randn(4, 6, 7, dtype=torch.float64, generator=seeded(1)),
        torch.randn(4, 3, generator=seeded(2)),
        torch.tensor([False, True, False, True]),
    )


def test_lengths_and_returns():
    episodes = four_episodes()
    assert episodes.lengths.tolist() == [6, 1, 4, 5]
    assert len(episodes) == 4
    episodes.steps.rewards[:] = torch.tensor([[1e8, 1, 1, 1, 1, 1]])
    assert episodes.returns.tolist() == [1e8 + 5, 1e8, 1e8 + 3, 1e8 + 4]  # float32 would lose the small ones


def test_episodes_survive_storage_by_rows():
    episodes = four_episodes()
    fifo = Fifo(3)
    fifo.extend(episodes.rows())
    assert set(episodes.rows()) == {*vars(episodes.steps), "snapshots", "final_observations", "terminated"}
    for again in (Episodes.from_rows(fifo.rows), episodes.take(torch.tensor([1, 2, 3]))):
        for name, value in episodes.rows().items():
            assert torch.equal(again.rows()[name], value[1:]), name
        assert again.lengths.tolist() == [1, 4, 5]


# ---- reset points


def test_reset_points_hold_the_moment_and_the_steps_before_it():
    episodes = four_episodes()
    rows, steps = torch.tensor([2, 0, 2]), torch.tensor([3, 5, 1])
    points = ResetPoints.choose(episodes, rows, steps, 3)
    for point, (row, step) in enumerate([(2, 3), (0, 5), (2, 1)]):
        assert torch.equal(points.snapshots[point], episodes.snapshots[row, step])
        assert points.returns_to_go[point] == episodes.steps.returns_to_go[row, step]
        assert points.timesteps[point] == episodes.steps.timesteps[row, step]
        known = min(step, 3)
        for name, value in vars(points.history).items():
            assert torch.equal(value[point, 3 - known :], getattr(episodes.steps, name)[row, step - known : step])
            assert not value[point, : 3 - known].any()


def test_a_fresh_context_is_empty_whatever_came_before():
    points = ResetPoints.choose(four_episodes(), torch.tensor([2, 0]), torch.tensor([3, 5]), 3, fresh=True)
    for name, value in vars(empty_steps(2, 3, 3, 2)).items():
        assert torch.equal(getattr(points.history, name), value)
    assert points.timesteps.tolist() == four_episodes().steps.timesteps[[2, 0], [3, 5]].tolist()


def test_at_context_one_there_is_no_history():
    points = ResetPoints.choose(four_episodes(), torch.tensor([2, 0]), torch.tensor([3, 5]), 0)
    assert points.history.mask.shape == (2, 0)


def test_copies_of_a_point_stand_side_by_side():
    points = ResetPoints.choose(four_episodes(), torch.tensor([2, 0]), torch.tensor([3, 5]), 2)
    copies = points.repeat(3)
    order = [0, 0, 0, 1, 1, 1]
    for name in ("snapshots", "returns_to_go", "timesteps"):
        assert torch.equal(getattr(copies, name), getattr(points, name)[order])
    for name, value in vars(points.history).items():
        assert torch.equal(getattr(copies.history, name), value[order])


class Scaling(PointMass):
    """Works on the actions it is given in place."""

    def step(self, actions):
        return super().step(actions.mul_(0.5))


@pytest.mark.parametrize("context", [1, 3])
def test_what_a_simulator_does_with_its_actions_is_not_what_was_done(context):
    walk = begin(Scaling(), 4, context)
    steps = walk.advance(5, generator=seeded(2))
    assert steps.actions.equal(steps.raw_actions.tanh())
    if context > 1:
        assert walk._history.actions[:, -1].equal(steps.actions[:, -1])
