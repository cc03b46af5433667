"""GRPO-DT in Gymnasium environments that dtune has never heard of, from nothing but random actions.

    python examples/gymnasium_env.py Pendulum-v1             # to above -300; random actions earn -1200
    python examples/gymnasium_env.py InvertedPendulum-v5     # to above 900 of 1000; random actions earn 6

Records episodes of random actions, pretrains a small decision transformer on them, finetunes it online: below two
minutes of processor time each (one core of an AMD EPYC, 2026-11-20).
"""

import sys
from dataclasses import dataclass

import torch

import dtune
from dtune.data.columns import make_dataset
from dtune.data.generate import record_random


@dataclass(frozen=True, kw_only=True)
class Settings:
    passes_at: float  # the return this has to reach
    pretraining: dtune.SupervisedConfig
    finetuning: dtune.GRPOConfig
    episodes: int = 200  # of random actions
    iterations: int = 100
    evaluation_episodes: int = 20


PRETRAINING = dtune.SupervisedConfig(
    context_length=5, optimizer="adamw", learning_rate=1e-3, warmup_updates=100, batch_size=64,
    updates_per_iteration=400,
)  # fmt: skip


def small(return_to_go: float, lookahead_length: int, **changes: float) -> dtune.GRPOConfig:
    update = dtune.UpdateConfig(
        optimizer="adamw", learning_rate=3e-4, clip_range=0.3, entropy_coef=0.025,
    )  # fmt: skip
    return dtune.GRPOConfig(**{
        "return_to_go": return_to_go, "lookahead_length": lookahead_length, "reset_trajectories": 8, "reset_points": 1,
        "subtrajectory_length": 10, "return_margin": 0.0, "subtrajectory_capacity": 512, "batch_size": 128,
        "passes": 2, "update": update, **changes,
    })  # fmt: skip


SETTINGS = {
    "Pendulum-v1": Settings(passes_at=-300, pretraining=PRETRAINING, finetuning=small(-100, 60, gamma=0.99)),
    "InvertedPendulum-v5": Settings(passes_at=900, pretraining=PRETRAINING, finetuning=small(1000, 60), iterations=60),
}


def run(name: str, settings: Settings, seed: int = 0) -> list[float]:
    """The returns of all evaluations, of 20 episodes of mean actions each."""
    generator = torch.Generator().manual_seed(seed)
    with dtune.GymnasiumSimulator(name) as simulator:
        columns = record_random(simulator, episodes=settings.episodes, generator=generator)
        dataset = make_dataset(columns, name="random actions")

        shape = dtune.DecisionTransformerConfig(
            observation_dim=simulator.observation_dim, action_dim=simulator.action_dim, layers=2, width=64,
            context_length=settings.pretraining.context_length,
        )  # fmt: skip
        policy = dtune.DecisionTransformer(shape, generator)
        policy.set_statistics(*dataset.observation_statistics())
        dtune.Supervised(policy, settings.pretraining, dataset, generator).iterate(simulator)

        algorithm = dtune.GRPO(policy, settings.finetuning, generator)
        print(f"{name}: asking for {settings.finetuning.return_to_go:g}")
        rows = dtune.finetune(
            algorithm, simulator, iterations=settings.iterations, evaluation_episodes=settings.evaluation_episodes
        )
    return [row["eval/return"] for row in rows if "eval/return" in row]


if __name__ == "__main__":
    torch.set_num_threads(1)  # small networks are slower with more
    name = sys.argv[1] if len(sys.argv) > 1 else "Pendulum-v1"
    returns = run(name, SETTINGS[name])
    print(f"{name}: return {returns[0]:.0f} before, {returns[-1]:.0f} after, {max(returns):.0f} at best")
