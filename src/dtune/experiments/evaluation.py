"""How good a policy is: episodes of mean actions from starts that are always the same."""

from dataclasses import dataclass

import torch

from dtune.algorithms.metrics import too_many_faults
from dtune.envs.collect import collect_episodes
from dtune.envs.simulator import Simulator
from dtune.envs.tasks import normalized_score, succeeded
from dtune.errors import ConfigError, NumericError
from dtune.models.policy import Policy

EVALUATION_SEED = 1_000_003
"""Evaluations of a run all start from the same states, so that they can be compared with each other."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How a policy is judged: mean actions, a fixed set of starts."""

    simulator: Simulator
    """Where."""
    return_to_go: float
    """Return asked for, in environment reward units."""
    episodes: int = 20
    """How many."""
    task: str | None = None
    """Name of a task or dataset with reference scores; None leaves the normalised score out."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ConfigError(f"an evaluation needs at least 1 episode, got {self.episodes}")
        if not abs(self.return_to_go) <= torch.finfo(torch.float32).max:
            raise ConfigError(f"a return to ask for is a finite number of float32, got {self.return_to_go}")

    def __call__(self, policy: Policy) -> dict[str, float]:
        """Returns, lengths, D4RL-normalised scores and the share of successes by metric key; ± is over episodes."""
        generator = torch.Generator().manual_seed(EVALUATION_SEED)
        walked, faulty = collect_episodes(
            policy, self.simulator, self.episodes, self.return_to_go, generator, sample=False, log_probs=False
        )
        steps = int(walked.lengths.sum() + faulty.lengths.sum())
        if not len(walked) or too_many_faults(len(faulty), self.episodes, steps):
            raise NumericError(
                f"{len(faulty)} of {self.episodes} evaluation episodes met NaN or a simulator warning: the policy or"
                " the environment has broken down; the last checkpoint is intact"
            )
        returns = walked.returns.numpy()
        metrics = {"eval/return": returns.mean(), "eval/return_std": returns.std()}
        if self.task is not None:
            scores = normalized_score(self.task, returns)
            metrics |= {"eval/normalized_score": scores.mean(), "eval/normalized_score_std": scores.std()}
            success = succeeded(self.task, walked.steps.rewards, walked.steps.mask)
            if success is not None:
                metrics["eval/success"] = success.double().mean().item()
        metrics["eval/length"] = walked.lengths.double().mean().item()
        if len(faulty):  # left out of all of the above
            metrics["eval/faulty"] = len(faulty)
        return {key: float(value) for key, value in metrics.items()}
