"""Random things for tests, the same each time."""

import torch

from dtune.data.steps import Steps


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw_steps(rows: int, time: int, observation_dim: int = 2, action_dim: int = 2, *, seed: int = 0) -> Steps:
    """Steps of numbers as large as an environment's: returns in the thousands, nothing masked."""
    generator = seeded(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(rows, time, *shape, generator=generator)

    raw = normal(action_dim)
    return Steps(
        observations=2 * normal(observation_dim) + 1,
        raw_actions=raw,
        actions=raw.tanh(),
        rewards=normal(),
        returns_to_go=3000 + 2000 * normal(),
        log_probs=normal(),
        timesteps=torch.randint(1000, (rows, time), generator=generator),
        mask=torch.ones(rows, time, dtype=torch.bool),
    )
