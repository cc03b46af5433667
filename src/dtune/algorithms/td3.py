"""Twin critics of a decision transformer, learned as TD3 does (Fujimoto et al., 2018; Yan et al., 2024).

y = r + γ (1 - terminated) min(Q₁', Q₂')(s', clip(tanh μ'(context') + clip(σε, ±c), ±1)), primes being slow copies.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dtune.checks import above_zero, finite, not_negative
from dtune.data.datasets import Dataset
from dtune.data.transitions import Transitions, sample_transitions
from dtune.errors import ConfigError, NumericError
from dtune.functional.bellman import smoothed_actions, soft_update, td_target, twin_loss
from dtune.functional.objectives import masked_mean
from dtune.models.critics import TwinCritic, initialise_linear
from dtune.models.device import device_of
from dtune.models.policy import TrainablePolicy, at_context, check_learns_from


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """How the critics are learned. Defaults are Yan et al.'s for Hopper, Walker2d and Ant."""

    width: int = 256
    """Units in each of the two hidden layers."""
    layer_norm: bool = False
    """LayerNorm in the critics (Adroit and AntMaze)."""
    learning_rate: float = 1e-3
    """AdamW's step size."""
    weight_decay: float = 0.01
    """Decoupled weight decay; PyTorch's default, which the original code leaves in place."""
    gamma: float = 0.99
    """Discount factor, γ."""
    polyak: float = 0.005
    """How far the slow copies of critics and policy move at a time, τ."""
    policy_interval: int = 2
    """Critic steps to one move of the slow copies (and, in ODT+TD3, to one step of the policy), d."""
    smoothing_std: float = 0.2
    """Deviation of the noise on target actions, σ; actions lie in [-1, 1]."""
    smoothing_limit: float = 0.5
    """Where that noise is cut off, c."""
    reward_scale: float = 1.0
    """Rewards are multiplied by it for the critics, and for nothing else."""
    reward_shift: float = 0.0
    """Then this is added (AntMaze: -1, so that waiting costs something)."""
    offline_updates: int = 10_000
    """Critic steps on the offline data before the first iteration."""

    def __post_init__(self) -> None:
        finite(self)
        above_zero(self, "width", "learning_rate", "polyak", "policy_interval", "reward_scale")
        not_negative(self, "weight_decay", "smoothing_std", "smoothing_limit", "offline_updates")
        if not (0 <= self.gamma <= 1 and self.polyak <= 1):
            raise ConfigError(f"gamma and polyak are shares in [0, 1], got {self.gamma} and {self.polyak}")


class TD3Critic:
    """Q₁ and Q₂ of a policy, with slow copies of both and of the policy.

    Attributes:
        network: Q₁ and Q₂.
        updates: gradient steps taken.
    """

    def __init__(self, policy: TrainablePolicy, config: CriticConfig, dataset: Dataset, generator: torch.Generator):
        check_learns_from(policy, dataset)
        observation_dim = dataset.observations.shape[1]
        self.config = config
        self.network = TwinCritic(observation_dim, policy.action_dim, width=config.width, layer_norm=config.layer_norm)
        initialise_linear(self.network, generator)
        self.network.set_statistics(*dataset.observation_statistics())
        self.network.to(device_of(policy))
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.target = deepcopy(self.network).requires_grad_(False)
        self.target_policy = deepcopy(policy).requires_grad_(False).eval()
        self.updates = 0

    def learn_offline(
        self,
        policy: TrainablePolicy,
        dataset: Dataset,
        returns_to_go: Float[Tensor, "steps"],
        *,
        batch_size: int,
        length: int,
        history: int,
        generator: torch.Generator,
    ) -> None:
        """`offline_updates` steps on recorded episodes, for a `policy` that stays as it is; then fresh slow copies."""
        for _ in range(self.config.offline_updates):
            batch = sample_transitions(dataset, returns_to_go, batch_size, length, generator, history=history)
            self.step(batch, generator)
            if self.updates % self.config.policy_interval == 0:
                self.follow(policy)
        self.target.load_state_dict(self.network.state_dict())
        self.target_policy.load_state_dict(policy.state_dict())

    @torch.no_grad()
    def targets(self, batch: Transitions, generator: torch.Generator) -> Float[Tensor, "batch own"]:
        """y of each step to learn from; of no meaning where `known` is False."""
        config, own, following = self.config, batch.own, batch.following
        with at_context(self.target_policy, following.mask.shape[1]):
            actions = self.target_policy(following).mode[:, batch.history :]
        noise = torch.randn(actions.shape, generator=generator)
        actions = smoothed_actions(actions, noise, std=config.smoothing_std, limit=config.smoothing_limit)
        values = self.target(following.observations[:, batch.history :], actions).amin(0)
        return td_target(
            config.reward_scale * own.rewards + config.reward_shift, batch.terminated, values, config.gamma
        )

    def step(self, batch: Transitions, generator: torch.Generator) -> dict[str, float]:
        """One gradient step of both critics.

        Raises:
            NumericError: if the loss is not finite; nothing has been changed then.
        """
        own, targets = batch.own, self.targets(batch, generator)
        values = self.network(own.observations, own.actions)
        loss = twin_loss(values, targets, batch.known)
        if not torch.isfinite(loss):
            raise NumericError(
                f"the critics' loss stopped being finite at critic update {self.updates}: lower critic.learning_rate,"
                " or critic.reward_scale, in a new run that begins with the last checkpoint"
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.updates += 1
        mean = masked_mean(values[0].detach(), batch.known)
        return {"train/critic_loss": loss.item(), "train/critic_value": mean.item()}

    def follow(self, policy: TrainablePolicy) -> None:
        """Moves the slow copies a little towards the critics and `policy`."""
        for target, source in ((self.target, self.network), (self.target_policy, policy)):
            soft_update(list(target.parameters()), list(source.parameters()), self.config.polyak)

    def state_dict(self) -> dict[str, Any]:
        """The critics, the slow copies of them and of the policy, the optimizer."""
        return {
            "network": self.network.state_dict(),
            "target": self.target.state_dict(),
            "target_policy": self.target_policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name in ("network", "target", "target_policy", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.updates = state["updates"]
