"""Replay files: written where a run stops, walked again by a command, refused where they are damaged."""

import json
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from draws import seeded
from tiny import GRPO

from dtune.cli import main
from dtune.data import guards
from dtune.data.npz import read_array
from dtune.envs.rollout import ResetPoints
from dtune.envs.tasks import make_simulator
from dtune.envs.watched import KEPT, Walk
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


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.npz", "there is no file nowhere.npz"),
        ("folder", "folder is a folder"),
        ("metrics.csv", "metrics.csv is no replay file"),
        ("data.npz", "data.npz is no replay file"),
    ],
)
def test_what_is_no_replay_file_is_told_which_to_give(tmp_path, monkeypatch, capsys, name, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "metrics.csv").write_text("iteration\n1\n")
    np.savez(tmp_path / "data.npz", observations=np.zeros(3))
    with pytest.raises(SystemExit) as ended:
        main(["replay", name])
    assert ended.value.code == 3
    told = capsys.readouterr().err
    assert told.startswith(f"dtune: {said}")
    assert told.endswith(": give the replay_….npz of the run folder\n")


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


def forged(path: Path, save=np.savez, **changes) -> Path:
    """A replay file of one walk, but for what a stranger changed."""
    header = {"format": 1, "task": None, "iteration": 4, "reason": "it broke", "walks": changes.pop("walks", 1),
              "versions": {}}  # fmt: skip
    arrays = {"snapshot_0": np.zeros(3), "actions_0": np.zeros((2, 2), np.float32)}
    text = json.dumps(header).encode() + b" " * changes.pop("spaces", 0)
    save(path, header=np.frombuffer(text, np.uint8), **{**arrays, **changes})
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"snapshot_0": np.zeros(3, np.uint8)}, "'snapshot_0' holds uint8 of shape (3,), not 1-d float64"),
        ({"snapshot_0": np.zeros((3, 1))}, "'snapshot_0' holds float64 of shape (3, 1), not 1-d float64"),
        ({"actions_0": np.zeros((2, 2))}, "'actions_0' holds float64 of shape (2, 2), not 2-d float32"),
        ({"actions_0": np.zeros(2, np.float32)}, "'actions_0' holds float32 of shape (2,), not 2-d float32"),
        ({"walks": KEPT + 1}, "claims 17 walks and at most 16 are kept"),
        ({"walks": -1}, "claims -1 walks"),
        ({"walks": True}, "claims True walks"),
        ({"walks": "9" * 9999}, "claims '9999"),
        ({"spaces": 2**16}, "'header' is not at most 65,536 bytes of JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_run_writes_is_refused(tmp_path, changes, said):
    assert len(read_replay(forged(tmp_path / "good.npz")).walks) == 1
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        read_replay(forged(tmp_path / "replay.npz", **changes))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("part", [{"snapshot_0": np.zeros(2**20)}, {"actions_0": np.zeros((2**18, 8), np.float32)}])
def test_nothing_is_unpacked_to_more_than_the_file(tmp_path, part, monkeypatch):
    path = forged(tmp_path / "replay.npz", np.savez_compressed, **part)
    assert path.stat().st_size < 2**16

    def only_the_header(archive, key, where):
        assert key == "header"
        return read_array(archive, key, where)

    monkeypatch.setattr("dtune.experiments.replay.read_array", only_the_header)
    with pytest.raises(DataError, match=r"replay\.npz claims 8,388,6.. bytes of walks and has"):
        read_replay(path)


def test_a_file_that_does_not_fit_into_memory_is_refused(tmp_path, monkeypatch):
    path = forged(tmp_path / "replay.npz")
    monkeypatch.setattr(guards, "free_memory", lambda: 39)
    with pytest.raises(DataError, match=r"replay\.npz needs 40 bytes of memory where 39 are free"):
        read_replay(path)


def test_a_long_table_of_contents_is_refused(tmp_path):
    path = forged(tmp_path / "replay.npz")
    with zipfile.ZipFile(path, "a") as archive:
        for number in range(2000):
            archive.writestr(f"{number:0100}/", b"")
    with pytest.raises(DataError, match="has a table of contents of 294,"):
        read_replay(path)


def test_a_file_of_another_format_is_refused(tmp_path):
    header = np.frombuffer(json.dumps({"format": 9, "versions": {"dtune": "7"}}).encode(), np.uint8)
    np.savez(tmp_path / "replay.npz", header=header)
    with pytest.raises(DataError, match=r"format 9 and this dtune reads 1.*'dtune': '7'"):
        read_replay(tmp_path / "replay.npz")
    with pytest.raises(DataError, match="not a readable replay file"):
        read_replay(tmp_path / "nowhere.npz")
