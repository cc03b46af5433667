"""The methods there are, and how the algorithm of a config is made."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dtune.algorithms.grpo import GRPO, GRPOConfig
from dtune.algorithms.iql import IQL, IQLConfig, make_policy
from dtune.algorithms.odt import ODT, ODTConfig
from dtune.algorithms.odt_td3 import ODTTD3, ODTTD3Config
from dtune.algorithms.ppo import PPO, PPOConfig
from dtune.algorithms.pretrained import Pretrained, PretrainedConfig
from dtune.algorithms.q_guided import QGuidedConfig, QGuidedGRPO
from dtune.experiments.loop import Algorithm
from dtune.experiments.policies import StoredPolicy


@dataclass(frozen=True, kw_only=True)
class Method:
    """How the algorithm of a config is made."""

    name: str
    """What people call it."""
    make: Callable[..., Algorithm]
    """Of policy, config and generator."""
    alone: bool = False
    """Whether ranks would repeat all that it does, so that several are refused."""
    offline: bool = False
    """Whether it is given the offline dataset, too, as `dataset=`."""
    policy: Callable[[Any, int, int, torch.Generator], StoredPolicy] | None = None
    """Makes the policy it begins with, of its config and the sizes of observations and actions; None: pretrained."""


ALGORITHMS: dict[type, Method] = {
    GRPOConfig: Method(name="GRPO-DT", make=GRPO),
    PPOConfig: Method(name="PPO-DT", make=PPO),
    QGuidedConfig: Method(name="Q-guided GRPO-DT", make=QGuidedGRPO, offline=True),
    ODTConfig: Method(name="ODT", make=ODT, offline=True),
    ODTTD3Config: Method(name="ODT+TD3", make=ODTTD3, offline=True),
    IQLConfig: Method(name="IQL", make=IQL, alone=True, offline=True, policy=make_policy),
    PretrainedConfig: Method(name="DT", make=Pretrained),
}
