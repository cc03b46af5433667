"""Writes `checkpoint_vN`, a tiny checkpoint of the present format: once for each format that is released, never again.

python tests/stored/make.py
"""

import sys
from pathlib import Path

import torch

from dtune.experiments import checkpoint
from dtune.experiments.policies import describe
from dtune.models.decision_transformer import DecisionTransformer, DecisionTransformerConfig


def make(folder: Path) -> None:
    """A policy of 3 observations and 2 actions, and one of everything that a state may hold."""
    shape = DecisionTransformerConfig(observation_dim=3, action_dim=2, context_length=2, layers=1, heads=1, width=4)
    policy = DecisionTransformer(shape, torch.Generator().manual_seed(0))
    policy.set_statistics(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 2.0]))
    state = {
        "algorithm": {"policy": policy.state_dict(), "odd": {0: torch.arange(3), "$": (1, None, float("-inf"))}},
        "progress": {"iteration": 7, "best": 1.5, "best_iteration": 4},
    }
    checkpoint.save(folder, 7, state, best=7, documents=describe(policy, dataset="hopper-random-v2"))


if __name__ == "__main__":
    place = Path(__file__).parent / f"checkpoint_v{checkpoint.VERSION}"
    if place.exists():
        sys.exit(f"{place} is there: what was released stays as it is")
    make(place)
