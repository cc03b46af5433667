"""Lines 7 to 9 of Algorithm 1, advantages, buffer and update, held against what the world itself saw."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from learners import LENGTH, Witness, groups, grpo, own_steps, parameters, returns_seen, standardised
from pointmass import TinyPolicy

from dtune.algorithms.grpo import GRPO
from dtune.errors import NumericError

# --- line 7: advantages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1.0, 0.8])
@pytest.mark.parametrize("lookahead", [0, 5])
def test_advantages_compare_discounted_returns_with_lookahead(gamma, lookahead):
    algorithm, simulator = grpo(gamma=gamma, lookahead_length=lookahead), Witness(box=1.3)
    algorithm.iterate(simulator)
    expected = standardised(returns_seen(simulator, gamma, LENGTH + lookahead))
    got = groups(algorithm.buffer.rows["advantages"])
    torch.testing.assert_close(got, expected.float(), atol=1e-4, rtol=1e-4)
    if lookahead:  # the lookahead decides, and so does the discount at its border
        without = standardised(returns_seen(simulator, gamma, LENGTH))
        assert (got - without).abs().max() > 0.1


def test_advantages_can_share_the_scale_of_all_groups():
    algorithm, simulator = grpo(advantage_scale="batch"), Witness(box=1.3)
    algorithm.iterate(simulator)
    returns = returns_seen(simulator, algorithm.config.gamma)
    centred = returns - returns.mean(1, keepdim=True)
    expected = centred / returns.var(1).mean().sqrt()  # groups are equally large: their variances pool to the mean
    torch.testing.assert_close(groups(algorithm.buffer.rows["advantages"]), expected.float(), atol=1e-4, rtol=1e-4)
    assert (expected - standardised(returns)).abs().max() > 0.1


def test_advantages_can_be_undivided_and_against_the_others():
    algorithm, simulator = grpo(advantage_scale="none", baseline="leave_one_out"), Witness(box=1.3)
    algorithm.iterate(simulator)
    returns = returns_seen(simulator, algorithm.config.gamma)
    others = (returns.sum(1, keepdim=True) - returns) / (returns.shape[1] - 1)
    got = groups(algorithm.buffer.rows["advantages"])
    torch.testing.assert_close(got, (returns - others).float(), atol=1e-4, rtol=1e-4)


def test_only_the_sub_trajectory_is_optimised():
    algorithm, simulator = grpo(), Witness(box=1.3)
    algorithm.iterate(simulator)
    own, walk = own_steps(algorithm), simulator.grown[-1]
    assert own.mask.equal(~walk.rewards[:, :LENGTH].isnan())
    assert not own.mask.all()
    torch.testing.assert_close(own.actions[own.mask], walk.actions[:, :LENGTH][own.mask].float())
    torch.testing.assert_close(own.rewards[own.mask], walk.rewards[:, :LENGTH][own.mask].float())


# --- line 8: margin and buffer ------------------------------------------------------------------------------------


def test_members_within_the_margin_are_dropped_after_all_were_compared():
    algorithm, simulator = grpo(return_margin=0.3), Witness()
    row = algorithm.iterate(simulator)
    returns = returns_seen(simulator, algorithm.config.gamma)
    keep = (returns - returns.mean(1, keepdim=True)).abs() > 0.3
    assert 0.2 < keep.double().mean() < 0.8
    assert row["rollout/dropped"] == pytest.approx(1 - keep.double().mean().item())
    expected = standardised(returns)[keep].float()  # mean and deviation over all members
    torch.testing.assert_close(algorithm.buffer.rows["advantages"], expected, atol=1e-4, rtol=1e-4)
    kept_actions = groups(simulator.grown[-1].actions[:, 0])[keep]
    torch.testing.assert_close(own_steps(algorithm).actions[:, 0], kept_actions.float())


def test_where_all_members_are_dropped_nothing_is_learned():
    algorithm, simulator = grpo(return_margin=1e6), Witness()
    before = parameters(algorithm.policy)
    row = algorithm.iterate(simulator)
    assert row["rollout/dropped"] == 1
    assert row["count/gradient_steps"] == 0
    assert len(algorithm.buffer) == 0
    assert parameters(algorithm.policy).equal(before)


def test_the_newest_sub_trajectories_are_remembered_with_the_likelihoods_they_were_drawn_with():
    algorithm, simulator = grpo(subtrajectory_capacity=40), Witness()
    first = deepcopy(algorithm.policy)
    algorithm.iterate(simulator)
    old = {name: value.clone() for name, value in algorithm.buffer.rows.items()}
    assert len(old["mask"]) == 32
    second = deepcopy(algorithm.policy)
    algorithm.iterate(simulator)
    rows = algorithm.buffer.rows
    assert rows["iteration"].tolist() == [0] * 8 + [1] * 32
    for name, value in rows.items():
        assert value[:8].equal(old[name][24:]), name

    def likelihoods(policy: TinyPolicy) -> torch.Tensor:
        own = own_steps(algorithm)
        with torch.no_grad():
            flat = own.map(lambda x: x.flatten(0, 1)[:, None])
            return policy(flat).base_log_prob(flat.raw_actions).view_as(own.mask)

    mask = rows["mask"]
    for policy, part in ((first, slice(0, 8)), (second, slice(8, 40))):
        drawn = rows["log_probs"][part][mask[part]]
        torch.testing.assert_close(likelihoods(policy)[part][mask[part]], drawn, atol=1e-5, rtol=1e-5)
    assert (likelihoods(algorithm.policy) - rows["log_probs"])[mask].abs().max() > 0.05


# --- line 9: the update -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset_context", ["fresh", "parent"])
@pytest.mark.parametrize("ratio", ["sequence", "geometric", "token"])
@pytest.mark.parametrize("context_length", [1, 5])
def test_ratios_are_one_before_the_first_update(context_length, ratio, reset_context):
    """The learner sees exactly the windows the actor saw, at both ends of an episode too."""
    algorithm = grpo(context_length, update={"ratio": ratio}, reset_context=reset_context)
    simulator = Witness(box=1.3)
    for _ in range(3):  # later, older members are in the buffer as well
        assert algorithm.iterate(simulator)["train/fresh_ratio_error"] <= 1e-5


@pytest.mark.parametrize("context_length", [1, 5])
def test_relabelling_breaks_the_ratios(context_length):
    """Fig. 1: conditioned on what was earned, it is not the policy that acted."""
    asked = {"return_to_go": 200.0}
    row = grpo(context_length, relabel=True, **asked).iterate(Witness())
    assert row["train/clip_fraction"] > 0.5
    assert row["train/fresh_ratio_error"] > 0.5
    assert grpo(context_length, **asked).iterate(Witness())["train/fresh_ratio_error"] <= 1e-5


def test_relabelling_takes_the_returns_of_the_whole_walk_and_scores_as_without():
    algorithm, simulator = grpo(relabel=True), Witness()
    algorithm.iterate(simulator)
    walk = simulator.grown[-1]
    assert (~walk.rewards.isnan()).sum(1).equal(20 - walk.starts[:, 2].long())  # to the end of the episode
    rewards = walk.rewards.nan_to_num(0.0)
    achieved = rewards.flip(1).cumsum(1).flip(1)[:, :LENGTH]
    own = own_steps(algorithm)
    torch.testing.assert_close(own.returns_to_go[own.mask], achieved.float()[own.mask])
    expected = standardised(returns_seen(simulator, algorithm.config.gamma))
    torch.testing.assert_close(groups(algorithm.buffer.rows["advantages"]), expected.float(), atol=1e-4, rtol=1e-4)


def test_a_pass_uses_every_remembered_sub_trajectory_once():
    algorithm, simulator = grpo(batch_size=20, passes=2), Witness()
    used, step = [], algorithm.update.step

    def spy(steps, advantages, *others):
        used.append(advantages)
        return step(steps, advantages, *others)

    algorithm.update.step = spy
    row = algorithm.iterate(simulator)
    assert [len(batch) for batch in used] == [16, 16] * 2  # not 20 and 12: a step moves as far for few as for many
    stored = algorithm.buffer.rows["advantages"]
    for first, second in (used[:2], used[2:]):
        assert torch.cat([first, second]).sort().values.equal(stored.sort().values)
    assert not used[0].equal(stored[:16])  # in random order
    assert not used[0].equal(used[2])
    assert row["count/gradient_steps"] == 4


def test_only_the_first_step_vouches_for_fresh_ratios():
    """Afterwards the policy is another one."""
    algorithm, vouched = grpo(), []
    step = algorithm.update.step

    def spy(steps, advantages, generator, fresh, *part):
        vouched.append(None if fresh is None else fresh.sum().item())
        return step(steps, advantages, generator, fresh, *part)

    algorithm.update.step = spy
    for _ in range(2):
        algorithm.iterate(Witness())
    assert len(vouched) == 3  # of batches of 32: one, then two
    assert vouched[0] == 32
    assert 0 < vouched[1] < 32
    assert vouched[2] is None


def test_the_reference_follows_every_so_many_iterations():
    algorithm, simulator = grpo(update={"reference_sync_interval": 3}), Witness()
    start = parameters(algorithm.policy)
    for iteration in range(1, 8):
        algorithm.iterate(simulator)
        reference = parameters(algorithm.update.reference)
        if iteration % 3 == 0:
            start = parameters(algorithm.policy)
        assert reference.equal(start), iteration
        assert reference.equal(parameters(algorithm.policy)) == (iteration % 3 == 0)


# --- ablations and trouble ----------------------------------------------------------------------------------------


def test_full_trajectories_can_be_the_groups():
    """Fig. 2a."""
    algorithm, simulator = grpo(subtrajectory_length=20, lookahead_length=0), Witness()
    row = algorithm.iterate(simulator)
    own, walk = own_steps(algorithm), simulator.grown[-1]
    assert own.mask.sum(1).equal(20 - walk.starts[:, 2].long())
    assert row["count/env_steps_lookahead"] == 0
    assert row["train/fresh_ratio_error"] <= 1e-5


def faulty(broken: float, **options) -> tuple[GRPO, Witness]:
    """272 walks an iteration, all of which pass the last clock of an episode."""
    algorithm = grpo(
        reset_trajectories=16, reset_points=4, lookahead_length=20, episodes_per_iteration=16, replay_capacity=16,
        subtrajectory_capacity=512,
    )  # fmt: skip
    return algorithm, Witness(broken=broken, **options)


@pytest.mark.parametrize("broken", [1e6, float("nan")], ids=["absurd", "nan"])
def test_a_faulty_member_is_dropped_and_the_rest_compared_without_it(broken):
    algorithm, simulator = faulty(broken, faults={41: 19, 101: 19})
    row = algorithm.iterate(simulator)
    assert row["rollout/faulty"] == 2
    assert row["rollout/dropped"] == pytest.approx(2 / 256)
    rows = algorithm.buffer.rows
    assert all(value.isfinite().all() for value in rows.values())
    returns = returns_seen(simulator, algorithm.config.gamma, LENGTH + 20)
    expected = torch.cat(
        [standardised(group[None, [i for i in range(4) if 4 * number + i not in (41, 101)]])[0]
         for number, group in enumerate(returns)]
    )  # fmt: skip
    torch.testing.assert_close(rows["advantages"], expected.float(), atol=1e-4, rtol=1e-4)
    assert parameters(algorithm.policy).isfinite().all()


def test_a_faulty_episode_is_not_remembered():
    algorithm, simulator = faulty(float("nan"), faults={3: 19})
    simulator.faults[3 + 16] = 40  # never reached: only the episode's row breaks, and one member's
    row = algorithm.iterate(simulator)
    assert row["rollout/faulty"] == 2
    assert len(algorithm.replay) == 15
    assert row["rollout/length"] == 20
    assert algorithm.replay.rows["rewards"].isfinite().all()


def test_too_many_faulty_members_stop_the_run():
    algorithm, simulator = faulty(float("nan"), faults=dict.fromkeys(range(40, 100), 19))
    with pytest.raises(NumericError, match="60 of 272 walks"):
        algorithm.iterate(simulator)


def test_no_sound_episode_at_all_stops_the_run():
    algorithm = grpo()
    with pytest.raises(NumericError, match="2 of 2 walks"):
        algorithm.iterate(Witness(faults={0: 3, 1: 4}))


def test_faulty_episodes_are_bridged_by_remembered_ones():
    algorithm, simulator = faulty(0.0)
    algorithm.config = replace(algorithm.config, episodes_per_iteration=1)
    algorithm.iterate(simulator)
    simulator.faults = {0: 19}
    row = algorithm.iterate(simulator)
    assert row["rollout/faulty"] == 2  # the only episode, and a member
    assert len(algorithm.replay) == 1
    assert "rollout/return" not in row
