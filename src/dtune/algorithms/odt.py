"""The online decision transformer (Zheng et al., 2022): walk, remember, imitate what was earned.

while not finished:
    1   τ ← walk with π, asking for g_online
    2   𝒯 ← 𝒯 ∪ {τ}, where the offline trajectory of the lowest return leaves first, and then the oldest
    3   repeat 300 times: windows of 𝒯, trajectories by length, with the returns that were *achieved* (hindsight)
    4       max E[log π(a | context)] under H(π) ≥ ρ
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from dtune.algorithms.collect import collect_dataset
from dtune.algorithms.metrics import Metrics
from dtune.algorithms.supervised import SupervisedConfig, SupervisedUpdate, online_imitation
from dtune.checks import at_least, finite
from dtune.data.datasets import Dataset, drop_lowest_return
from dtune.data.trajectories import TrajectoryReplay
from dtune.envs.simulator import Simulator
from dtune.models.policy import TrainablePolicy, at_context, check_learns_from


@dataclass(frozen=True, kw_only=True)
class ODTConfig:
    """Hyperparameters of the online decision transformer. Defaults are those Yan et al. (2024) give for Hopper."""

    return_to_go: float
    """Return asked for in evaluations, in environment reward units."""
    online_return_to_go: float | None = None
    """Return asked for while exploring; the authors ask for twice as much as in evaluations. None: the same."""
    context_length: int = 5
    """Steps of history the policy reads when it acts. What it is trained on is `update.context_length`."""
    episodes_per_iteration: int = 1
    """Trajectories collected each iteration, at least."""
    min_steps: int = 0
    """Steps collected each iteration, at least: 1,000 where a trajectory may be a few steps long."""
    replay_capacity: int = 1000
    """Trajectories remembered, 𝒯, offline ones included. Raising it keeps old data longer."""
    pretraining_updates: int = 5000
    """Gradient steps of the pretraining, which the warm-up of the learning rate goes on from."""
    update: SupervisedConfig = field(default_factory=online_imitation)
    """How windows are drawn and the policy is fitted to them."""

    def __post_init__(self) -> None:
        finite(self)
        at_least(self, 1, "context_length", "episodes_per_iteration", "replay_capacity")
        at_least(self, 0, "min_steps", "pretraining_updates")


class ODT:
    """Improves `policy` in place, one `iterate` at a time. Needs no going back.

    Attributes:
        policy: the decision transformer being finetuned.
        replay: the trajectories it is fitted to.
    """

    def __init__(
        self,
        policy: TrainablePolicy,
        config: ODTConfig,
        dataset: Dataset,
        generator: torch.Generator | None = None,
    ):
        check_learns_from(policy, dataset)
        self.policy, self.config = policy.eval(), config
        policy.context_length = config.context_length
        self.generator = generator or torch.Generator().manual_seed(0)
        self.update = SupervisedUpdate(policy, config.update, config.pretraining_updates)
        self.replay = TrajectoryReplay(config.replay_capacity, drop_lowest_return(dataset))
        self.metrics = Metrics()

    def iterate(self, simulator: Simulator) -> dict[str, float]:
        """One iteration; comments name the lines above."""
        config, fit = self.config, self.config.update
        self.metrics.begin()
        walked = collect_dataset(  # 1
            self.policy,
            simulator,
            self.metrics,
            self.generator,
            return_to_go=config.return_to_go if config.online_return_to_go is None else config.online_return_to_go,
            episodes=config.episodes_per_iteration,
            min_steps=config.min_steps,
        )
        self.replay.extend(walked)  # 2
        with at_context(self.policy, fit.context_length):
            for _ in range(fit.updates_per_iteration):
                windows = self.replay.dataset.sample_windows(fit.batch_size, fit.context_length, self.generator)  # 3
                self.metrics.add_update(self.update.step(windows, self.generator))  # 4
        self.metrics.set("train/replay_trajectories", len(self.replay))
        self.metrics.set("train/replay_return", self.replay.dataset.returns.mean().item())
        return self.metrics.end()

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what the next iteration does, except the simulator and the offline dataset."""
        return {
            "policy": self.policy.state_dict(),
            "update": self.update.state_dict(),
            "replay": self.replay.state_dict(),
            "generator": self.generator.get_state(),
            "metrics": self.metrics.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name in ("policy", "update", "replay", "metrics"):
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["generator"])
