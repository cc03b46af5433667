"""Every algorithm of decision transformers moves both families of networks, and goes on with them bit for bit."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from learners import (
    CRITIC,
    decision_transformer,
    grpo,
    odt,
    odt_td3,
    parameters,
    ppo,
    q_guided,
    reinformer,
    same_state,
    supervised,
)
from pointmass import PointMass

from dtune.experiments import checkpoint

SMALLER = {odt_td3: {"critic": replace(CRITIC, offline_updates=10)}, q_guided: {"critic_updates": 5}}
METHODS: list[Callable[..., Any]] = [grpo, ppo, q_guided, odt, odt_td3, supervised]


@pytest.mark.parametrize("family", [decision_transformer, reinformer], ids=lambda make: make.__name__)
@pytest.mark.parametrize("method", METHODS, ids=lambda make: make.__name__)
def test_a_run_of_either_family_moves_it_and_goes_on_bit_for_bit(method, family, tmp_path):
    def make(seed):
        return method(4, policy=family, seed=seed, **SMALLER.get(method, {}))

    undisturbed, simulator = make(0), PointMass(box=1.3)
    before = parameters(undisturbed.policy)
    undisturbed.iterate(simulator)
    assert not parameters(undisturbed.policy).equal(before)
    path = checkpoint.save(tmp_path, 1, {"algorithm": undisturbed.state_dict()})
    expected = [undisturbed.iterate(simulator) for _ in range(2)]
    assert all(math.isfinite(value) for row in expected for value in row.values())
    continued, simulator = make(7), PointMass(box=1.3)
    continued.load_state_dict(checkpoint.load(path)["algorithm"])
    assert [continued.iterate(simulator) for _ in range(2)] == expected
    assert same_state(continued.state_dict(), undisturbed.state_dict())
    assert not undisturbed.policy.training
