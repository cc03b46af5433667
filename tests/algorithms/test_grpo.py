"""Lines 2 to 6 of Algorithm 1, trajectories, reset points and groups, held against what the world itself saw."""

import math
from copy import deepcopy

import pytest
import torch
from learners import GOAL, GROUP, LENGTH, LOOKAHEAD, Walk, Witness, groups, grpo, own_steps, points_of, seeded
from pointmass import TinyPolicy

from dtune.algorithms.grpo import GRPO
from dtune.data.steps import Steps
from dtune.errors import ConfigError
from dtune.models.distributions import TanhNormal


def mode(policy: TinyPolicy, observations: torch.Tensor, returns_to_go: torch.Tensor) -> torch.Tensor:
    """What a policy without memory does when it does not explore."""
    return chances(policy, observations, returns_to_go).mode[:, 0]


def chances(policy: TinyPolicy, observations: torch.Tensor, returns_to_go: torch.Tensor) -> TanhNormal:
    """What a policy without memory draws its actions from."""
    nothing = torch.zeros(len(observations), 1)
    context = Steps(
        observations=observations[:, None].float(),
        raw_actions=torch.zeros(len(observations), 1, 2),
        actions=torch.zeros(len(observations), 1, 2),
        rewards=nothing,
        returns_to_go=returns_to_go[:, None].float(),
        log_probs=nothing,
        timesteps=nothing.long(),
        mask=torch.ones_like(nothing, dtype=torch.bool),
    )
    with torch.no_grad():
        return policy(context)


class HalfUnsure(TinyPolicy):
    """Its standard deviation is 1.6 at odd clocks, 0.2 at even ones."""

    def forward(self, context: Steps) -> TanhNormal:
        mean = super().forward(context).mean
        odd = (context.timesteps % 2 == 1)[..., None].expand_as(mean)
        return TanhNormal(mean, torch.where(odd, 1.6, 0.2))


# --- line 2: full trajectories ------------------------------------------------------------------------------------


def test_full_trajectories_are_sampled_asking_for_the_return_to_go():
    algorithm, simulator = grpo(), Witness()
    algorithm.iterate(simulator)
    replay = algorithm.replay.rows
    assert (replay["returns_to_go"][:, 0] == GOAL).all()
    spent = replay["rewards"].cumsum(1)[:, :-1]
    torch.testing.assert_close(replay["returns_to_go"][:, 1:], GOAL - spent)
    noise = replay["actions"][:, 0] - mode(grpo().policy, replay["observations"][:, 0], replay["returns_to_go"][:, 0])
    assert (noise != 0).all()


def test_the_newest_full_trajectories_are_remembered():
    algorithm, simulator = grpo(replay_capacity=5), Witness()
    for _ in range(4):
        algorithm.iterate(simulator)
    starts = torch.cat([walk.starts for walk in simulator.collected])
    assert algorithm.replay.rows["snapshots"][:, 0].equal(starts[-5:])


def test_a_collection_makes_up_for_the_iterations_until_the_next():
    algorithm, simulator = grpo(episodes_per_iteration=2, collection_interval=3, replay_capacity=6), Witness()
    held = []
    for _ in range(4):
        told = algorithm.iterate(simulator)
        held.append(algorithm.replay.rows["snapshots"])
        assert ("rollout/return" in told) == (len(held) in (1, 4))
    assert [len(walk.starts) for walk in simulator.collected] == [6, 6]
    assert held[0].equal(held[2])
    assert not held[2][:, 0].equal(held[3][:, 0])


# --- line 3: drawn in proportion to length ------------------------------------------------------------------------


def test_trajectories_are_drawn_as_often_as_they_are_long():
    algorithm = grpo(
        episodes_per_iteration=8, reset_trajectories=2000, reset_points=1, reset_selection="uniform", group_size=2,
        subtrajectory_length=1, lookahead_length=0, subtrajectory_capacity=16,
    )  # fmt: skip
    simulator = Witness(box=0.9)
    algorithm.iterate(simulator)
    lengths = algorithm.replay.rows["mask"].sum(1).double()
    assert lengths.max() > 4 * lengths.min()
    where = points_of(algorithm)
    drawn = torch.zeros(8, dtype=torch.float64)
    for start in simulator.grown[-1].starts[::2].tolist():
        drawn[where[tuple(start)][0]] += 1
    share = lengths / lengths.sum()
    deviation = (2000 * share * (1 - share)).sqrt()
    assert ((drawn - 2000 * share).abs() < 4 * deviation).all()


# --- line 5: reset points where the policy is unsure --------------------------------------------------------------


@pytest.mark.parametrize("selection", ["active", "uniform"])
@pytest.mark.parametrize("context_length", [1, 5])
def test_uncertain_steps_are_preferred(selection, context_length):
    small = grpo(
        context_length, episodes_per_iteration=8, reset_trajectories=1000, reset_points=1, reset_selection=selection,
        group_size=2, subtrajectory_length=1, lookahead_length=0, subtrajectory_capacity=16,
    )  # fmt: skip
    algorithm, simulator = GRPO(HalfUnsure(context_length), small.config, seeded()), Witness()
    algorithm.iterate(simulator)
    drawn = (simulator.grown[-1].starts[::2, 2] % 2 == 1).double().mean().item()
    unsure, sure = math.exp(1.6**2), math.exp(0.2**2)  # as many clocks are odd as even
    expected = unsure / (unsure + sure) if selection == "active" else 0.5
    assert drawn == pytest.approx(expected, abs=0.06)


def test_reset_points_of_a_trajectory_are_different_steps():
    algorithm, simulator = grpo(reset_points=8), Witness()
    algorithm.iterate(simulator)
    points = simulator.grown[-1].starts[::GROUP].view(4, 8, 3)
    assert all(len({tuple(point) for point in drawn}) == 8 for drawn in points.tolist())


def test_whole_trajectories_start_at_the_start():
    algorithm, simulator = grpo(reset_selection="start", reset_points=2), Witness()
    algorithm.iterate(simulator)
    assert (simulator.grown[-1].starts[:, 2] == 0).all()
    algorithm, simulator = grpo(reset_selection="uniform", reset_points=2), Witness()
    algorithm.iterate(simulator)
    assert (simulator.grown[-1].starts[:, 2] > 0).any()


# --- line 6: groups -----------------------------------------------------------------------------------------------


def test_members_of_a_group_share_their_start_and_differ_in_their_actions():
    algorithm, simulator = grpo(), Witness()
    algorithm.iterate(simulator)
    walk = simulator.grown[-1]
    starts = groups(walk.starts)
    assert starts.shape == (8, GROUP, 3)  # 4 trajectories, 2 points each
    assert (starts == starts[:, :1]).all()
    assert (groups(walk.actions[:, 0]).std(1) > 0.01).all()


def test_without_a_shared_start_every_member_has_its_own():
    algorithm, simulator = grpo(shared_start=False), Witness()
    algorithm.iterate(simulator)
    starts = groups(simulator.grown[-1].starts)
    assert starts.shape == (8, GROUP, 3)
    for group in starts.tolist():
        assert len({tuple(member) for member in group}) == GROUP
    where = points_of(algorithm)
    episodes = torch.tensor([[where[tuple(member)][0] for member in group] for group in starts.tolist()])
    assert (episodes == episodes[:, :1]).all()  # of the same trajectory still


def test_one_batched_walk_grows_all_groups():
    """Never a loop over environments: as many calls as the longest walk has steps."""
    algorithm, simulator = grpo(reset_trajectories=32), Witness()
    for _ in range(2):
        algorithm.iterate(simulator)
    assert simulator.starts == [2, 32 * 2 * GROUP] * 2
    for walk in simulator.grown:
        assert len(walk.taken) <= LENGTH + LOOKAHEAD
    for walk in simulator.collected:
        assert len(walk.taken) == simulator.horizon


def test_walks_end_at_the_horizon_of_the_episode_they_went_back_to():
    algorithm, simulator = grpo(lookahead_length=100), Witness()
    algorithm.iterate(simulator)
    walk = simulator.grown[-1]
    assert (~walk.rewards.isnan()).sum(1).equal(20 - walk.starts[:, 2].long())


def test_a_sub_trajectory_is_sampled_and_its_lookahead_is_not():
    algorithm, simulator = grpo(), Witness()
    acted = deepcopy(algorithm.policy)
    algorithm.iterate(simulator)
    walk, where, replay = simulator.grown[-1], points_of(algorithm), algorithm.replay.rows
    returns_to_go = torch.stack([replay["returns_to_go"][where[tuple(start)]] for start in walk.starts.tolist()])
    explored = 0.0
    for time in range(LENGTH + LOOKAHEAD):
        alive = ~walk.rewards[:, time].isnan()
        expected = mode(acted, walk.observations[alive, time], returns_to_go[alive])
        distance = (walk.actions[alive, time] - expected).abs()
        if time < LENGTH:
            explored += distance.mean().item()
        else:
            assert distance.max() < 1e-5
        returns_to_go = returns_to_go - walk.rewards[:, time]
    assert explored > 0.1


def noise_of(algorithm: GRPO, policy: TinyPolicy, walk: Walk, time: int) -> torch.Tensor:
    """The standard normal numbers behind each member's action at `time`, group by group; NaN where a walk is over."""
    where, replay = points_of(algorithm), algorithm.replay.rows
    goals = torch.stack([replay["returns_to_go"][where[tuple(start)]] for start in walk.starts.tolist()])
    drawn_from = chances(policy, walk.observations[:, time], goals - walk.rewards[:, :time].sum(1))
    return groups((walk.actions[:, time].atanh() - drawn_from.mean[:, 0]) / drawn_from.std[:, 0])


@pytest.mark.parametrize("mirrored", [False, True])
def test_mirrored_members_have_opposite_noise(mirrored):
    algorithm, simulator = grpo(mirrored=mirrored), Witness()
    acted = deepcopy(algorithm.policy)
    algorithm.iterate(simulator)
    for time in range(LENGTH):
        noise = noise_of(algorithm, acted, simulator.grown[-1], time)
        sums = (noise[:, ::2] + noise[:, 1::2]).abs().nan_to_num().max()
        assert (sums < 1e-3) == mirrored
        assert noise.nan_to_num().abs().max() > 1


@pytest.mark.parametrize("lookahead_noise", [0.0, 0.5, 1.0])
def test_the_noise_of_a_lookahead_is_the_same_for_a_whole_group(lookahead_noise):
    algorithm, simulator = grpo(lookahead_noise=lookahead_noise), Witness()
    acted = deepcopy(algorithm.policy)
    algorithm.iterate(simulator)
    apart = noise_of(algorithm, acted, simulator.grown[-1], LENGTH - 1)
    assert (apart - apart[:, :1]).nan_to_num().abs().max() > 1
    for time in range(LENGTH, LENGTH + LOOKAHEAD):
        noise = noise_of(algorithm, acted, simulator.grown[-1], time)
        assert (noise - noise[:, :1]).nan_to_num().abs().max() < 1e-3
        among = (noise[:, 0] - noise[:1, 0]).nan_to_num().abs().max()
        assert among > 0.5 * lookahead_noise if lookahead_noise else among < 1e-3
        assert among < 6 * lookahead_noise + 1e-3


def test_mirrored_members_come_in_pairs():
    with pytest.raises(ConfigError, match="group_size must be even, got 5"):
        grpo(mirrored=True, group_size=5)


@pytest.mark.parametrize("context_length", [1, 5])
def test_returns_to_go_continue_from_the_parents_and_fall_by_each_reward(context_length):
    algorithm, simulator = grpo(context_length), Witness()
    algorithm.iterate(simulator)
    own, where, replay = own_steps(algorithm), points_of(algorithm), algorithm.replay.rows
    parents = torch.tensor([where[tuple(start)] for start in simulator.grown[-1].starts.tolist()])
    assert len(parents) == len(own.mask)
    assert own.returns_to_go[:, 0].equal(replay["returns_to_go"][parents[:, 0], parents[:, 1]])
    assert own.timesteps[:, 0].equal(parents[:, 1])
    assert (own.returns_to_go[:, 0] > GOAL).any()
    falls = (own.returns_to_go[:, :-1] - own.returns_to_go[:, 1:])[own.mask[:, 1:]]
    torch.testing.assert_close(falls, own.rewards[:, :-1][own.mask[:, 1:]])


@pytest.mark.parametrize("reset_context", ["fresh", "parent"])
def test_the_context_at_a_reset_point_is_empty_or_the_parents(reset_context):
    algorithm, simulator = grpo(5, reset_context=reset_context), Witness()
    algorithm.iterate(simulator)
    rows, where, replay = algorithm.buffer.rows, points_of(algorithm), algorithm.replay.rows
    for row, start in enumerate(simulator.grown[-1].starts.tolist()):
        episode, step = where[tuple(start)]
        seen = min(step, 4) if reset_context == "parent" else 0
        assert rows["mask"][row, :4].tolist() == [False] * (4 - seen) + [True] * seen
        assert rows["actions"][row, 4 - seen : 4].equal(replay["actions"][episode, step - seen : step])


# --- what the network computes with --------------------------------------------------------------------------------


class Acting(TinyPolicy):
    """Writes down in which numbers it is to act."""

    asked: list[torch.dtype]

    def acting(self, dtype: torch.dtype = torch.float32):
        self.asked.append(dtype)
        return lambda window: self(window)[:, -1]


@pytest.mark.parametrize("lookahead", ["float32", "bfloat16"])
def test_only_the_lookahead_may_compute_in_short_numbers(lookahead):
    algorithm = grpo(lookahead_dtype=lookahead)
    policy = Acting()
    policy.asked = []
    algorithm = GRPO(policy, algorithm.config, seeded(0))
    metrics = algorithm.iterate(Witness())
    collected, variance, sampled, ahead = policy.asked
    assert {collected, variance, sampled} == {torch.float32}
    assert ahead == getattr(torch, lookahead)
    assert metrics["train/fresh_ratio_error"] < 1e-5
