"""Numbers that break: one step in a thousand is borne, one in fifty stops the run and can be walked again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from draws import seeded
from learners import LEARNERS
from pointmass import PointMass

from dtune.errors import FaultsError, NumericError
from dtune.experiments import checkpoint
from dtune.experiments.evaluation import Evaluation
from dtune.experiments.loop import Schedule, train
from dtune.experiments.record import read_rows
from dtune.experiments.replay import read_replay, walk_again


class Glitching(PointMass):
    """Breaks a random row at a share of all steps."""

    def __init__(self, share: float, broken: float, **options):
        super().__init__(broken=broken, **options)
        self.share, self.chance = share, seeded(5)

    def step(self, actions):
        hit = (torch.rand(len(actions), generator=self.chance) < self.share).nonzero().squeeze(1)
        self.faults = dict(zip(self.row[hit].tolist(), self.clock[hit].tolist()))
        return super().step(actions)


def finetune(name: str, share: float, broken: float, directory: Path):
    algorithm = LEARNERS[name](**LEARNERS[name].many_walks)
    return train(
        algorithm,
        Glitching(share, broken),
        Schedule(iterations=4, evaluate_every=2, checkpoint_every=1),
        evaluation=Evaluation(simulator=Glitching(share, broken), return_to_go=-3.0, episodes=100),
        directory=directory,
        quiet=True,
    )


ONLINE = [name for name in LEARNERS if LEARNERS[name].many_walks]


@pytest.mark.parametrize("name", ONLINE)
@pytest.mark.parametrize("broken", [float("nan"), 1e30], ids=["nan", "absurd"])
def test_one_step_in_a_thousand_is_dropped_and_counted(name, broken, tmp_path):
    rows = finetune(name, 0.001, broken, tmp_path)
    assert sum(row.get("rollout/faulty", 0) for row in rows) > 0
    assert sum(row.get("eval/faulty", 0) for row in rows) > 0
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert max(abs(row.get("eval/return", 0)) for row in rows) < 100
    assert not list(tmp_path.glob("replay_*"))


@pytest.mark.parametrize("name", ONLINE)
def test_one_step_in_fifty_stops_the_run_and_leaves_its_walks(name, tmp_path):
    with pytest.raises(NumericError, match=r"walks|evaluation episodes|rounds") as stop:
        finetune(name, 0.02, float("nan"), tmp_path)
    (path,) = tmp_path.glob("replay_*.npz")
    assert f"`dtune replay {path}`" in str(stop.value)
    found = read_replay(path)
    assert str(stop.value).startswith(found.reason)
    assert found.walks
    assert found.versions["torch"] == torch.__version__
    for walk in found.walks:
        world = PointMass(faults={0: int(walk.snapshot[2]) + len(walk.actions) - 1})
        assert [moment.wrong is not None for moment in walk_again(walk, world)][-1]


class Poisoning:
    """An algorithm whose parameters break in its third iteration."""

    def __init__(self):
        self.inner = LEARNERS["grpo"]()
        self.policy, self.state_dict, self.load_state_dict = (
            self.inner.policy, self.inner.state_dict, self.inner.load_state_dict,
        )  # fmt: skip

    def iterate(self, simulator):
        metrics = self.inner.iterate(simulator)
        if self.inner.iteration == 3:
            with torch.no_grad():
                next(self.policy.parameters()).fill_(float("nan"))
        return metrics


def test_a_parameter_that_broke_leaves_the_walks_it_learned_from(tmp_path):
    with pytest.raises(NumericError, match=r"stopped being finite in iteration 3.*`dtune replay"):
        train(Poisoning(), PointMass(), Schedule(iterations=5, checkpoint_every=1), directory=tmp_path, quiet=True)
    found = read_replay(tmp_path / "replay_000003.npz")
    assert found.task is None
    assert found.walks
    assert not any(moment.wrong for walk in found.walks for moment in walk_again(walk, PointMass()))
    last = checkpoint.load_last(tmp_path)
    assert last is not None
    assert last.iteration == 2
    assert [row["iteration"] for row in read_rows(tmp_path / "metrics.csv")] == [0, 1, 2]


class Elsewhere(Poisoning):
    """An algorithm that hears of walks that broke on another rank."""

    def iterate(self, simulator):
        self.inner.iterate(simulator)
        raise FaultsError("9 of 10 walks of this iteration met NaN")


def test_sound_walks_are_not_kept_as_those_that_broke(tmp_path):
    with pytest.raises(FaultsError, match=r"met NaN$"):
        train(Elsewhere(), PointMass(), Schedule(iterations=5), directory=tmp_path, quiet=True)
    assert not list(tmp_path.glob("replay_*"))
