"""Walking by a policy's faster way to act."""

import pytest
import torch
from draws import seeded
from pointmass import PointMass, TinyPolicy

from dtune.data.steps import Steps, concatenate, empty_steps
from dtune.envs import rollout as module
from dtune.envs.rollout import MIN_ROWS, Rollout
from dtune.envs.tasks import make_simulator
from dtune.models.decision_transformer import DecisionTransformer, DecisionTransformerConfig
from dtune.models.distributions import TanhNormal

contexts = pytest.mark.parametrize("context", [1, 3])


class Fast(TinyPolicy):
    """Acts a little differently from what it answers, so that the two can be told apart; writes down who is asked."""

    def __init__(self, context=1):
        super().__init__(context, seed=3)
        self.made, self.acted, self.asked = [], [], []

    def acting(self, dtype=torch.float32):
        self.made.append(dtype)

        def act(window: Steps) -> TanhNormal:
            self.acted.append(tuple(window.mask.shape))
            answer = super(Fast, self).forward(window)[:, -1]
            return TanhNormal(answer.mean + 0.01, answer.std)

        return act

    def forward(self, context):
        self.asked.append(len(context.mask))
        return super().forward(context)


def begin(policy, count=20, **world):
    return Rollout.begin(policy, PointMass(**world), count, 15.0, seeded(1))


@contexts
def test_every_step_is_acted_by_the_fast_way_made_anew_for_each_advance(context):
    policy = Fast(context)
    rollout = begin(policy)
    first, second = rollout.advance(4, log_probs=False), rollout.advance(3, log_probs=False, dtype=torch.bfloat16)
    assert policy.made == [torch.float32, torch.bfloat16]
    assert policy.acted == [(20, context)] * 7
    assert not policy.asked
    walked = concatenate([empty_steps(20, context - 1, 2, 2), first, second], 1)
    expected = TinyPolicy(context, seed=3)(walked.windows(context))[:, -1].mean + 0.01
    torch.testing.assert_close(walked.raw_actions[:, context - 1 :].flatten(0, 1), expected)
    assert not walked.log_probs.any()


@contexts
@pytest.mark.parametrize("box", [None, 1.0])
def test_log_probabilities_are_the_policys_own_from_the_windows_it_acted_on(monkeypatch, context, box):
    monkeypatch.setattr(module, "MAX_ROWS", 50)
    policy = Fast(context)
    rollout = begin(policy, box=box)
    before = rollout.advance(5, generator=seeded(2))
    walked = rollout.advance(9, generator=seeded(3))
    assert walked.mask.any()
    assert walked.mask.all() == (box is None)
    assert min(policy.asked) >= MIN_ROWS
    assert max(policy.asked) <= 50
    whole = concatenate([empty_steps(20, context - 1, 2, 2), before, walked], 1)
    mask = whole.mask[:, context - 1 :].flatten()
    windows = whole.windows(context).map(lambda x: x[mask])
    expected = TinyPolicy(context, seed=3)(windows)[:, -1].base_log_prob(windows.raw_actions[:, -1])
    own = torch.cat([before.log_probs, walked.log_probs], 1).flatten()
    torch.testing.assert_close(own[mask], expected)
    assert not own[~mask].any()


def test_where_all_have_ended_there_is_nothing_to_look_at_again():
    policy = Fast()
    rollout = begin(policy, count=3)
    rollout.advance(20)
    policy.asked.clear()
    assert not rollout.advance(2).log_probs.any()
    assert not policy.asked


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_change_no_walk(one_thread, dtype):
    config = DecisionTransformerConfig(observation_dim=11, action_dim=3, context_length=1, layers=2, width=256)
    policy, walks = DecisionTransformer(config, seeded(0)), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        rollout = Rollout.begin(policy, make_simulator("hopper", threads), 70, 3600.0, seeded(1))
        walks.append(rollout.advance(12, generator=seeded(2), dtype=dtype))
    assert walks[0].mask[:, 6].any()
    for name, values in vars(walks[0]).items():
        assert torch.equal(values, getattr(walks[1], name)), name
