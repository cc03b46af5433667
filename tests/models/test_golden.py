"""The network at the paper's size, against numbers that Hugging Face's GPT-2 gave for the same weights."""

import json
from pathlib import Path

import torch
from golden.decision_transformer import ACTION, HEADS, LAYERS, OBSERVATION, TIME, WIDTH, inputs, weights

from dtune.data.steps import Steps
from dtune.models.decision_transformer import (
    LOG_STD_MAX,
    LOG_STD_MIN,
    DecisionTransformer,
    DecisionTransformerConfig,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "decision_transformer.json").read_text())


@torch.no_grad()
def test_the_forward_pass_is_gpt_2s():
    config = DecisionTransformerConfig(
        observation_dim=OBSERVATION, action_dim=ACTION, context_length=TIME, width=WIDTH, layers=LAYERS, heads=HEADS
    )
    policy = DecisionTransformer(config)
    policy.load_state_dict(weights() | {"observation_mean": torch.zeros(11), "observation_std": torch.ones(11)})
    returns, observations, actions, mask = inputs()
    zeros = torch.zeros(mask.shape)
    steps = Steps(
        observations=observations, actions=actions, raw_actions=actions.atanh(), rewards=zeros, log_probs=zeros,
        returns_to_go=returns / config.return_scale, timesteps=zeros.long(), mask=mask,
    )  # fmt: skip
    distribution = policy(steps)
    mean, raw = (torch.tensor(GOLDEN[name]) for name in ("mean", "log_std"))
    log_std = LOG_STD_MIN + (LOG_STD_MAX - LOG_STD_MIN) * (raw.tanh() + 1) / 2
    assert mean[mask].std() > 0.1  # numbers that say something
    torch.testing.assert_close(distribution.mean[mask], mean[mask], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(distribution.std.log()[mask], log_std[mask], atol=2e-5, rtol=1e-5)
