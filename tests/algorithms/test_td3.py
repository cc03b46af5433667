"""TD3's critics, on a chain of two states whose values can be written down."""

import math

import pytest
import torch
from constant import Constant
from learners import same_state, seeded

from dtune.algorithms.td3 import CriticConfig, TD3Critic
from dtune.data.datasets import Dataset
from dtune.data.transitions import sample_transitions
from dtune.errors import DataError, NumericError

GAMMA = 0.5


def chain(episodes: int = 8) -> Dataset:
    """State 0, where 1 is earned, then state 1, where 2 is earned and the task ends; whatever one does."""
    state = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(episodes, 1)
    return Dataset(
        observations=state,
        actions=2 * torch.rand(2 * episodes, 2, generator=seeded(3)) - 1,
        rewards=torch.tensor([1.0, 2.0]).repeat(episodes),
        terminated=torch.tensor([False, True]).repeat(episodes),
        lengths=torch.full((episodes,), 2),
        name="chain",
    )


def critic(data: Dataset, policy: Constant | None = None, **changes) -> TD3Critic:
    config = CriticConfig(**{"width": 16, "gamma": GAMMA, "learning_rate": 1e-2, "offline_updates": 300, **changes})
    return TD3Critic(policy or Constant(), config, data, seeded())


def drawn(data: Dataset, count: int = 16):
    return sample_transitions(data, data.returns_to_go(), count, 1, seeded(1))


def test_the_target_is_that_of_td3():
    data, mean = chain(), 0.3
    learner, batch = critic(data, Constant(mean), reward_scale=10.0, reward_shift=-1.0), drawn(chain())
    asked = []

    def values(observations, actions):
        asked.append(actions)
        return torch.stack([observations[..., 0] + actions.sum(-1), observations[..., 0] + 3 * actions.sum(-1)])

    learner.target = values
    got = learner.targets(batch, seeded(2)).squeeze(1)
    noise = torch.randn(16, 1, 2, generator=seeded(2))
    action = (math.tanh(mean) + (0.2 * noise).clamp(-0.5, 0.5)).clamp(-1, 1)
    assert asked[0].allclose(action)
    last = batch.steps.observations[:, 0, 0] == 1
    assert 0 < last.sum() < 16
    smaller = 1 + torch.minimum(action.sum(-1), 3 * action.sum(-1)).squeeze(1)  # in state 1
    assert got[last].allclose(torch.tensor(10 * 2.0 - 1))
    assert got[~last].allclose(10 * 1.0 - 1 + GAMMA * smaller[~last])


@pytest.mark.parametrize("cut", [False, True], ids=["terminated", "cut by the clock"])
def test_values_converge(cut):
    """1 + γ·2 in state 0 and 2 in state 1; where the clock cut state 1's step, nothing is learned from it."""
    data = chain()
    if cut:
        data.terminated[:] = False
        data.rewards[1::2] = 1000.0
    learner = critic(data, polyak=0.05)
    learner.learn_offline(
        Constant(), data, data.returns_to_go(), batch_size=32, length=1, history=0, generator=seeded(1)
    )
    values = learner.network(data.observations, data.actions)
    if cut:
        assert values.abs().max() < 10
    else:
        assert values[:, 0::2].sub(1 + GAMMA * 2).abs().max() < 0.15
        assert values[:, 1::2].sub(2).abs().max() < 0.15
    assert learner.updates == 300
    assert same_state(learner.target.state_dict(), learner.network.state_dict())


def test_slow_copies_move_by_their_share():
    learner, policy = critic(chain(), polyak=0.25), Constant(2.0)
    before = [parameter.clone() for parameter in learner.target.parameters()]
    learner.step(drawn(chain()), seeded(1))
    assert all(a.equal(b) for a, b in zip(before, learner.target.parameters(), strict=True))
    learner.follow(policy)
    for old, new, source in zip(before, learner.target.parameters(), learner.network.parameters(), strict=True):
        assert new.allclose(old + 0.25 * (source - old))
    assert learner.target_policy.mean.allclose(torch.tensor(0.5))
    assert not learner.target_policy.training


@pytest.mark.parametrize(("interval", "moved"), [(300, True), (301, False)])
def test_offline_they_move_every_few_steps_and_begin_afresh_afterwards(interval, moved):
    data, calls = chain(), []
    learner = critic(data, policy_interval=interval)
    learner.follow = calls.append
    policy = Constant(1.0)
    learner.learn_offline(policy, data, data.returns_to_go(), batch_size=2, length=1, history=0, generator=seeded())
    assert bool(calls) == moved
    assert learner.target_policy.mean.equal(policy.mean)


def test_broken_rewards_stop_the_run_with_the_critics_as_they_were():
    data = chain()
    data.rewards[0] = math.nan
    learner = critic(data)
    before = learner.state_dict()
    with pytest.raises(NumericError, match=r"critic update 0: lower critic\.learning_rate"):
        learner.step(drawn(data, 64), seeded(1))
    assert same_state(learner.state_dict(), before)


def test_data_of_another_task_are_refused():
    data = chain()
    narrow = Dataset(**{**{name: getattr(data, name) for name in ("observations", "rewards", "terminated", "lengths")},
                        "actions": data.actions[:, :1], "name": "narrow"})  # fmt: skip
    with pytest.raises(DataError, match=r"narrow has .* actions of 1 numbers .* 2 are needed"):
        critic(narrow)
