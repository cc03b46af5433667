"""The world and the policy that other tests stand on."""

import math
from dataclasses import replace

import pytest
import torch
from draws import draw_steps, seeded
from pointmass import PointMass, TinyPolicy

from dtune.envs.simulator import Restorable
from dtune.models.policy import TrainablePolicy


def test_they_are_what_the_library_asks_for():
    assert isinstance(PointMass(), Restorable)
    assert isinstance(TinyPolicy(3), TrainablePolicy)


def test_the_point_moves_pays_its_distance_and_stops_at_the_horizon():
    simulator = PointMass(horizon=2)
    start = simulator.reset(3, seeded())
    outcome = simulator.step(torch.full((3, 2), 0.5))
    assert torch.allclose(outcome.observations, start + 0.1)
    assert torch.allclose(outcome.rewards, -(start + 0.1).square().sum(1).sqrt())
    assert not (outcome.terminated | outcome.truncated | outcome.faulty).any()
    outcome = simulator.step(torch.zeros(3, 2))
    assert outcome.truncated.all()
    with pytest.raises(AssertionError, match="ended"):
        simulator.step(torch.zeros(3, 2))


def test_a_snapshot_brings_back_place_and_clock():
    simulator = PointMass(horizon=5)
    simulator.reset(3, seeded())
    moves = [torch.rand(3, 2, generator=seeded(step)) for step in range(5)]
    for move in moves[:2]:
        simulator.step(move)
    snapshot = simulator.snapshot()
    recorded = [simulator.step(move) for move in moves[2:]]
    simulator.restore(snapshot[[2, 0, 2]])
    for move, before in zip(moves[2:], recorded, strict=True):
        for ours, theirs in zip(simulator.step(move[[2, 0, 2]]), before, strict=True):
            assert torch.equal(ours, theirs[[2, 0, 2]])
    assert before.truncated.all()


def test_leaving_the_box_terminates_and_faults_come_as_planned():
    simulator = PointMass(box=1.0, faults={1: 1}, broken=math.nan)
    simulator.restore(torch.tensor([[0.9, 0, 0], [0, 0, 0], [0, 0, 0]]).double().numpy())
    first = simulator.step(torch.tensor([[1.0, 0], [0, 0], [0, 0]]))
    assert first.terminated.tolist() == [True, False, False]
    assert not first.faulty.any()
    simulator.keep(torch.tensor([1, 2]))
    second = simulator.step(torch.tensor([[0.0, 0], [0.0, 0]]))
    assert second.terminated.tolist() == second.faulty.tolist() == [True, False]
    assert second.rewards.isnan().tolist() == [True, False]
    assert simulator.stepped == [3, 2]


def test_nan_in_an_action_breaks_its_row_alone():
    simulator = PointMass()
    simulator.reset(2, seeded())
    assert simulator.step(torch.tensor([[0.0, math.nan], [0, 0]])).faulty.tolist() == [True, False]


def test_the_policy_sees_its_past_alone_and_no_padding():
    policy, context = TinyPolicy(4), draw_steps(6, 4)
    everything = policy(context)
    for time in range(1, 4):
        later = context.map(lambda x, time=time: torch.cat([x[:, :time], torch.zeros_like(x[:, time:])], 1))
        later = replace(later, mask=context.mask)
        assert torch.equal(policy(later).mean[:, :time], everything.mean[:, :time])
        assert not torch.equal(policy(context.slice_time(time)).mean[:, -1], everything.mean[:, -1])
    assert torch.equal(policy(replace(context, actions=noisy_last(context))).mean, everything.mean)
    padded = replace(context, mask=context.mask.clone())
    padded.mask[:, :2] = False
    for name in ("observations", "actions", "returns_to_go"):
        getattr(padded, name)[:, :2] = math.nan
    expected = policy(context.slice_time(2))
    assert torch.equal(policy(padded).mean[:, 2:], expected.mean)
    assert torch.equal(policy(padded).std[:, 2:], expected.std)


def noisy_last(context):
    actions = context.actions.clone()
    actions[:, -1] = 0.3
    return actions


def test_the_seed_decides_the_policy():
    one, same, other = TinyPolicy(seed=1), TinyPolicy(seed=1), TinyPolicy(seed=2)
    assert torch.equal(one(draw_steps(2, 1)).mean, same(draw_steps(2, 1)).mean)
    assert not torch.equal(one(draw_steps(2, 1)).mean, other(draw_steps(2, 1)).mean)
