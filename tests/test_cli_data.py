"""`dtune data …` as its users meet it."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest
import torch
from server import serving
from shared import sample_file

from dtune import cli
from dtune.data.hdf5 import read_hdf5, write_hdf5
from dtune.envs.sources import SOURCES
from dtune.experiments import loading
from dtune.experiments.loading import load_dataset


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def data(capsys, monkeypatch, tmp_path) -> Callable[..., Said]:
    """Runs `dtune data …` in an empty folder, eighty columns wide."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DTUNE_DATA", str(tmp_path / "ours"))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rls"))
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: str | Path) -> Said:
        capsys.readouterr()
        code = 0
        try:
            cli.main(["data", *map(str, arguments)])
        except SystemExit as end:
            code = end.code
        return Said(code, *capsys.readouterr())

    return call


def columns(rows: int = 12) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    row = torch.arange(rows)
    return {
        "observations": torch.randn(rows, 11, generator=generator),
        "actions": torch.rand(rows, 3, generator=generator) * 1.8 - 0.9,
        "rewards": torch.arange(float(rows)),
        "terminals": row % 6 == 5,
        "timeouts": row == 2,
    }


def test_without_a_command_the_commands_are_named(data):
    assert "dtune data show NAME_OR_PATH" in data("--help").out
    for arguments, parts in (([], "say what to do with data"), (["sow"], "no command 'data sow'")):
        said = data(*arguments)
        assert said.code == 2
        assert parts in said.err
        assert "list, show, make, download" in said.err


# list


def test_list_says_which_are_here(data, monkeypatch, tmp_path):
    (tmp_path / "ours").mkdir()
    write_hdf5(tmp_path / "ours" / "ant-medium-v2.hdf5", columns())
    write_hdf5(tmp_path / "ours" / "hopper-random-v2.6-episodes.seed0.hdf5", columns())
    monkeypatch.setenv("COLUMNS", "300")  # paths of tests are long
    said = data("list")
    assert (said.code, said.err) == (0, "")
    assert re.search(r"ant-medium-v2 +999,946 +80\.30 ± 35\.82 +/\S*ours/ant-medium-v2\.hdf5", said.out)
    assert re.search(r"hopper-random-v2 +999,906 +1\.19 ± 1\.16 +/\S*6-episodes", said.out)
    assert re.search(r"ant-random-v2 .* recorded when needed", said.out)
    assert re.search(r"pen-human-v1 .* no *\n", said.out)
    assert len(re.findall(r"-v\d +[\d,]+ ", said.out)) == 17


def test_list_fits_eighty_columns(data):
    lines = data("list").out.splitlines()[:-2]
    assert max(map(len, lines)) <= 80
    assert {line.split(" ")[0] for line in lines} >= set(SOURCES)  # names are whole


# show


def test_show_tells_what_is_in_a_file(data, tmp_path):
    write_hdf5(tmp_path / "a.hdf5", columns())
    said = data("show", "a.hdf5", "--task", "hopper")
    assert (said.code, said.err) == (0, "")
    assert re.search(r"observations +12 x 11 ", said.out)
    assert re.search(r"rewards +12 +0 +5\.5 +11 *\n", said.out)
    assert "3 episodes, 12 steps  (locomotion splitting)" in said.out
    assert "2 ended by the environment, 1 by the clock" in said.out
    # returns 3, 12, 51: mean 22, variance (361 + 100 + 841) / 3
    assert re.search(r"return +3\.00 +22\.00 ± 20\.83 +51\.00", said.out)
    assert re.search(r"score +0\.72 +1\.30 ± 0\.64 +2\.19", said.out)
    assert re.search(r"length +3\.00 +4\.00 ± 1\.41 +6\.00", said.out)
    counts = [int(found) for found in re.findall(r"^ +[\d.]+  [█▏▎▍▌▋▊▉ ]{40} +(\d+)$", said.out, re.MULTILINE)]
    assert len(counts) == 12
    assert sum(counts) == 3
    assert "Worth knowing" not in said.out
    assert max(map(len, said.out.splitlines())) <= 80


def test_show_gives_no_score_of_another_task(data, tmp_path):
    write_hdf5(tmp_path / "a.hdf5", columns())
    said = data("show", "a.hdf5", "--task", "walker2d")
    assert said.code == 3
    assert "observations of 11 and actions of 3 numbers where 17 and 6 are needed" in said.err


def test_show_says_what_is_odd(data, tmp_path):
    write_hdf5(tmp_path / "a.hdf5", columns() | {"rewards": torch.zeros(12)})
    said = data("show", "a.hdf5", "--splitting", "adroit")
    assert said.code == 0
    assert "Worth knowing\n  * 6 of 12 rows are left out" in said.out
    assert "  * all rewards are 0\n" in said.out
    assert "score" not in said.out


def test_show_gathers_every_problem_and_ends_with_3(data, tmp_path):
    write_hdf5(tmp_path / "a.hdf5", columns())
    with h5py.File(tmp_path / "a.hdf5", "r+") as file:
        file["observations"][4, 2] = np.nan
        file["actions"][5, 0] = 4
        del file["rewards"], file["terminals"]
        file["terminals"] = h5py.SoftLink("/timeouts")
    said = data("show", "a.hdf5")
    assert said.code == 3
    assert said.err == "dtune: a.hdf5 has 4 problems, listed above: it cannot be trained on as it is.\n"
    _, _, listed = said.out.partition("\nProblems\n")
    assert [line.split()[1] for line in listed.splitlines()] == ["'terminals'", "lacks", "'observations'", "'actions'"]
    assert "observations" in said.out.partition("\nProblems\n")[0]  # what can be seen is shown


def test_show_of_a_file_that_is_none_ends_with_3(data, tmp_path):
    (tmp_path / "a.hdf5").write_bytes(b"<html>")
    (tmp_path / "text.npz").write_text("text\n")
    for arguments, part in (
        (["a.hdf5"], "not a readable HDF5 file"),
        (["b.hdf5"], "b.hdf5 is not there: give the path of a file (HDF5 of D4RL's or Minari's layout, or .npz)"),
        (["text.npz"], "text.npz is not a readable .npz file: write it with numpy.savez"),
        (["."], ". is a folder: give the path of a file"),
        (["hopper-medum-v2"], "there is no dataset hopper-medum-v2 (perhaps you meant hopper-medium-v2)"),
        (["b"], "no file here"),
    ):
        said = data("show", *arguments)
        assert said.code == 3
        assert part in said.err
        assert said.out == ""
    assert data("show", "a.hdf5", "--task", "hoper").code == 2
    assert data("show", "a.hdf5", "--splitting", "other").code == 2


def test_show_by_name_compares_with_the_tables(data, tmp_path):
    (tmp_path / "d4rls").mkdir()
    shutil.copy(sample_file("adroit/door-human-v1"), tmp_path / "d4rls" / "door-human-v1.hdf5")
    said = data("show", "door-human-v1")
    assert said.code == 0
    assert "24 episodes, 6,504 steps  (adroit splitting)" in said.out
    assert re.search(r"score +9\.76 +28\.35 ± 11\.96 +52\.87", said.out)
    assert "Tables 2-4 say 6,504 steps, score 28.35 ± 13.88\n(± 11.96 without the constant" in said.out
    assert "other data" not in said.out


def test_show_never_records_and_never_fetches(data, monkeypatch):
    monkeypatch.setattr(loading, "make_random", None)
    monkeypatch.setattr(loading, "fetch_file", None)
    said = data("show", "hopper-random-v2")
    assert said.code == 3
    assert "`dtune data make hopper-random-v2`" in said.err
    said = data("show", "hopper-medium-v2")
    assert said.code == 3
    assert "`dtune data download hopper-medium-v2`" in said.err


# make


def test_make_records_where_pretraining_looks(data, tmp_path):
    said = data("make", "hopper-random", "--episodes", "4", "--seed", "3")
    assert (said.code, said.err) == (0, "")
    assert "recording 4 random episodes of hopper" in said.out
    assert "4 episodes, " in said.out
    path = tmp_path / "ours" / "hopper-random-v2.4-episodes.seed3.hdf5"
    assert loading.find("hopper-random-v2", episodes=4, seed=3) == path
    content = path.read_bytes()
    again = data("make", "hopper-random-v2", "--episodes", "4", "--seed", "3")
    assert "is there already" in again.out
    assert "recording" not in again.out
    assert data("make", "hopper-random", "--episodes", "4", "--seed", "3", "--out", "there/x.hdf5").code == 0
    assert (tmp_path / "there" / "x.hdf5").read_bytes() == content
    assert len(read_hdf5(path)) == 4
    assert data("show", "hopper-random-v2").code == 0
    other = data("make", "walker2d-random", "--episodes", "4", "--out", "there/x.hdf5")
    assert (other.code, "there/x.hdf5 is there already: choose another --out" in other.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["hopper-medium"], "'hopper-medium' is no random dataset: choose one of hopper-random"),
        (["ant-random", "--episodes", "0"], "episodes must be at least 1, got 0"),
        (["ant-random", "--threads", "0"], "threads must be at least 1"),
        (["ant-random", "--episodes", "2", "--seed", "-1"], "seed must be in [0, 2^63), got -1"),
        (["ant-random", "--episodes", "2", "--out", ".."], "--out is to be a file, and .. is a folder"),
        ([], "NAME"),
    ],
)
def test_make_refuses_with_2(data, tmp_path, arguments, part):
    said = data("make", *arguments)
    assert said.code == 2
    assert part in said.err
    assert list(tmp_path.iterdir()) == []


# download


def test_download_fetches_from_the_address_given(data, monkeypatch, tmp_path):
    write_hdf5(tmp_path / "whole.hdf5", columns())
    content = (tmp_path / "whole.hdf5").read_bytes()
    with serving(content, "truncate:900") as server:
        monkeypatch.setenv("DTUNE_D4RL_URL", server.address.rpartition("/")[0] + "/mirror/")
        monkeypatch.setattr("dtune.data.download.time.sleep", lambda _: None)
        said = data("download", "hopper-medium-v2")
        assert (said.code, said.err) == (0, "")
        path = tmp_path / "ours" / "hopper-medium-v2.hdf5"
        assert path.read_bytes() == content
        assert f"hopper-medium-v2 is at {path}" in said.out
        assert server.paths == ["/mirror/gym_mujoco_v2/hopper_medium-v2.hdf5"] * 2
        assert data("download", "hopper-medium-v2").code == 0  # it is here
        assert len(server.asked) == 2
        assert data("download", "hopper-medium-v2", "--again", "True").code == 0
        assert len(server.asked) == 3
    assert len(load_dataset("hopper-medium-v2")) == 3


def test_without_a_network_the_file_and_its_place_are_said(data, monkeypatch, tmp_path):
    monkeypatch.setattr("dtune.data.download.time.sleep", lambda _: None)
    monkeypatch.setenv("DTUNE_D4RL_URL", "http://127.0.0.1:9/nowhere")
    said = data("download", "pen-cloned-v1")
    assert said.code == 3
    assert f"put D4RL's pen-cloned-v1.hdf5 at {tmp_path}/ours/pen-cloned-v1.hdf5 by hand" in said.err
    assert said.err.count("\n") == 1


def test_an_error_page_is_not_kept(data, monkeypatch, tmp_path):
    with serving(b"<html>404</html>") as server:
        monkeypatch.setenv("DTUNE_D4RL_URL", server.address)
        said = data("download", "pen-cloned-v1")
    assert said.code == 3
    assert "not the file that was meant" in said.err
    assert list((tmp_path / "ours").iterdir()) == []


def test_download_of_an_unknown_name_is_2(data):
    said = data("download", "hopper medium")
    assert said.code == 2
    assert "no dataset of Tables 2-4" in said.err


def test_download_of_a_minari_id_asks_minari(data, monkeypatch, tmp_path):
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    asked = []

    def fail(dataset_id: str) -> None:
        asked.append(dataset_id)
        raise ConnectionError("no network")

    monkeypatch.setattr(minari, "download_dataset", fail)
    said = data("download", "D4RL/door/human-v2")
    assert said.code == 3
    assert asked == ["D4RL/door/human-v2"]
    assert "Minari cannot give D4RL/door/human-v2 (no network)" in said.err
