"""The row of an iteration: what is summed up, what is counted, when a run is stopped."""

import pytest
import torch

from dtune.algorithms.collect import ROUNDS, collect_sound
from dtune.algorithms.metrics import MANY_WALKS, Metrics, too_many_faults
from dtune.data.steps import Steps, empty_steps
from dtune.envs.rollout import Episodes
from dtune.errors import NumericError


def steps(*lengths: int, reward: float = 0.5, time: int = 10) -> Steps:
    made = empty_steps(len(lengths), time, 2, 2)
    made.mask[:] = torch.arange(time) < torch.tensor(lengths, dtype=torch.long)[:, None]
    made.rewards[:] = torch.where(made.mask, reward, 99.0)  # rewards in padding count nowhere
    return made


def episodes(*lengths: int, reward: float = 0.5) -> Episodes:
    count = len(lengths)
    return Episodes(
        steps(*lengths, reward=reward), torch.zeros(count, 10, 0), torch.zeros(count, 2), torch.ones(count) == 1
    )


def test_updates_are_summed_up_by_what_they_are():
    metrics = Metrics()
    for number in (1.0, 4.0, 2.0):
        metrics.add_update({"train/kl": number, "train/ratio_max": number, "train/entropy_coef": number,
                            "train/learning_rate": number})  # fmt: skip
    row = metrics.end()
    assert row["train/kl"] == pytest.approx(7 / 3)
    assert row["train/ratio_max"] == 4
    assert row["train/entropy_coef"] == 2
    assert row["train/learning_rate"] == 2
    assert row["count/gradient_steps"] == 3


def test_a_number_only_the_first_update_has_is_kept():
    metrics = Metrics()
    metrics.add_update({"train/kl": 1.0, "train/fresh_ratio_error": 0.25})
    metrics.add_update({"train/kl": 3.0})
    assert metrics.end()["train/fresh_ratio_error"] == 0.25


def test_episodes_are_described_and_counted():
    metrics = Metrics()
    metrics.count_episodes(episodes(4, 8, 6), episodes())
    row = metrics.end()
    assert row["rollout/return"] == pytest.approx(3.0)
    assert row["rollout/length"] == 6
    assert row["rollout/faulty"] == 0
    assert row["count/env_steps_trajectories"] == row["count/env_steps"] == 18


def test_the_three_columns_add_up():
    metrics = Metrics()
    metrics.count_episodes(episodes(4, 8), episodes())
    metrics.count_groups(steps(3, 3, 1), steps(10, 2, 0), 0)
    row = metrics.end()
    assert row["count/env_steps_trajectories"] == 12
    assert row["count/env_steps_subtrajectories"] == 7
    assert row["count/env_steps_lookahead"] == 12
    assert row["count/env_steps"] == 31


def test_counts_run_on_and_the_rest_starts_anew():
    metrics = Metrics()
    for _ in range(2):
        metrics.begin()
        metrics.set("rollout/dropped", 0.5)
        metrics.count_episodes(episodes(4), episodes())
        metrics.add_update({"train/kl": 1.0})
        first = metrics.end()
    assert (first["count/env_steps"], first["count/gradient_steps"]) == (8, 2)
    metrics.begin()
    metrics.add_update({"train/entropy": 1.0})
    row = metrics.end()
    assert row.keys().isdisjoint({"rollout/dropped", "rollout/return", "train/kl"})
    assert row["count/env_steps"] == 8
    assert "rollout/dropped" in first  # handed out, it stays as it was


def test_counts_are_saved_and_go_on():
    metrics, other = Metrics(), Metrics()
    metrics.count_episodes(episodes(4), episodes())
    metrics.add_update({"train/kl": 1.0})
    state = metrics.state_dict()
    other.load_state_dict(state)
    assert other.state_dict() == state
    other.count_groups(steps(2), steps(1), 0)
    other.add_update({"train/kl": 1.0})
    assert state == metrics.state_dict()  # not shared
    row = other.end()
    assert row["count/env_steps"] == 7
    assert row["count/gradient_steps"] == 2


def test_one_step_in_a_hundred_may_be_faulty():
    metrics = Metrics()
    metrics.count_episodes(episodes(*[1] * 39), episodes(3))
    metrics.count_groups(steps(*[1] * 60), steps(*[0] * 60), 0)
    row = metrics.end()
    assert row["rollout/faulty"] == 1
    assert row["count/env_steps_trajectories"] == 42  # steps of the faulty one were taken, too
    assert row["rollout/length"] == 1


@pytest.mark.parametrize(("bad_episodes", "bad_members"), [(2, 0), (0, 2), (1, 1)])
def test_more_stop_the_run(bad_episodes, bad_members):
    metrics = Metrics()
    metrics.count_episodes(episodes(*[1] * (40 - bad_episodes)), episodes(*[1] * bad_episodes))
    metrics.count_groups(steps(*[1] * 60), steps(*[0] * 60), bad_members)
    with pytest.raises(NumericError, match=r"2 of 100 walks .* in 100 steps .1% of the steps and 90% of .* check"):
        metrics.end()
    metrics.begin()  # of another iteration
    metrics.refuse_faults()


def test_long_walks_may_break_more_often_than_short_ones():
    metrics = Metrics()
    metrics.count_episodes(episodes(*[10] * 19), episodes(10, 10))  # 2 of 210 steps
    assert metrics.end()["rollout/faulty"] == 2


@pytest.mark.parametrize(("broken", "stops"), [(18, False), (19, True)])
def test_of_long_walks_nine_in_ten_may_break(broken, stops):
    assert too_many_faults(broken, 20, 20 * 400) == stops


def test_of_few_long_walks_all_may_break():
    assert not too_many_faults(MANY_WALKS - 1, MANY_WALKS - 1, MANY_WALKS * 400)
    assert too_many_faults(MANY_WALKS, MANY_WALKS, MANY_WALKS * 400)
    assert too_many_faults(1, 1, 99)


def broken(length: int) -> Episodes:
    one = torch.ones(1)
    return Episodes(steps(length, time=length), torch.zeros(1, length, 0), torch.zeros(1, 2), one == 1)


def rounds(*sound: int):
    """Walks of one episode, of as many sound ones as is said, else of a faulty one; and how many there were."""
    walked = iter(sound)

    def collect():
        done.append(1)
        return (episodes(8), episodes()) if next(walked) else (episodes(), broken(400))

    done: list[int] = []
    return collect, done


def test_walks_again_until_an_episode_is_sound():
    (collect, done), metrics = rounds(0, 0, 1, 1), Metrics()
    assert len(collect_sound(collect, metrics, remembered=0)) == 1
    assert len(done) == 3
    row = metrics.end()
    assert (row["rollout/faulty"], row["count/env_steps"]) == (2, 808)


def test_does_not_walk_again_where_episodes_are_remembered():
    (collect, done), metrics = rounds(0, 1), Metrics()
    assert len(collect_sound(collect, metrics, remembered=1)) == 0
    assert len(done) == 1


def test_some_rounds_without_a_sound_episode_are_too_many():
    (collect, done), metrics = rounds(*[0] * 10), Metrics()
    with pytest.raises(NumericError, match=f"no episode of {ROUNDS} rounds was sound"):
        collect_sound(collect, metrics, remembered=0)
    assert len(done) == ROUNDS


def test_without_a_sound_episode_there_is_no_return_to_tell():
    metrics = Metrics()
    metrics.count_episodes(episodes(), episodes(2))
    assert "rollout/return" not in metrics.values
    with pytest.raises(NumericError, match="1 of 1 walks"):
        metrics.refuse_faults()
