"""The same seed is the same run, whoever shares the work: threads of the physics, worker processes."""

from pathlib import Path

import numpy as np
import pytest
import torch

import dtune
from dtune.algorithms.grpo import GRPO, GRPOConfig
from dtune.algorithms.odt import ODT, ODTConfig
from dtune.algorithms.ppo import PPO, PPOConfig
from dtune.algorithms.supervised import SupervisedConfig
from dtune.envs.simulator import Simulator
from dtune.experiments.evaluation import Evaluation
from dtune.experiments.loop import Schedule, train
from dtune.models.decision_transformer import DecisionTransformer, DecisionTransformerConfig

WORLDS = {
    "hopper": lambda count: dtune.make_simulator("hopper", threads=count),
    "ant": lambda count: dtune.make_simulator("ant", threads=count),
    "Pendulum-v1": lambda count: dtune.GymnasiumSimulator("Pendulum-v1", workers=count, horizon=30),
}


def dataset(simulator: Simulator):
    """Numbers of the world's sizes; nobody walked them."""
    chance, rows = np.random.default_rng(0), 40
    return dtune.load_dataset(
        {
            "observations": chance.normal(size=(rows, simulator.observation_dim)),
            "actions": chance.uniform(-1, 1, (rows, simulator.action_dim)),
            "rewards": chance.normal(size=rows),
            "terminals": np.arange(rows) % 10 == 9,
            "timeouts": np.zeros(rows),
        }
    )


def learner(name: str, simulator: Simulator):
    generator = torch.Generator().manual_seed(3)
    shape = DecisionTransformerConfig(
        observation_dim=simulator.observation_dim, action_dim=simulator.action_dim, layers=1, heads=2, width=16
    )
    policy = DecisionTransformer(shape, generator)
    if name == "grpo":
        grpo = GRPOConfig(
            return_to_go=100, subtrajectory_length=4, lookahead_length=6, reset_trajectories=3, reset_points=2,
            return_margin=0.0, batch_size=16,
        )  # fmt: skip
        return GRPO(policy, grpo, generator)
    if name == "ppo":
        ppo = PPOConfig(return_to_go=100, episodes_per_iteration=5, batch_size=16, updates_per_iteration=3)
        return PPO(policy, ppo, generator)
    fit = SupervisedConfig(context_length=2, batch_size=8, updates_per_iteration=3)
    return ODT(policy, ODTConfig(return_to_go=100, episodes_per_iteration=3, update=fit), dataset(simulator), generator)


def run(folder: Path, world: str, name: str, count: int) -> dict[str, bytes]:
    simulator = WORLDS[world](count)
    train(
        learner(name, simulator),
        simulator,
        Schedule(iterations=2, evaluate_every=1),
        evaluation=Evaluation(simulator=simulator, return_to_go=100, episodes=4),
        directory=folder,
        quiet=True,
    )
    last = folder / "checkpoints" / "last"
    return {path.name: path.read_bytes() for path in (folder / "metrics.csv", *sorted(last.iterdir()))}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("world", "name"),
    [
        pytest.param(world, name, marks=[] if (world, name) == ("hopper", "grpo") else pytest.mark.slow)
        for world in WORLDS
        for name in ("grpo", "ppo", "odt")
    ],
)
def test_one_two_and_four_make_the_same_run(tmp_path, world, name):
    torch.set_num_threads(1)  # the network's own are a setting of the run: another number rounds otherwise
    alone = run(tmp_path / "1", world, name, 1)
    assert run(tmp_path / "again", world, name, 1) == alone
    for count in (2, 4):
        assert run(tmp_path / str(count), world, name, count) == alone
