"""Pretraining: what is likely in the data becomes likely, with dropout that belongs to the run."""

import math
from dataclasses import replace

import pytest
import torch
from learners import parameters, reinformer, seeded, supervised, walks_home
from pointmass import PointMass

from dtune.algorithms.supervised import Supervised, SupervisedConfig
from dtune.data.datasets import Dataset
from dtune.errors import NumericError
from dtune.models.decision_transformer import DecisionTransformer, DecisionTransformerConfig
from dtune.models.lamb import Lamb


def transformer(dropout: float, context_length: int = 3) -> DecisionTransformer:
    shape = DecisionTransformerConfig(
        observation_dim=2, action_dim=2, context_length=context_length, layers=1, heads=2, width=16, dropout=dropout,
        return_scale=0.1,
    )  # fmt: skip
    return DecisionTransformer(shape, seeded(1))


def with_dropout(dropout: float, *, seed: int = 0, learning_rate: float = 3e-3, data: Dataset | None = None):
    config = SupervisedConfig(
        context_length=3, optimizer="adamw", learning_rate=learning_rate, warmup_updates=0, batch_size=16,
        updates_per_iteration=4,
    )  # fmt: skip
    return Supervised(transformer(dropout), config, data or walks_home(), seeded(seed))


def one_step() -> Dataset:
    """Every window drawn from it is the same."""
    return Dataset(
        observations=torch.tensor([[0.3, -0.2]]),
        actions=torch.tensor([[0.5, 0.1]]),
        rewards=torch.tensor([1.0]),
        terminated=torch.tensor([True]),
        lengths=torch.tensor([1]),
        name="one step",
    )


def watched(algorithm: Supervised) -> list[tuple[bool, torch.Tensor]]:
    """Of every pass through the policy from now on: whether it was training, and its means."""
    seen = []
    algorithm.policy.register_forward_hook(
        lambda module, inputs, output: seen.append((module.training, output.mean.detach().clone()))
    )
    return seen


@pytest.mark.parametrize("context_length", [1, 5])
def test_what_was_recorded_becomes_likely(context_length):
    algorithm = supervised(context_length)
    losses = [algorithm.iterate(PointMass())["train/negative_log_likelihood"] for _ in range(6)]
    assert losses[-1] < losses[0] - 1
    windows = algorithm.dataset.sample_windows(256, context_length, seeded(9))
    with torch.no_grad():
        modes = algorithm.policy(windows).mode
    assert (modes - windows.actions)[windows.mask].abs().mean() < 0.15


def test_the_likelihood_is_that_of_the_squashed_action_over_real_steps():
    algorithm = supervised(5, learning_rate=1e-12, updates_per_iteration=1, batch_size=4096)
    got = algorithm.iterate(PointMass())["train/negative_log_likelihood"]
    windows = algorithm.dataset.sample_windows(4096, 5, seeded(0))
    assert not windows.mask.all()
    with torch.no_grad():
        expected = -algorithm.policy(windows).log_prob(windows.raw_actions)[windows.mask].mean().item()
    assert got == pytest.approx(expected, rel=1e-4)


def test_the_learning_rate_warms_up_and_stays():
    algorithm = supervised(learning_rate=0.8, warmup_updates=4, updates_per_iteration=1)
    rates = [algorithm.iterate(PointMass())["train/learning_rate"] for _ in range(6)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert algorithm.update.optimizer.param_groups[0]["lr"] == rates[-1]


def test_without_warm_up_the_first_step_is_a_whole_one():
    algorithm = supervised(learning_rate=1e-3, warmup_updates=0, updates_per_iteration=1, weight_decay=0.0)
    before = parameters(algorithm.policy)
    algorithm.iterate(PointMass())
    assert (parameters(algorithm.policy) - before).abs().max() == pytest.approx(1e-3, rel=1e-2)


def test_dropout_is_on_while_training_and_off_afterwards():
    algorithm = with_dropout(0.5, learning_rate=1e-12, data=one_step())
    seen = watched(algorithm)
    algorithm.iterate(PointMass())
    assert [training for training, _ in seen] == [True] * 4
    means = torch.stack([mean for _, mean in seen])
    assert (means[0] - means[1]).abs().max() > 1e-3  # each update drops others
    assert means[0, :, -1].std(0).min() > 1e-3  # and each row
    assert not algorithm.policy.training


def test_actions_are_imitated_inside_their_limit():
    """An action of 1 is one of 0.5 with that limit, and of 1 - 1e-6, raw 7.25, without."""
    data = replace(one_step(), actions=torch.tensor([[1.0, 0.1]]))
    for limit, expected in ((0.5, 0.5), (1.0, 1 - 1e-6)):
        algorithm = Supervised(transformer(0.0), SupervisedConfig(context_length=3, action_limit=limit), data, seeded())
        imitated = algorithm.update.imitated(data.sample_windows(4, 3, seeded()))[:, -1].tanh()
        assert torch.allclose(imitated, torch.tensor([expected, 0.1]))
    assert data.sample_windows(4, 3, seeded()).raw_actions.max() > 7


@pytest.mark.parametrize("limit", [0.5, 1.0])
def test_where_actions_are_at_their_bounds_the_limit_is_what_is_learned(limit):
    data = replace(one_step(), actions=torch.tensor([[1.0, -1.0]]))
    config = SupervisedConfig(
        context_length=3, optimizer="adamw", learning_rate=0.02, warmup_updates=0, batch_size=16, action_limit=limit,
        updates_per_iteration=200,
    )  # fmt: skip
    algorithm = Supervised(transformer(0.0), config, data, seeded())
    algorithm.iterate(PointMass())
    with torch.no_grad():
        mode = algorithm.policy(data.sample_windows(1, 3, seeded()))[0, -1].mode
    assert torch.allclose(mode, limit * torch.tensor([1.0, -1.0]), atol=0.1)


def test_dropout_is_driven_by_the_runs_generator():
    ends = []
    for undisturbed, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(undisturbed)
        algorithm = with_dropout(0.5, seed=seed, learning_rate=1e-12, data=one_step())
        seen = watched(algorithm)
        algorithm.iterate(PointMass())
        ends.append(torch.stack([mean for _, mean in seen]))
    assert ends[0].equal(ends[1])
    assert not ends[0].equal(ends[2])


def test_the_global_generator_is_left_alone():
    algorithm = with_dropout(0.5)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    algorithm.iterate(PointMass())
    assert torch.get_rng_state().equal(before)


def test_a_transformer_with_dropout_trains_alike_from_the_same_seed():
    ends = []
    for undisturbed in (1, 2):
        torch.manual_seed(undisturbed)
        algorithm = with_dropout(0.3)
        rows = [algorithm.iterate(PointMass()) for _ in range(2)]
        ends.append((parameters(algorithm.policy), rows))
    assert ends[0][0].equal(ends[1][0])
    assert ends[0][1] == ends[1][1]


@pytest.mark.parametrize(("target", "sign"), [(5.0, 1), (-50.0, -1)])
def test_the_entropy_constraint_has_its_own_step(target, sign):
    algorithm = supervised(target_entropy=target, entropy_coef=0.1, entropy_coef_learning_rate=0.01)
    row = algorithm.iterate(PointMass())
    assert sign * (row["train/entropy_coef"] - 0.1) > 0.001
    assert row["train/entropy_target"] == target
    assert supervised().update.entropy_dual.target == -2


def test_entropy_is_worth_its_weight():
    """With a heavy weight the policy stays random although the recorded hand hardly shakes."""
    entropies = []
    for coef in (1e-3, 10.0):
        algorithm = supervised(entropy_coef=coef)
        for _ in range(4):
            row = algorithm.iterate(PointMass())
        entropies.append(row["train/entropy"])
    assert entropies[1] > entropies[0] + 0.5


def test_the_gradient_is_clipped_to_its_norm():
    algorithm = supervised(grad_norm_clip=1e-3, updates_per_iteration=1)
    row = algorithm.iterate(PointMass())
    assert row["train/grad_norm"] > 0.1
    norm = torch.cat([p.grad.flatten() for p in algorithm.policy.parameters() if p.grad is not None]).norm()
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_lamb_is_the_default():
    algorithm = Supervised(transformer(0.1), SupervisedConfig(), walks_home())
    assert isinstance(algorithm.update.optimizer, Lamb)
    assert algorithm.policy.context_length == SupervisedConfig().context_length


def test_a_policy_is_judged_without_dropout_before_the_first_step():
    algorithm = Supervised(transformer(0.5).train(), SupervisedConfig(), walks_home())
    assert not algorithm.policy.training


def test_data_that_are_not_finite_stop_the_run_with_the_policy_as_it_was():
    data = walks_home()
    data.observations[:, 1] = math.nan
    algorithm = with_dropout(0.5, data=data)
    before = parameters(algorithm.policy)
    with pytest.raises(NumericError, match="supervised update 0: lower the learning rate"):
        algorithm.iterate(PointMass())
    assert parameters(algorithm.policy).equal(before)
    assert not algorithm.policy.training


@pytest.mark.parametrize("expectile", [0.5, 0.99])
def test_a_reinformer_learns_an_expectile_of_what_was_earned(expectile):
    """One state, four episodes of one step with returns 0, 1, 2 and 6, each as often."""
    rewards = torch.tensor([0.0, 1.0, 2.0, 6.0])
    data = Dataset(
        observations=torch.zeros(4, 2),
        actions=torch.tensor([[0.5, -0.5], [-0.5, 0.5], [0.5, 0.5], [-0.5, -0.5]]),
        rewards=rewards,
        terminated=torch.ones(4, dtype=torch.bool),
        lengths=torch.ones(4, dtype=torch.long),
        name="four ends",
    )
    algorithm = supervised(
        policy=reinformer, return_expectile=expectile, updates_per_iteration=200, batch_size=64, grad_norm_clip=100.0
    )
    algorithm.dataset = data
    row = algorithm.iterate(PointMass())
    assert row["train/return_loss"] > 0
    with torch.no_grad():
        predicted = algorithm.policy.predict_return_to_go(data.sample_windows(1, 1, seeded()))
    grid = torch.linspace(0, 6, 6001)
    errors = rewards[:, None] - grid
    weights = torch.where(errors < 0, 1 - expectile, expectile)
    best = grid[(weights * errors.square()).mean(0).argmin()]
    assert best == pytest.approx({0.5: 2.25, 0.99: 5.853}[expectile], abs=0.02)
    assert predicted.item() == pytest.approx(best.item(), abs=0.4)


def test_a_decision_transformer_has_no_such_loss():
    assert "train/return_loss" not in with_dropout(0.0).iterate(PointMass())
