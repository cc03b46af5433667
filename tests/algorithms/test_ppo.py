"""Lines 2 and 4 to 6 of Algorithm 2: trajectories, windows and ratios."""

import pytest
import torch
from learners import GOAL, Witness, mean_return, ppo, spied
from pointmass import PointMass

from dtune.errors import NumericError

both_contexts = pytest.mark.parametrize("context_length", [1, 5])


# --- line 2 -------------------------------------------------------------------------------------------------------


def test_the_newest_trajectories_are_remembered_as_they_were_asked_for():
    algorithm, simulator = ppo(episodes_per_iteration=3, replay_capacity=7), Witness()
    for _ in range(4):
        algorithm.iterate(simulator)
    assert simulator.starts == [3] * 4
    replay = algorithm.replay.rows
    starts = torch.cat([walk.starts for walk in simulator.walks])[-7:, :2]
    assert replay["observations"][:, 0].equal(starts.float())
    assert replay["iteration"].tolist() == [1, 2, 2, 2, 3, 3, 3][: len(replay["iteration"])]
    assert (replay["returns_to_go"][:, 0] == GOAL).all()
    torch.testing.assert_close(replay["returns_to_go"][:, 1:], GOAL - replay["rewards"].cumsum(1)[:, :-1])


def test_needs_no_going_back():
    class OneWay:
        """A `Simulator` and no more."""

        observation_dim, action_dim, horizon = 2, 2, 20

        def __init__(self):
            world = PointMass()
            self.reset, self.step, self.keep = world.reset, world.step, world.keep

    algorithm = ppo()
    algorithm.iterate(OneWay())
    assert algorithm.replay.rows["snapshots"].numel() == 0


# --- lines 4 and 5: windows ---------------------------------------------------------------------------------------


@both_contexts
def test_every_step_of_the_replay_ends_a_window_as_often(context_length):
    """A trajectory in proportion to its length, then any of its steps."""
    algorithm = ppo(context_length, updates_per_iteration=1, batch_size=6000, episodes_per_iteration=8)
    seen = spied(algorithm)
    algorithm.iterate(Witness(box=0.9))
    replay = algorithm.replay.rows
    lengths = replay["mask"].sum(1)
    assert lengths.max() > 4 * lengths.min()
    places = torch.cat([replay["observations"], replay["timesteps"][..., None]], -1)[replay["mask"]]
    own = seen[0].own(context_length)
    ends = torch.cat([own.observations, own.timesteps[..., None]], -1)[:, -1]
    drawn = (ends[:, None] == places).all(2).double().sum(0)
    assert drawn.sum() == 6000
    mean = 6000 / len(places)
    assert ((drawn - mean).abs() < 5 * mean**0.5).all()


@pytest.mark.parametrize("context_length", [3, 5])
def test_windows_are_the_runs_of_steps_the_actor_saw(context_length):
    """As many own actions as the context is long, and before them the history the first of them was chosen with."""
    algorithm = ppo(context_length, updates_per_iteration=1)
    seen = spied(algorithm)
    algorithm.iterate(Witness(box=1.1))
    steps, replay = seen[0].steps, algorithm.replay.rows
    assert steps.mask.shape == (64, 2 * context_length - 1)
    row_of = {tuple(place.tolist()): row for row, place in enumerate(replay["observations"][:, 0])}
    assert steps.mask[:, -1].all()
    for row in range(64):
        last = int(steps.timesteps[row, -1])
        real = min(last + 1, 2 * context_length - 1)
        assert steps.mask[row].sum() == real
        same = (replay["observations"][:, last] == steps.observations[row, -1]).all(1).nonzero()
        episode = int(same)
        for name, value in vars(steps).items():
            assert value[row, -real:].equal(replay[name][episode, last + 1 - real : last + 1]), name
    assert len(row_of) == 8


@both_contexts
def test_advantages_are_normalised_over_the_batch(context_length):
    algorithm, simulator = ppo(context_length), Witness(box=1.1)
    seen = spied(algorithm)
    for _ in range(2):
        algorithm.iterate(simulator)
    for batch in seen:
        chosen = batch.advantages[batch.own(context_length).mask]
        assert abs(chosen.mean()) < 1e-5
        assert chosen.std() == pytest.approx(1, abs=1e-5)
    assert len(seen) == 16


# --- line 6: ratios -----------------------------------------------------------------------------------------------


@both_contexts
def test_ratios_are_one_in_the_first_update(context_length):
    algorithm, simulator = ppo(context_length), Witness(box=1.3)
    seen = spied(algorithm)
    for _ in range(3):
        assert algorithm.iterate(simulator)["train/fresh_ratio_error"] <= 1e-5
    first = seen[0].metrics  # all of it is fresh: one ratio an action, each of them 1
    assert first["train/ratio_max"] == pytest.approx(1, abs=1e-5)
    assert first["train/ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert first["train/clip_fraction"] == 0
    later = seen[8].metrics  # half of it is an iteration old
    assert later["train/ratio_max"] > 1.05


@pytest.mark.parametrize("ratio", ["sequence", "geometric"])
@both_contexts
def test_ratios_of_windows_have_the_mean_advantage_of_their_actions(context_length, ratio):
    length = 4
    token = ppo(context_length, window_length=length, updates_per_iteration=1)
    window = ppo(context_length, window_length=length, updates_per_iteration=1, update={"ratio": ratio})
    batches = []
    for algorithm in (token, window):
        seen = spied(algorithm)
        row = algorithm.iterate(Witness(box=0.9))
        assert row["train/fresh_ratio_error"] <= 1e-5
        batches.append(seen[0])
    theirs, ours = batches
    assert theirs.steps.mask.equal(ours.steps.mask)  # the same windows
    mask = ours.own(context_length).mask
    assert mask.shape == (64, length)
    assert not mask.all()
    mean = torch.stack([row[real].mean() for row, real in zip(theirs.advantages, mask)])
    torch.testing.assert_close(ours.advantages, (mean - mean.mean()) / mean.std(), atol=1e-4, rtol=1e-4)


def test_ppo_learns_by_ratios_of_windows():
    algorithm, simulator = ppo(3, window_length=3, seed=1, update={"ratio": "sequence"}), PointMass()
    for _ in range(18):
        algorithm.iterate(simulator)
    assert mean_return(algorithm.policy) > -6


def test_only_the_first_update_vouches_for_fresh_ratios():
    algorithm, simulator = ppo(batch_size=256), Witness()
    seen = spied(algorithm)
    for _ in range(2):
        algorithm.iterate(simulator)
    assert [batch.fresh is None for batch in seen] == ([False] + [True] * 7) * 2
    assert seen[0].fresh.all()
    assert 80 < seen[8].fresh.sum() < 176  # of 256; as many are old


@both_contexts
def test_relabelling_breaks_the_ratios(context_length):
    """Fig. 1 for PPO: conditioned on what was earned, it is not the policy that acted."""
    algorithm = ppo(context_length, relabel=True, return_to_go=200.0, updates_per_iteration=1)
    row = algorithm.iterate(Witness())
    assert row["train/fresh_ratio_error"] > 0.5
    assert row["train/clip_fraction"] > 0.5
    replay = algorithm.replay.rows
    achieved = replay["rewards"].flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(replay["returns_to_go"], achieved)
    asked = ppo(context_length, return_to_go=200.0).iterate(Witness())
    assert asked["train/fresh_ratio_error"] <= 1e-5


# --- trouble ------------------------------------------------------------------------------------------------------


def test_a_faulty_episode_is_not_remembered():
    algorithm = ppo(episodes_per_iteration=100, replay_capacity=100)
    row = algorithm.iterate(Witness(faults={17: 6}, broken=float("nan")))
    assert row["rollout/faulty"] == 1
    assert row["rollout/length"] == 20
    assert len(algorithm.replay) == 99
    assert algorithm.replay.rows["final_observations"].isfinite().all()


def test_too_many_faulty_episodes_stop_the_run():
    algorithm = ppo(episodes_per_iteration=100, replay_capacity=100)
    with pytest.raises(NumericError, match=r"21 of 100 walks .* in 1,601 steps"):
        algorithm.iterate(Witness(faults=dict.fromkeys(range(17, 38), 0)))


def test_no_sound_episode_at_all_stops_the_run():
    algorithm = ppo(episodes_per_iteration=2)
    with pytest.raises(NumericError, match="2 of 2 walks"):
        algorithm.iterate(Witness(faults={0: 3, 1: 0}))
    assert algorithm.value is None
