"""Replay files: written where a run stops, walked again by a command, refused where they are damaged."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from draws import seeded
from tiny import GRPO

from dtune.cli import main
from dtune.envs.rollout import ResetPoints
from dtune.envs.tasks import make_simulator
from dtune.envs.watched import Walk
from dtune.errors import DataError
from dtune.experiments.replay import read_replay, walk_again, write_replay


@pytest.mark.parametrize("bad", ["action", "physics"])
def test_the_first_bad_number_is_found(bad):
    simulator = make_simulator("hopper")
    simulator.reset(1, seeded())
    snapshot, actions = simulator.snapshot()[0], torch.zeros(9, 3)
    if bad == "action":
        actions[6, 2] = float("inf")
    else:
        snapshot[1 + simulator.model.nq] = 1e12  # a velocity
    *sound, last = walk_again(Walk(snapshot=snapshot, actions=actions.numpy()), simulator)
    assert last.wrong == {"action": "the action, at index 2", "physics": "the physics: the simulator met NaN or a"
                          " warning"}[bad]  # fmt: skip
    assert len(sound) == (6 if bad == "action" else 0)
    assert all(moment.wrong is None for moment in sound)


def test_a_command_that_broke_names_a_file_that_a_command_walks(pretrained, tmp_path, monkeypatch, capsys, one_thread):
    """Velocities at reset points that no hopper survives: the engine itself warns."""
    choose = ResetPoints.choose

    def cast(*arguments, **options):
        points = choose(*arguments, **options)
        thrown = points.snapshots.clone()
        thrown[:, 1 + 6] = 1e12
        return replace(points, snapshots=thrown)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ResetPoints, "choose", cast)
    with pytest.raises(SystemExit) as ended:
        main([*GRPO, "--policy", str(pretrained), "--out", "run"])
    assert ended.value.code == 5
    assert "`dtune replay run/replay_000001.npz`" in capsys.readouterr().err
    main(["replay", "run/replay_000001.npz"])
    said = capsys.readouterr().out
    assert said.startswith("hopper-random-v2, iteration 1:")
    assert "first bad number at step 0: the physics" in said
    assert "every number is finite" not in said


def test_a_file_of_an_own_simulator_needs_to_be_told_the_task(tmp_path, capsys):
    path = tmp_path / "replay.npz"
    walk = Walk(snapshot=np.zeros(3), actions=np.zeros((2, 2), np.float32))
    write_replay(path, [walk], task=None, iteration=4, reason="it broke")
    for more, code, part in (([], 2, "--task"), (["--task", "hopper"], 4, "snapshots of shape")):
        with pytest.raises(SystemExit) as ended:
            main(["replay", str(path), *more])
        assert ended.value.code == code
        assert part in capsys.readouterr().err


def test_other_versions_are_told(tmp_path, capsys, monkeypatch):
    simulator = make_simulator("hopper")
    simulator.reset(1, seeded())
    walk = Walk(snapshot=simulator.snapshot()[0], actions=np.zeros((30, 3), np.float32))
    monkeypatch.setattr("dtune.experiments.replay.versions", lambda: {"mujoco": "3.0.0"})
    write_replay(tmp_path / "replay.npz", [walk], task="hopper", iteration=4, reason="it broke")
    main(["replay", str(tmp_path / "replay.npz")])
    said = capsys.readouterr().out
    assert "note: mujoco was 3.0.0, here it is" in said
    assert "every number is finite" in said
    assert said.count("  step ") == 10


def damaged(path: Path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in (members | {name: content}).items():
            archive.writestr(member, data)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("header.npy", b"\x93NUMPY\x01\x00\x16\x00{'descr': '|O', 'fortran"),
        ("snapshot_0.npy", b"\x80\x04cposix\nsystem\n(S'true'\ntR."),
        ("actions_0.npy", b""),
    ],
)
def test_a_damaged_file_is_refused_and_nothing_of_it_runs(tmp_path, name, content):
    path = tmp_path / "replay.npz"
    walk = Walk(snapshot=np.zeros(3), actions=np.zeros((2, 2), np.float32))
    write_replay(path, [walk], task=None, iteration=4, reason="it broke")
    damaged(path, name, content)
    with pytest.raises(DataError, match=str(path)):
        read_replay(path)


def test_a_file_of_another_format_is_refused(tmp_path):
    header = np.frombuffer(json.dumps({"format": 9, "versions": {"dtune": "7"}}).encode(), np.uint8)
    np.savez(tmp_path / "replay.npz", header=header)
    with pytest.raises(DataError, match=r"format 9 and this dtune reads 1.*'dtune': '7'"):
        read_replay(tmp_path / "replay.npz")
    with pytest.raises(DataError, match="not a readable replay file"):
        read_replay(tmp_path / "nowhere.npz")
