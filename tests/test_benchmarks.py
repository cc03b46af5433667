"""Benchmarks are scripts outside the library: that they still run, and compare like with like."""

import csv
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from mujoco.batch import Batch


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
