import math

import pytest
import torch
from constant import Constant
from learners import GOAL, Witness, odt_td3, seeded, supervised, walks_home
from pointmass import PointMass, TinyPolicy

from dtune.algorithms.odt import ODT, ODTConfig
from dtune.algorithms.odt_td3 import ODTTD3, ODTTD3Config
from dtune.algorithms.supervised import SupervisedConfig
from dtune.algorithms.td3 import CriticConfig

PULL = torch.tensor([0.5, -2.0])


def constant(action_limit: float = 1.0, **changes) -> ODTTD3:
    """A policy of one mean, and critics that would have it go along `PULL`."""
    update = SupervisedConfig(
        context_length=4, optimizer="adamw", batch_size=16, grad_norm_clip=1e9, updates_per_iteration=1,
        action_limit=action_limit,
    )  # fmt: skip
    config = ODTTD3Config(
        return_to_go=GOAL, context_length=1, update=update, critic=CriticConfig(offline_updates=0), **changes
    )
    algorithm = ODTTD3(Constant(0.4), config, walks_home(), seeded())
    algorithm.critic.network = lambda _, actions: torch.stack([actions @ PULL, -actions @ PULL])
    algorithm.critic.step = lambda batch, generator: {}
    algorithm.critic.follow = lambda policy: None
    return algorithm


def test_the_policys_gradient_is_that_of_imitation_and_of_q():
    """d/dμ of c·E[-mean (tanh μ - a)²] + α·E[w·tanh μ], by hand, over the windows' real steps alone."""
    algorithm = constant(rl_coef=0.1, supervised_coef=3.0)
    batches, draw = [], algorithm._draw
    algorithm._draw = lambda: batches.append(draw()) or batches[-1]
    algorithm._improve()
    steps = batches[-1].steps  # of the d batches, the last
    assert len(batches) == 2
    assert not steps.mask.all()
    mode = math.tanh(0.4)
    imitation = -(2 / 2) * (mode - steps.actions[steps.mask].mean(0))
    expected = (3.0 * imitation + 0.1 * PULL) * (1 - mode**2)
    assert algorithm.policy.mean.grad.allclose(-expected, atol=1e-6)
    assert algorithm.policy.log_std.grad is None  # deterministic: nothing asks for a deviation


def test_the_stochastic_kind_imitates_by_likelihood_and_keeps_its_entropy():
    algorithm = constant(rl_coef=0.1, stochastic=True)
    row = algorithm._improve()
    assert algorithm.policy.log_std.grad.abs().min() > 0
    assert row["train/entropy_coef"] != pytest.approx(0.1, rel=1e-6)
    still = constant(rl_coef=0.1)
    before = still.update.entropy_dual.coef
    assert "train/entropy_coef" not in still._improve()
    assert still.update.entropy_dual.coef == before


def test_the_stochastic_kind_imitates_inside_the_limit_of_actions():
    """d/dμ log π = E[(u - μ) / σ²], u the raw actions, here nearer to 0 than they were taken."""
    algorithm = constant(rl_coef=0.0, stochastic=True, action_limit=0.3)
    steps = algorithm._draw().steps
    algorithm._objective(steps, algorithm.policy(steps))[0].backward()
    bound = math.atanh(0.3)
    raw, std = steps.raw_actions[steps.mask], algorithm.policy.log_std.exp()
    assert (raw.abs() > bound).any()
    assert algorithm.policy.mean.grad.allclose((raw.clamp(-bound, bound).mean(0) - 0.4) / std**2, atol=1e-5)


def test_the_windows_are_relabelled():
    """Asked for -3, the walks earn some -15: the policy is trained on the latter."""
    algorithm, seen = odt_td3(replay_capacity=2, update={"context_length": 4}), []  # what was walked, and no more
    draw = algorithm._draw
    algorithm._draw = lambda: seen.append(draw()) or seen[-1]
    algorithm.iterate(simulator := Witness())
    earned = {}
    walk = simulator.collected[0]
    for row in range(2):
        for step in range(20):
            earned[tuple(walk.observations[row, step].float().tolist())] = walk.rewards[row, step:].sum().item()
    steps = seen[-1].steps
    for state, asked in zip(steps.observations[steps.mask], steps.returns_to_go[steps.mask], strict=True):
        assert asked.item() == pytest.approx(earned[tuple(state.tolist())], abs=1e-3)


def test_explores_by_noise_on_the_mode():
    for std in (0.0, 0.1):
        algorithm = odt_td3(exploration_noise=std, rl_coef=0.0, replay_capacity=400, episodes_per_iteration=200)
        policy = TinyPolicy()  # as it is before it learns
        algorithm.iterate(simulator := Witness())
        walk = simulator.collected[0]
        context = algorithm.replay.dataset.windows(torch.arange(15, 215), torch.zeros(200, dtype=torch.long), 1)
        context.returns_to_go[:] = GOAL
        with torch.no_grad():
            mode = policy(context).mode.squeeze(1)
        assert (walk.actions[:, 0] - mode).std().item() == pytest.approx(std, abs=0.01)
        assert (walk.actions[:, 0] - mode).mean().abs() < 0.02


@pytest.mark.parametrize(("ends", "terminated"), [(True, 2), (False, 0)])
def test_whether_the_clock_counts_as_an_end(ends, terminated):
    algorithm = odt_td3(time_limits_end=ends, rl_coef=0.0, replay_capacity=2)
    algorithm.iterate(PointMass())
    held = algorithm.replay.dataset
    assert int(held.terminated.sum()) == terminated
    assert held.terminated[held.starts + held.lengths - 1].all() == ends


def test_critics_step_several_times_to_one_of_the_policy_and_learn_offline_first():
    algorithm = odt_td3(critic=CriticConfig(width=8, policy_interval=3, offline_updates=5))
    rows = [algorithm.iterate(PointMass()) for _ in range(2)]
    assert [row["count/gradient_steps"] for row in rows] == [20, 40]
    assert [row["count/critic_steps"] for row in rows] == [5 + 60, 5 + 120]
    slow, now = algorithm.critic.target_policy.parameters(), algorithm.policy.parameters()
    assert not any(a.equal(b) for a, b in zip(slow, now, strict=True))


def test_without_reinforcement_it_is_odt():
    plain = odt_td3(rl_coef=0.0, stochastic=True, replay_capacity=20)
    config = ODTConfig(
        return_to_go=GOAL, online_return_to_go=GOAL, context_length=1, episodes_per_iteration=2, replay_capacity=20,
        pretraining_updates=0, update=supervised().config,
    )  # fmt: skip
    odt = ODT(TinyPolicy(), config, walks_home(), seeded())
    for algorithm in (plain, odt):
        algorithm.generator.manual_seed(4)  # critics have drawn from it
        algorithm.iterate(PointMass())
    assert plain.critic.updates == 0
    for a, b in zip(plain.policy.parameters(), odt.policy.parameters(), strict=True):
        assert a.allclose(b, atol=1e-6)


def test_the_warm_up_goes_on_from_pretraining():
    update = {"learning_rate": 1.0e-3, "warmup_updates": 80, "updates_per_iteration": 10}
    algorithm = odt_td3(pretraining_updates=40, rl_coef=0.0, update=update)
    assert algorithm.iterate(PointMass())["train/learning_rate"] == pytest.approx(1e-3 * 50 / 80)
