"""The online decision transformer: what it asks for, what it remembers, and that it imitates what was earned."""

import pytest
import torch
from learners import GOAL, Witness, odt, seeded, walks_home
from pointmass import PointMass, TinyPolicy

from dtune.algorithms.collect import collect_dataset
from dtune.algorithms.metrics import Metrics
from dtune.algorithms.odt import ODTConfig
from dtune.errors import NumericError
from dtune.models.lamb import Lamb


def batches(algorithm) -> list:
    """The windows of every update from now on, and the context length they were learned with."""
    seen, step = [], algorithm.update.step

    def spy(windows, generator):
        seen.append((windows, algorithm.policy.context_length))
        return step(windows, generator)

    algorithm.update.step = spy
    return seen


def asked(algorithm) -> list[float]:
    """The largest return-to-go of every pass through the policy while it acts."""
    seen = []
    algorithm.policy.register_forward_hook(
        lambda module, inputs, output: None if module.training else seen.append(inputs[0].returns_to_go.max().item())
    )
    return seen


@pytest.mark.parametrize(("online", "expected"), [(50.0, 50.0), (None, GOAL)])
def test_asks_for_its_own_return_while_exploring(online, expected):
    algorithm = odt(online_return_to_go=online)
    seen = asked(algorithm)
    algorithm.iterate(PointMass())
    assert seen[0] == expected


def test_explores_by_sampling():
    algorithm, simulator = odt(update={"learning_rate": 1e-12}), Witness()
    algorithm.iterate(simulator)
    walked = algorithm.replay.dataset.newest(1)
    windows = walked.windows(torch.zeros(20, dtype=torch.long), torch.arange(20), 1)
    with torch.no_grad():
        distribution = algorithm.policy(windows)
    noise = (windows.raw_actions - distribution.mean) / distribution.std
    assert 0.5 < noise.std().item() < 2


def test_what_was_earned_takes_the_place_of_what_was_asked_for():
    """Relabelling is the method's nature: the returns learned from are hindsight, at every context."""
    algorithm, simulator = odt(5, online_return_to_go=1e6), Witness()
    seen = batches(algorithm)
    algorithm.iterate(simulator)
    rewards = simulator.collected[0].rewards[0].float()
    earned = rewards.flip(0).cumsum(0).flip(0)
    row = algorithm.replay.dataset.newest(1)
    torch.testing.assert_close(row.returns_to_go(), earned)
    assert max(windows.returns_to_go.max().item() for windows, _ in seen) < 0.1


def test_acts_with_one_context_and_learns_with_another():
    algorithm = odt(2, update={"context_length": 7})
    seen = batches(algorithm)
    for _ in range(2):
        algorithm.iterate(PointMass())
        assert algorithm.policy.context_length == 2
    assert {(windows.mask.shape[1], context) for windows, context in seen} == {(7, 7)}
    lengths = torch.cat([windows.mask.sum(1) for windows, _ in seen])
    assert lengths.unique().tolist() == list(range(1, 8))  # trained on every context from 1 to 7


def test_new_trajectories_push_out_the_offline_one_of_the_lowest_return():
    algorithm = odt(replay_capacity=15)  # one has been left out by return, then fifteen fit
    offline = walks_home().returns.sort().values
    torch.testing.assert_close(algorithm.replay.dataset.returns, offline[1:])
    row = algorithm.iterate(PointMass())
    torch.testing.assert_close(algorithm.replay.dataset.returns[:-1], offline[2:])
    assert row["train/replay_trajectories"] == 15
    assert row["train/replay_return"] == pytest.approx(algorithm.replay.dataset.returns.mean().item())
    assert row["rollout/return"] == pytest.approx(algorithm.replay.dataset.returns[-1].item(), rel=1e-6)


def test_the_warm_up_goes_on_where_pretraining_left_it():
    algorithm = odt(
        pretraining_updates=4, update={"warmup_updates": 10, "learning_rate": 1.0, "updates_per_iteration": 1}
    )
    rates = [algorithm.iterate(PointMass())["train/learning_rate"] for _ in range(7)]
    assert rates == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0])


def test_the_published_settings_are_the_default():
    config = ODTConfig(return_to_go=3600.0)
    update = config.update
    assert (update.updates_per_iteration, update.batch_size, update.context_length) == (300, 256, 20)
    assert (update.learning_rate, update.weight_decay, update.grad_norm_clip) == (1e-4, 5e-4, 0.25)
    assert (update.warmup_updates, update.entropy_coef, config.replay_capacity) == (10_000, 0.1, 1000)
    assert isinstance(odt(update={"optimizer": update.optimizer}).update.optimizer, Lamb)


# Walks until there are enough steps


@pytest.mark.parametrize(("episodes", "min_steps", "expected"), [(1, 0, 1), (1, 20, 1), (1, 21, 2), (3, 10, 3)])
def test_walks_at_least_so_many_episodes_and_steps(episodes, min_steps, expected):
    """Every episode takes 20 steps here."""
    metrics = Metrics()
    metrics.begin()
    walked = collect_dataset(
        TinyPolicy(), PointMass(), metrics, seeded(), return_to_go=GOAL, episodes=episodes, min_steps=min_steps
    )
    assert len(walked) == expected
    assert metrics.end()["count/env_steps"] == walked.steps == 20 * expected


def test_an_iteration_walks_until_its_steps_suffice():
    assert odt(min_steps=45).iterate(PointMass())["count/env_steps"] == 60


def test_short_episodes_are_walked_until_their_steps_suffice():
    metrics, simulator = Metrics(), Witness(box=1.05)
    metrics.begin()
    walked = collect_dataset(TinyPolicy(), simulator, metrics, seeded(), return_to_go=GOAL, min_steps=100)
    assert 100 <= walked.steps < 100 + 20 * 2
    assert 0 < (walked.lengths < 20).sum() <= walked.terminated.sum()  # some have left the box, one at the last step
    assert metrics.end()["count/env_steps"] == sum(simulator.stepped) == walked.steps
    assert len(simulator.walks) < len(walked)  # several side by side


def test_a_world_that_is_broken_in_every_episode_stops_the_run():
    simulator = PointMass(faults={0: 3})
    with pytest.raises(NumericError, match="no episode of 4 rounds was sound"):
        odt(min_steps=10).iterate(simulator)
