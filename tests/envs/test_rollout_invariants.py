"""The two promises every importance ratio and every advantage rests on: acting = training, resuming = continuing."""

from dataclasses import fields
from importlib.util import find_spec

import pytest
import torch
from draws import seeded
from pointmass import PointMass, TinyPolicy

from dtune.algorithms.update import ClippedUpdate, UpdateConfig
from dtune.data.steps import Steps, concatenate, empty_steps
from dtune.envs.collect import collect_episodes
from dtune.envs.rollout import Episodes, ResetPoints, Rollout
from dtune.envs.tasks import TASKS as ALL_TASKS
from dtune.envs.tasks import make_simulator, task_info
from dtune.functional.objectives import sequence_ratio, token_ratio
from dtune.models.decision_transformer import DecisionTransformer, DecisionTransformerConfig
from dtune.models.policy import at_last
from dtune.models.reinformer import Reinformer, ReinformerConfig

TASKS = ("hopper", "walker2d", "ant")
HANDS = ("door", "hammer", "pen")
WORLDS = ("hopper", "point", "reinformer")
contexts = pytest.mark.parametrize("context", [1, 5])


def transformer(task, context, seed=0):
    info = task_info(task)
    config = DecisionTransformerConfig(
        observation_dim=info.observation_dim,
        action_dim=info.action_dim,
        context_length=context,
        layers=2,
        heads=2,
        width=32,
    )
    policy = DecisionTransformer(config, seeded(seed))
    policy.set_statistics(torch.full((info.observation_dim,), 0.1), torch.full((info.observation_dim,), 1.5))
    with torch.no_grad():
        policy.head_mean.weight.mul_(0.1)  # gently, so that nobody falls at once
        policy.head_log_std.bias.fill_(-0.5)
    return policy


def reinformer(context, seed=0):
    config = ReinformerConfig(
        observation_dim=11, action_dim=3, context_length=context, layers=2, heads=2, width=32, timesteps=64
    )
    policy = Reinformer(config, seeded(seed))
    policy.set_statistics(torch.full((11,), 0.1), torch.full((11,), 1.5))
    with torch.no_grad():
        policy.head_mean.weight.mul_(0.3)
        policy.log_std.copy_(torch.tensor([-1.0, -1.5, -0.5]))
    return policy


def point_mass():
    return PointMass(box=1.1)


def worlds(world, context):
    if world == "point":
        return TinyPolicy(context, seed=3), point_mass(), 15.0
    if world == "reinformer":
        return reinformer(context), make_simulator("hopper"), 3600.0
    return transformer(world, context), make_simulator(world), 3600.0


def collect(world, context, count=20):
    policy, simulator, goal = worlds(world, context)
    episodes, faulty = collect_episodes(policy, simulator, count, goal, seeded(1), snapshots=True)
    assert not len(faulty.lengths)
    return policy, simulator, episodes


def log_probs_in_training(policy, history, steps):
    """From the windows an update cuts, one an action, and with gradients on."""
    windows = concatenate([history, steps], 1).windows(policy.context_length)
    distribution = at_last(policy, windows)
    return distribution.base_log_prob(steps.raw_actions.flatten(0, 1)).view_as(steps.mask)


def assert_ratios_are_one(policy, history, steps):
    log_probs = log_probs_in_training(policy, history, steps)
    assert log_probs.requires_grad
    assert torch.equal(log_probs[steps.mask], steps.log_probs[steps.mask])
    log_probs = log_probs.detach()
    assert (token_ratio(log_probs, steps.log_probs)[steps.mask] - 1).abs().max() < 1e-5
    assert (sequence_ratio(log_probs, steps.log_probs, steps.mask) - 1).abs().max() < 1e-5


# ---- I. acting = training


@contexts
@pytest.mark.parametrize("world", WORLDS)
def test_acting_is_training_over_whole_episodes(world, context):
    policy, _, episodes = collect(world, context)
    lengths, steps = episodes.lengths, episodes.steps
    assert lengths.unique().numel() > 1  # windows beyond the end of some, inside others
    assert lengths.min() >= context
    assert steps.log_probs[steps.mask].unique().numel() > 0.9 * lengths.sum()
    before = empty_steps(len(lengths), context - 1, steps.observations.shape[2], policy.action_dim)
    cut = steps.slice_time(0, int(lengths.max()) + 3)
    assert_ratios_are_one(policy, before, cut)


@contexts
@pytest.mark.parametrize("world", WORLDS)
def test_acting_is_training_where_windows_are_drawn_anywhere(world, context):
    """As PPO draws them: `context` actions that end on any step, each behind its history."""
    policy, _, episodes = collect(world, context)
    row, step = episodes.steps.mask.nonzero(as_tuple=True)
    drawn = episodes.steps.gather(row, torch.arange(2 - 2 * context, 1) + step[:, None])
    assert_ratios_are_one(policy, drawn.slice_time(0, context - 1), drawn.slice_time(context - 1))


@contexts
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("world", WORLDS)
def test_acting_is_training_after_going_back(world, fresh, context):
    """At both ends of an episode: from its first steps, and over its last."""
    policy, simulator, episodes = collect(world, context)
    rows = torch.arange(20).repeat(4)
    last = episodes.lengths - 1
    steps = torch.cat([torch.zeros_like(last), torch.full_like(last, 2), last // 2, last - 1])
    points = ResetPoints.choose(episodes, rows, steps, context - 1, fresh=fresh)
    rollout = Rollout.resume(policy, simulator, points)
    sampled = rollout.advance(8, generator=seeded(2))
    assert not sampled.mask.all()
    assert sampled.mask[:, 0].all()
    assert_ratios_are_one(policy, points.history, sampled)


@contexts
def test_the_first_update_finds_ratios_of_one_and_later_ones_do_not(context):
    policy, _, episodes = collect("hopper", context)
    steps = concatenate([empty_steps(20, context - 1, 11, 3), episodes.steps], 1).slice_time(0, context + 60)
    update = ClippedUpdate(policy, UpdateConfig(optimizer="adamw", learning_rate=1e-3))
    all_of_them = torch.ones(20, dtype=torch.bool)
    metrics = [update.step(steps, torch.randn(20, generator=seeded()), seeded(), all_of_them) for _ in range(2)]
    assert metrics[0]["train/fresh_ratio_error"] < 1e-5
    assert metrics[1]["train/fresh_ratio_error"] > 1e-2


@pytest.mark.parametrize("wrong", [4, 6])
def test_another_context_length_in_training_is_seen(wrong):
    """The test of I is not blind: the same steps through windows of another length have other ratios."""
    policy, _, episodes = collect("hopper", 5)
    steps = episodes.steps.slice_time(0, 40)
    policy.context_length = wrong
    log_probs = log_probs_in_training(policy, empty_steps(20, wrong - 1, 11, 3), steps)
    assert (sequence_ratio(log_probs, steps.log_probs, steps.mask) - 1).abs().max() > 1e-3


# ---- II. resuming = continuing


def record(policy, simulator, goal, *, count=3, explore=6, steps=30):
    """Walks that first explore, so that their history cannot be guessed from the mode, and then take the mode."""
    rollout = Rollout.begin(policy, simulator, count, goal, seeded(4))
    parts = [(rollout.advance(explore, generator=seeded(5), snapshots=True), rollout.snapshots)]
    parts.append((rollout.advance(steps, snapshots=True), rollout.snapshots))
    walked = concatenate([part for part, _ in parts], 1)
    snapshots = torch.cat([taken for _, taken in parts], 1)
    return Episodes(walked, snapshots, rollout.final_observations, rollout.terminated)


def points_at(episodes, places, context, *, fresh=False):
    rows, steps = torch.tensor(places).T
    assert episodes.steps.mask[rows, steps].all()
    return ResetPoints.choose(episodes, rows, steps, context - 1, fresh=fresh)


def assert_continues(episodes, rollout, walked, places):
    """Each row of `walked` in `places` is what was recorded from its place on, in every field and to the last bit."""
    for copy, (row, step) in places.items():
        for field in fields(Steps):
            ours, theirs = getattr(walked, field.name)[copy], getattr(episodes.steps, field.name)[row, step:]
            common = min(len(ours), len(theirs))
            assert torch.equal(ours[:common], theirs[:common]), (field.name, row, step)
        if not episodes.steps.mask[row].all():  # it ended
            assert torch.equal(rollout.final_observations[copy], episodes.final_observations[row])
            assert rollout.terminated[copy] == episodes.terminated[row]


PLACES = [(2, 6), (0, 6), (1, 7), (2, 8), (0, 7), (2, 6)]  # other rows than before, one of them twice


def acting_in(task, context):
    """A policy and its task; "reinformer" walks in Hopper."""
    if task == "reinformer":
        return reinformer(context, seed=4), "hopper"
    return transformer(task, context, seed=4), task


@contexts
@pytest.mark.parametrize("task", [*ALL_TASKS, "reinformer"])
def test_resuming_is_continuing(task, context):
    if task in HANDS and find_spec("gymnasium_robotics") is None:
        pytest.skip("gymnasium-robotics is not installed")
    policy, task = acting_in(task, context)
    simulator = make_simulator(task)
    episodes = record(policy, simulator, 3600.0)
    assert episodes.lengths.min() > 10
    points = points_at(episodes, PLACES, context)
    simulator = make_simulator(task)
    Rollout.begin(policy, simulator, 11, 0.0, seeded(9)).advance(3)  # another batch, of other walks
    rollout = Rollout.resume(policy, simulator, points)
    walked = rollout.advance(30)
    assert_continues(episodes, rollout, walked, dict(enumerate(PLACES)))


@contexts
@pytest.mark.parametrize("task", [*TASKS, "reinformer"])
def test_company_changes_nothing(task, context):
    """One walk alone, and the same walk among forty."""
    policy, task = acting_in(task, context)
    simulator = make_simulator(task)
    episodes = record(policy, simulator, 3600.0)
    place = (1, 9)
    others = [(row, step) for row in (0, 2, 1) for step in range(9)] * 2
    for places in ([place], [*others, place], [place, *others]):
        rollout = Rollout.resume(policy, simulator, points_at(episodes, places, context))
        walked = rollout.advance(20)
        assert_continues(episodes, rollout, walked, {places.index(place): place})


@contexts
def test_resuming_a_point_mass_is_continuing_to_the_end_of_its_time(context):
    policy, simulator = TinyPolicy(context, seed=3), PointMass()
    episodes = record(policy, simulator, 15.0, count=20, explore=8, steps=12)
    assert (episodes.lengths == 20).all()
    places = [(row, step) for row in (7, 0, 19, 7) for step in (8, 12, 19)]
    rollout = Rollout.resume(policy, simulator, points_at(episodes, places, context))
    walked = rollout.advance(20)
    assert_continues(episodes, rollout, walked, dict(enumerate(places)))
    assert walked.mask.sum(1).tolist() == [20 - step for _, step in places]
    assert torch.equal(rollout.final_observations, episodes.final_observations[[row for row, _ in places]])
    assert not rollout.terminated.any()


def test_a_point_in_the_exploring_part_starts_the_same_but_goes_on_by_the_mode():
    policy, simulator = TinyPolicy(5, seed=3), PointMass()
    episodes = record(policy, simulator, 15.0)
    walked = Rollout.resume(policy, simulator, points_at(episodes, [(1, 3)], 5)).advance(2)
    for name in ("observations", "returns_to_go", "timesteps"):
        assert torch.equal(getattr(walked, name)[0, 0], getattr(episodes.steps, name)[1, 3])
    assert not torch.equal(walked.actions[0, 0], episodes.steps.actions[1, 3])


# ---- what is remembered at a reset point


@pytest.mark.parametrize("world", WORLDS)
def test_with_fresh_context_the_policy_sees_the_reset_point_and_nothing_before(world):
    policy, simulator, goal = worlds(world, 5)
    episodes = record(policy, simulator, goal)
    places = [(0, 7), (2, 6)]
    walked = Rollout.resume(policy, simulator, points_at(episodes, places, 5, fresh=True)).advance(3)
    policy.context_length = 1
    alone = Rollout.resume(policy, simulator, points_at(episodes, places, 1)).advance(1)
    assert torch.allclose(walked.raw_actions[:, 0], alone.raw_actions[:, 0], atol=1e-6)
    recorded = episodes.steps.gather(torch.tensor([0, 2]), torch.tensor([[7], [6]]))
    assert not torch.allclose(walked.raw_actions[:, 0], recorded.raw_actions[:, 0], atol=1e-4)
    for name in ("observations", "returns_to_go", "timesteps"):  # of these it forgets nothing
        assert torch.equal(getattr(walked, name)[:, :1], getattr(recorded, name))


def test_at_context_one_fresh_and_parent_are_the_same():
    policy, simulator, goal = worlds("hopper", 1)
    episodes = record(policy, simulator, goal)
    both = [
        Rollout.resume(policy, simulator, points_at(episodes, PLACES, 1, fresh=f)).advance(9) for f in (True, False)
    ]
    assert torch.equal(both[0].observations, both[1].observations)
    assert torch.equal(both[0].raw_actions, both[1].raw_actions)


# ---- returns-to-go of the policy's own making


@contexts
def test_a_reinformer_is_conditioned_on_what_it_predicts_whatever_is_asked_for(context):
    policy, _, episodes = collect("reinformer", context)
    steps, lengths = episodes.steps, episodes.lengths
    row, step = steps.mask.nonzero(as_tuple=True)
    seen = steps.gather(row, torch.arange(1 - context, 1) + step[:, None])
    with torch.no_grad():
        predicted = policy.predict_return_to_go(seen)[:, -1]
    torch.testing.assert_close(steps.returns_to_go[row, step], predicted, rtol=1e-5, atol=1e-3)
    assert predicted.unique().numel() > 0.9 * lengths.sum()
    for goal in (0.0, -1e6):
        other, _ = collect_episodes(policy, make_simulator("hopper"), 20, goal, seeded(1))
        assert torch.equal(other.steps.returns_to_go, steps.returns_to_go)


def test_a_reinformer_goes_back_with_the_return_it_had_though_it_would_now_predict_another():
    policy, simulator, episodes = collect("reinformer", 5)
    points = points_at(episodes, [(0, 7), (1, 5), (2, 6)], 5)
    with torch.no_grad():
        policy.head_return.bias.add_(1.0)
    walked = Rollout.resume(policy, simulator, points).advance(2)
    assert torch.equal(walked.returns_to_go[:, 0], points.returns_to_go)
    assert (walked.returns_to_go[:, 1] - points.returns_to_go > 500).all()  # from there on by the present prediction
