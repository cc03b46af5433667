"""A run with a time limit: a clock that only iterations and evaluations move."""

import os
import time
from dataclasses import replace

import pytest
from test_loop import PointMass, make, read_rows, run

from dtune.errors import ConfigError
from dtune.experiments import loop
from dtune.experiments.evaluation import Evaluation
from dtune.experiments.loop import Schedule, train
from dtune.experiments.presets import finetuning
from dtune.experiments.run import finetune_preset


class Clock:
    """Seconds that go by when told."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Taking:
    """An algorithm whose iterations take 10 seconds."""

    def __init__(self, clock: Clock):
        self.inner, self.clock, self.iterated = make("ppo"), clock, 0
        self.policy = self.inner.policy

    def iterate(self, simulator):
        self.clock.now += 10
        self.iterated += 1
        return self.inner.iterate(simulator)

    def state_dict(self):
        return self.inner.state_dict()

    def load_state_dict(self, state):
        self.inner.load_state_dict(state)


class Judging(Evaluation):
    """An evaluation that takes 1000 seconds."""

    def __call__(self, policy):
        CLOCKS[-1].now += 1000
        return super().__call__(policy)


CLOCKS: list[Clock] = []


@pytest.fixture
def limited(monkeypatch, tmp_path):
    """Runs in a folder, for at most so many seconds; the algorithm."""
    clock = Clock()
    CLOCKS.append(clock)
    monkeypatch.setitem(loop._CLOCKS, "wall", clock.perf_counter)

    def call(
        limit: float | None, *, iterations: int = 9, checkpoint_every: int = 4, evaluate_seconds: float | None = None
    ) -> Taking:
        algorithm = Taking(clock)
        train(
            algorithm,
            PointMass(),
            Schedule(
                iterations=iterations,
                evaluate_every=5,
                checkpoint_every=checkpoint_every,
                time_limit=limit,
                evaluate_seconds=evaluate_seconds,
            ),
            evaluation=Judging(simulator=PointMass(), return_to_go=-3.0, episodes=2),
            directory=tmp_path,
            quiet=True,
        )
        return algorithm

    return call


def last(folder) -> str:
    return os.readlink(folder / "checkpoints" / "last")


def test_the_iteration_that_passes_the_limit_is_the_last_and_is_judged_and_saved(limited, tmp_path):
    assert limited(25.0).iterated == 3
    rows = read_rows(tmp_path / "metrics.csv")
    assert [row["iteration"] for row in rows if "eval/return" in row] == [0, 3]
    assert last(tmp_path) == "iteration_000003"
    assert read_rows(tmp_path / "timing.csv")[-1]["time/seconds"] == 30.0  # without 2,000 of evaluations


def test_the_limit_itself_is_enough(limited):
    assert limited(20.0).iterated == 2


def test_fewer_iterations_end_it_before(limited, tmp_path):
    assert limited(1000.0, iterations=2).iterated == 2
    assert last(tmp_path) == "iteration_000002"


def test_the_pieces_of_a_continued_run_add_up(limited, tmp_path):
    assert limited(None, iterations=2).iterated == 2
    assert limited(45.0).iterated == 3
    assert last(tmp_path) == "iteration_000005"
    assert limited(45.0).iterated == 0  # done: nothing is done again
    assert limited(55.0).iterated == 1  # more time continues it


def test_time_lost_with_iterations_that_were_not_saved_does_not_count(limited, tmp_path):
    limited(None, iterations=2)
    timing = (tmp_path / "timing.csv").read_text()
    (tmp_path / "timing.csv").write_text(timing + "3,3000.0,1.0\n")  # killed before its checkpoint
    assert limited(45.0).iterated == 3


def test_a_preset_with_a_time_limit(pretrained, tmp_path, one_thread):
    config = replace(finetuning("dt", "hopper-random-v2", "small"), iterations=50, evaluation_episodes=2)
    rows = finetune_preset(replace(config, time_limit=1e-9), tmp_path / "run", pretrained)
    assert [row["iteration"] for row in rows] == [0, 1]
    rows = finetune_preset(replace(config, iterations=2), tmp_path / "run", pretrained)  # it may be changed
    assert rows[-1]["iteration"] == 2


def test_judged_and_saved_after_so_many_seconds_of_training(limited, tmp_path):
    limited(None, iterations=2, evaluate_seconds=25.0)
    assert last(tmp_path) == "iteration_000002"
    limited(75.0, evaluate_seconds=25.0)  # continued: 30, 40 and 50 seconds, and so on, of 10 an iteration
    rows = read_rows(tmp_path / "metrics.csv")
    assert [row["iteration"] for row in rows if "eval/return" in row] == [0, 2, 3, 5, 8]
    assert (tmp_path / "checkpoints" / "iteration_000005").is_dir()


def test_the_processor_s_clock_counts_no_time_that_others_take(monkeypatch, tmp_path):
    """Others take nearly all of the wall's time here: 10 seconds of each iteration, of which it works one."""
    wall = Clock()
    monkeypatch.setitem(loop._CLOCKS, "wall", wall.perf_counter)
    monkeypatch.setitem(loop._CLOCKS, "processor", lambda: wall.now / 10)
    algorithm = Taking(wall)
    schedule = Schedule(iterations=9, time_limit=2.5, clock="processor")
    train(algorithm, PointMass(), schedule, directory=tmp_path, quiet=True)
    assert algorithm.iterated == 3
    assert read_rows(tmp_path / "timing.csv")[-1]["time/seconds"] == 3.0


def test_the_processor_s_clock_is_that_of_all_threads_of_this_process():
    assert loop._CLOCKS["processor"] is time.process_time


@pytest.mark.parametrize("name", ["time_limit", "evaluate_seconds"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_no_time_is_refused(name, value):
    with pytest.raises(ConfigError, match=rf"{name} must be (above 0|a finite number)"):
        Schedule(iterations=1, **{name: value})


def test_without_a_limit_nothing_changes(tmp_path):
    assert [row["iteration"] for row in run(tmp_path, iterations=2)] == [0, 1, 2]
