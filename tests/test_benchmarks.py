"""Benchmarks are scripts outside the library: that they still run, and compare like with like."""

import argparse
import csv
import importlib.util
import math
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from mujoco.batch import Batch

from dtune.envs.tasks import make_simulator


@pytest.fixture
def worlds(monkeypatch, one_thread):
    path = Path(__file__).parents[1] / "benchmarks/worlds.py"
    spec = importlib.util.spec_from_file_location("worlds", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "worlds", module)
    spec.loader.exec_module(module)
    for name, value in (("THREADS", (1,)), ("ROWS", (4,)), ("BLOCK", 20), ("SYNC_ROWS", 4)):
        monkeypatch.setattr(module, name, value)
    return module


def test_the_table_has_a_line_for_every_setting(worlds, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(worlds, "ROWS", (4, 6))
    out = tmp_path / "deep" / "worlds.csv"
    monkeypatch.setattr(sys, "argv", ["worlds.py", "--worlds", "hopper", "--rounds", "2", "--out", str(out)])
    worlds.main()
    with out.open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["world"], line["threads"], line["rows"]) for line in lines] == [
        ("hopper", "1", rows) for rows in "46"
    ]
    printed = capsys.readouterr().out
    for line in lines:
        assert min(float(line[name]) for name in ("closed_loop", "open_loop", "sync_vector_env")) > 0
        assert all(line[name] in printed for name in ("closed_loop", "closed_to_open", "closed_to_sync"))
        assert line["mujoco"]


@pytest.mark.parametrize("name", ["hopper", "ant"])
def test_all_contestants_go_the_same_way(worlds, name, monkeypatch):
    simulator = worlds.make_simulator(name)
    generator = torch.Generator().manual_seed(0)
    simulator.reset(4, generator)
    start, actions = simulator.snapshot(), 2 * torch.rand(5, 4, simulator.action_dim, generator=generator) - 1
    batches = []
    monkeypatch.setattr(worlds, "Batch", lambda *arguments: batches.append(Batch(*arguments)) or batches[-1])
    loops = worlds.open_loops(simulator, 4, 1)
    worlds.Closed(simulator=simulator)(start, actions)
    there = simulator.snapshot()[:, : batches[0].nstate]
    for run in loops.values():
        run(start, actions)
        assert (batches[0].state == there).all()


def test_worlds_that_are_the_same_are_measured_once(worlds):
    assert {"hopper", "walker2d", "ant", "antmaze-umaze"} <= set(worlds.worlds())
    assert "antmaze-umaze-diverse" not in worlds.worlds()


# ---- speed.py


@pytest.fixture
def speed(monkeypatch, one_thread):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    for name in ("speed", "acting", "naive", "worlds"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("speed")
    for name in ("speed", "acting", "naive", "worlds"):
        sys.modules.pop(name, None)


def test_every_row_of_the_table_of_ratios_can_be_had_by_itself(speed, monkeypatch, tmp_path, capsys):
    assert list(speed.ROWS) == ["rollout", "parts", "physics", "iteration", "gemm", "walks", "memory", "small"]
    expected = {"rollout": 2, "parts": 3, "physics": 1, "iteration": 2, "gemm": 8, "walks": 2, "small": 4}
    for row, lines in expected.items():
        out = tmp_path / f"{row}.csv"
        monkeypatch.setattr(sys, "argv", ["speed.py", "--quick", "--threads", "1", "--rows", row, "--out", str(out)])
        speed.main()
        with out.open() as file:
            table = list(csv.DictReader(file))
        assert [line["row"] for line in table] == [row] * lines
        assert all(float(line[name]) > 0 for line in table for name in ("dtune", "other", "ratio"))
        assert all(line["machine"] and line["torch"] for line in table)
        assert table[0]["what"] in capsys.readouterr().out


def test_the_open_loop_of_small_goes_over_every_step_of_its_iterations(speed, monkeypatch):
    run = speed.Small(speed.quick(1), 1)
    done = run.algorithm.metrics.env_steps.copy()
    stretches = run.stretches()
    steps = sum(run.algorithm.metrics.env_steps.values()) - sum(done.values())
    assert sum(actions[..., 0].numel() for _, actions in stretches) == steps
    shapes = [tuple(actions.shape[:2]) for _, actions in stretches]  # steps, rows
    assert shapes.count((30, run.config.episodes_per_iteration * run.config.collection_interval)) == 1
    assert len(shapes) < sum(steps for steps, _ in shapes) / 2  # a new one only where walks are put elsewhere or end
    start, actions = stretches[0]
    loop = speed.open_loops(run.simulator, len(start), 1)["step"]
    assert loop(start, actions).shape == (2,)


@pytest.mark.slow
def test_peak_memory_is_that_of_another_process(speed, monkeypatch):
    lines = list(speed.memory(speed.quick(1)))
    assert 0.1 < float(lines[0]["dtune"]) < 3


def test_the_naive_loop_goes_where_ours_goes(speed):
    """The same actions from the same states: the same rewards."""
    acting, naive = sys.modules["acting"], sys.modules["naive"]
    groups = acting.Groups(speed.quick(1), 4, 1)
    qpos = groups.qpos + np.array([0.0, 0.3, 0.0, 0.0, 0.0, 0.0])
    ours = groups.simulator.place(qpos, groups.qvel)
    theirs = naive.NaiveGroups(naive.NaiveTransformer(11, 3, 64, 1), 4)
    seen = []
    step = theirs.envs.step
    theirs.envs.step = lambda actions: seen.append((actions, step(actions))) or seen[-1][1]
    theirs.walk(qpos, groups.qvel, 4, 100.0)  # before any falls, for which Gymnasium takes 1 off
    for actions, (observations, rewards, *_) in seen:
        outcome = groups.simulator.step(torch.from_numpy(actions))
        np.testing.assert_allclose(outcome.observations.numpy(), observations, atol=1e-3)
        np.testing.assert_allclose(outcome.rewards.numpy(), rewards, atol=1e-3)
    assert ours.shape == observations.shape
    assert not outcome.terminated.any()


# ---- scaling.py


@pytest.fixture
def scaling(monkeypatch, one_thread):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    names = ("scaling", "acting", "naive", "worlds")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("scaling")
    for name in names:
        sys.modules.pop(name, None)


def modelled(scaling, found, latency: float, bandwidth: float) -> dict[tuple[str, int], dict[str, object]]:
    options = argparse.Namespace(latency=latency, bandwidth=bandwidth)
    account = {"steps": 8, "parameters": 1_000_000, "episode": 300_000}
    return {(line["part"], line["machines"]): line for line in scaling.model(found, account, options)}


def test_what_costs_nothing_to_say_is_shared_for_nothing(scaling):
    """Without a network's cost: all that can be shared is; the one episode is Amdahl's part."""
    found = {n: {"episodes": 0.0, "points": 0.0, "groups": 64.0 / n, "updates": 8.0 / n} for n in (1, 4, 16, 64)}
    lines = modelled(scaling, found, 0.0, math.inf)
    assert {line["efficiency"] for (kind, n), line in lines.items() if kind == "weak" or n <= 32} == {"1.000"}
    assert float(lines["strong", 512]["efficiency"]) == pytest.approx(64 / 512)  # there are 64 groups
    for parts in found.values():
        parts["episodes"] = 8.0
    lines = modelled(scaling, found, 0.0, math.inf)
    assert float(lines["strong", 8]["seconds"]) == pytest.approx(8 + 72 / 8)
    assert lines["strong", 8]["note"].startswith("first: episodes")


def test_a_slow_network_is_named(scaling):
    found = {1: {"episodes": 0.1, "points": 0.1, "groups": 1.0, "updates": 1.0}}
    lines = modelled(scaling, found, 0.0, 1e6)
    assert float(lines["weak", 2]["seconds"]) == pytest.approx(2.2 + 8 * 4 + 0.6, rel=1e-3)  # 4 MB a step, at 1 MB/s
    assert lines["weak", 2]["note"].startswith("first: gradients")
    assert modelled(scaling, found, 0.1, math.inf)["weak", 512]["note"].startswith("first: other collectives")


@pytest.mark.slow
def test_two_processes_are_measured_and_their_bytes_counted(scaling, monkeypatch, tmp_path):
    out = tmp_path / "scaling.csv"
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--quick", "--rounds", "1", "--iterations", "2", "--out", str(out)])
    scaling.main()
    with out.open() as file:
        table = list(csv.DictReader(file))
    assert {line["kind"] for line in table} == {"measured", "share", "model"}
    assert all(float(line["seconds"]) > 0 for line in table)
    (whole,) = (line for line in table if line["kind"] == "measured" and line["part"] == "iteration")
    gradients = float(whole["note"].split(";")[-1].split()[0])
    assert gradients <= float(whole["sent_mb"]) <= 1.2 * gradients


@pytest.fixture
def soak():
    path = Path(__file__).parents[1] / "benchmarks/soak.py"
    spec = importlib.util.spec_from_file_location("soak", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("files", "leaked"),
    [([4] * 30, 0), ([4] * 12 + [5] + [4] * 17, 0), ([4] * 29 + [5], 0), ([4] * 15 + [5] * 15, 1), ([4, 9, 4, 3], -1)],
)
def test_a_soak_tells_a_file_that_stays_open_from_one_that_is_being_written(soak, files, leaked):
    assert soak.grown([{"files": count, "memory_mb": 1.0} for count in files])[1] == leaked


def test_a_soak_tells_the_most_that_memory_ever_grew(soak):
    assert soak.grown([{"files": 4, "memory_mb": value} for value in (100.0, 90.0, 151.0, 100.0)])[0] == 51.0


def test_recorded_steps_are_replayed_and_written_down(tmp_path, capsys, monkeypatch):
    """Of states of dtune's own world nothing is lost but what float32 rounds."""
    spec = importlib.util.spec_from_file_location("replayed", Path(__file__).parents[1] / "benchmarks/replayed.py")
    replayed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(replayed)
    simulator = make_simulator("hopper")
    simulator.reset(1, torch.Generator().manual_seed(0))
    columns = {name: [] for name in ("observations", "actions", "rewards", "infos/qpos", "infos/qvel")}
    seen = simulator.restore(simulator.snapshot())
    for _ in range(8):
        state, action = simulator.snapshot()[0], torch.rand(1, 3) - 0.5
        outcome = simulator.step(action)
        found = (seen[0], action[0], outcome.rewards[0], state[1:7], state[7:13])
        for values, value in zip(columns.values(), found, strict=True):
            values.append(np.asarray(value, np.float32))
        seen = outcome.observations
    with h5py.File(tmp_path / "hopper-medium-v2.hdf5", "w") as file:
        for name, values in columns.items():
            file[name] = np.stack(values)
        file["terminals"], file["timeouts"] = np.zeros(8, bool), np.arange(8) == 3
    monkeypatch.setattr(sys, "argv", ["replayed.py", str(tmp_path), "--out", str(tmp_path / "out.csv")])
    replayed.main()
    with (tmp_path / "out.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert (line["file"], line["rows"]) == ("hopper-medium-v2.hdf5", "6")
    assert float(line["largest"]) < 1e-4
    assert float(line["reward_largest"]) < 1e-4
    assert "hopper-medium-v2.hdf5" in capsys.readouterr().out
