"""What is said of a machine, and of one on which something is wrong."""

import importlib.metadata
import shutil
from collections import namedtuple

import pytest

from dtune.cli import main
from dtune.experiments import doctor


def found(name: str, folder) -> doctor.Finding:
    return next(finding for finding in doctor.examine(folder) if finding.name == name)


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch):
    """Three processes that start MuJoCo; one test lets them."""
    monkeypatch.setattr(doctor, "_graphics", lambda: "draws")


def test_a_machine_that_runs_the_tests_passes(tmp_path, capsys):
    main(["doctor", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    for name in (*doctor.NEEDED, "physics", "threads", "graphics", "gpu", "disk", *doctor.EXTRAS):
        assert f" {name} " in said
    assert f"mujoco       {importlib.metadata.version('mujoco')}" in said
    assert said.endswith("runs can be made here\n")


def test_a_version_known_to_be_bad_is_named_and_4(tmp_path, monkeypatch, capsys):
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "4.0.0" if name == "mujoco" else version(name))
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--out", str(tmp_path)])
    said = capsys.readouterr()
    assert ended.value.code == 4
    assert "WRONG  mujoco       4.0.0 is known to be bad" in said.out
    assert said.err == "dtune: runs cannot be made here: mujoco, as said above\n"


def test_a_package_that_is_missing_is_a_line_and_not_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "NEEDED", ("torch", "no_such_package"))
    finding = found("no_such_package", tmp_path)
    assert (finding.passed, finding.needed) == (False, True)
    assert "no_such_package" in finding.message


def test_what_is_not_needed_does_not_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "EXTRAS", {"minari": "no_such_package"})
    finding = found("minari", tmp_path)
    assert (finding.passed, finding.needed) == (False, False)
    assert "pip install 'dtune[minari]'" in finding.message
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(2**20))
    assert "make room" in found("disk", tmp_path).message


def test_a_folder_that_is_not_there_yet_is_looked_at_where_it_would_be_made(tmp_path):
    finding = found("folder", tmp_path / "not/yet")
    assert finding.passed
    assert finding.message.startswith(f"{tmp_path} can be written, where ")
    assert f"GiB free in {tmp_path}" in found("disk", tmp_path / "not/yet").message


@pytest.mark.parametrize("name", ["text.hdf5", "text.hdf5/runs"])
def test_a_file_is_no_folder_and_4(tmp_path, capsys, name):
    (tmp_path / "text.hdf5").write_text("text")
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--out", str(tmp_path / name)])
    said = capsys.readouterr()
    assert ended.value.code == 4
    assert f"WRONG  folder       {tmp_path}/text.hdf5 is a file, not a folder: choose another --out" in said.out
    assert said.err == "dtune: runs cannot be made here: folder, as said above\n"


def test_more_threads_than_cores_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda pid: set())
    assert "OMP_NUM_THREADS=0" in found("threads", tmp_path).message


@pytest.mark.slow
def test_a_backend_that_does_not_draw_is_told(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("MUJOCO_GL", "osmesa-is-not-here")
    assert "MUJOCO_GL=osmesa-is-not-here does not draw" in found("graphics", tmp_path).message
