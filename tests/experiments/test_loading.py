"""From a name, an id, a path or arrays to episodes."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from shared import sample_file, shared

import dtune
from dtune.data.datasets import Dataset
from dtune.data.hdf5 import read_hdf5, write_hdf5
from dtune.envs.sources import SOURCES, source
from dtune.envs.tasks import DATASETS, normalized_score, task_info
from dtune.errors import ConfigError, DataError
from dtune.experiments import loading
from dtune.experiments.loading import find, load_dataset


def columns(rows: int = 10) -> dict[str, torch.Tensor]:
    """Two episodes: the clock ends the first, the environment the second, with the last row."""
    generator = torch.Generator().manual_seed(0)
    row = torch.arange(rows)
    return {
        "observations": torch.randn(rows, 2, generator=generator),
        "actions": torch.rand(rows, 1, generator=generator) * 2 - 1,
        "rewards": torch.arange(float(rows)),
        "terminals": row == rows - 1,
        "timeouts": row == 4,
    }


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Ours and D4RL's, both empty."""
    monkeypatch.setenv("DTUNE_DATA", str(tmp_path / "ours"))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rls"))
    for name in ("ours", "d4rls"):
        (tmp_path / name).mkdir()
    return tmp_path / "ours", tmp_path / "d4rls"


def same(a: Dataset, b: Dataset) -> bool:
    return all(
        torch.equal(getattr(a, key), getattr(b, key)) for key in vars(a) if isinstance(vars(a)[key], torch.Tensor)
    )


# Tables 2-4


def test_the_sources_are_those_of_the_tables():
    assert SOURCES.keys() == DATASETS.keys()
    assert {name: known.splitting for name, known in SOURCES.items()} == {
        name: "locomotion" if name.endswith("-v2") and "maze" not in name else "antmaze" if "maze" in name else "adroit"
        for name in DATASETS
    }
    assert {name for name, known in SOURCES.items() if known.random} == {n for n in DATASETS if "random" in n}


def test_steps_and_scores_are_the_papers():
    folder = shared()
    if folder is None:
        pytest.skip("the paper's tables are not on this machine")
    row = re.compile(r"^  (\S+): \{steps: (\d+), normalised_return: \[([\d.]+), ([\d.]+)\]\}$", re.MULTILINE)
    found = {
        m[1]: (int(m[2]), (float(m[3]), float(m[4]))) for m in row.finditer((folder / "paper/tables.yaml").read_text())
    }
    assert found == {name: (known.steps, known.score) for name, known in SOURCES.items()}


def test_files_are_named_as_d4rl_names_them():
    assert source("ant-medium-replay-v2").file == "gym_mujoco_v2/ant_medium_replay-v2.hdf5"
    assert source("pen-cloned-v1").file == "hand_dapg_v1/pen-cloned-v1.hdf5"
    start = "Ant_maze_u-maze_noisy_multistart_"
    assert source("antmaze-umaze-v2").file_name == f"{start}False_multigoal_False_sparse_fixed.hdf5"
    assert source("antmaze-umaze-diverse-v2").file_name == f"{start}True_multigoal_True_sparse_fixed.hdf5"
    with pytest.raises(ConfigError, match="'hopper-expert-v2' is no dataset of Tables 2-4"):
        source("hopper-expert-v2")


# Names


@pytest.mark.parametrize("name", ["hopper-medium-v2", "door-human-v1", "antmaze-umaze-diverse-v2"])
def test_a_name_is_found_in_four_places_the_first_counts(name, folders):
    ours, d4rls = folders
    wanted = [folder / file for folder in (ours, d4rls) for file in (f"{name}.hdf5", source(name).file_name)]
    for place in reversed(wanted):
        write_hdf5(place, columns())
        assert find(name) == place
        assert load_dataset(name).name == str(place)


@pytest.mark.parametrize(
    ("name", "lengths"), [("hopper-medium-v2", [5, 5]), ("pen-human-v1", [5]), ("antmaze-umaze-v2", [4, 4])]
)
def test_a_name_is_cut_by_its_rule(name, lengths, folders):
    write_hdf5(folders[0] / f"{name}.hdf5", columns())
    assert load_dataset(name).lengths.tolist() == lengths
    assert load_dataset(name, splitting="adroit").lengths.tolist() == [5]


def test_folders_are_in_the_home_by_default(tmp_path, monkeypatch):
    for name in ("DTUNE_DATA", "D4RL_DATASET_DIR"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert loading.places("ant-medium-v2") == [
        tmp_path / ".dtune/datasets/ant-medium-v2.hdf5",
        tmp_path / ".dtune/datasets/ant_medium-v2.hdf5",
        tmp_path / ".d4rl/datasets/ant-medium-v2.hdf5",
        tmp_path / ".d4rl/datasets/ant_medium-v2.hdf5",
    ]


def test_what_is_not_there_is_said_with_its_place_and_the_command(folders):
    with pytest.raises(
        DataError, match=r"is not there.*dtune data download ant-medium-v2.*ant_medium-v2\.hdf5"
    ) as error:
        load_dataset("ant-medium-v2")
    assert str(error.value).startswith(str(folders[0] / "ant-medium-v2.hdf5"))


def test_nothing_is_fetched_unless_asked(monkeypatch):
    asked = []
    monkeypatch.setattr(loading, "fetch_file", lambda name: asked.append(name) or Path("nowhere.hdf5"))
    with pytest.raises(DataError, match="is not there"):
        load_dataset("ant-medium-v2")
    assert asked == []
    with pytest.raises(DataError, match=r"nowhere\.hdf5"):
        load_dataset("ant-medium-v2", download=True)
    assert asked == ["ant-medium-v2"]


@pytest.mark.parametrize("name", ["hopper-medium", "https://example.org/x", "a b"])
def test_what_is_neither_a_name_nor_an_id_nor_a_file_is_refused(name):
    with pytest.raises(DataError, match=r"no file here, no Minari id.*Tables 2-4.*: hopper-medium-v2"):
        load_dataset(name)


# Random datasets


def test_a_random_dataset_is_recorded_once(folders, capsys):
    path = find("hopper-random-v2", episodes=3)
    assert path.parent == folders[0]
    assert "recording 3 random episodes of hopper" in capsys.readouterr().out
    assert len(read_hdf5(path)) == 3
    stamp = path.stat().st_mtime_ns
    assert find("hopper-random-v2", episodes=3) == path
    assert path.stat().st_mtime_ns == stamp
    assert capsys.readouterr().out == ""
    other = find("hopper-random-v2", episodes=3, seed=1)
    assert other != path
    assert other.read_bytes() != path.read_bytes()
    assert find("hopper-random-v2", episodes=2) not in (path, other)
    content = path.read_bytes()
    path.unlink()
    assert find("hopper-random-v2", episodes=3).read_bytes() == content  # the seed decides it all


def test_a_random_dataset_is_of_the_papers_size_unless_said(monkeypatch):
    asked = []

    def note(name: str, path: Path, *, episodes: int, **_: object) -> Path:
        asked.append((name, episodes))
        return path

    monkeypatch.setattr(loading, "make_random", note)
    for name in ("hopper-random-v2", "walker2d-random-v2", "ant-random-v2"):
        find(name)
    assert asked == [("hopper-random-v2", 44_000), ("walker2d-random-v2", 46_000), ("ant-random-v2", 5_500)]


def test_d4rls_own_random_file_comes_first_but_not_before_a_number_of_episodes(folders):
    write_hdf5(folders[1] / "hopper_random-v2.hdf5", columns())
    assert find("hopper-random-v2") == folders[1] / "hopper_random-v2.hdf5"
    assert find("hopper-random-v2", episodes=2).parent == folders[0]


# Paths and arrays


def test_every_format_gives_the_same_episodes(tmp_path):
    given = columns()
    write_hdf5(tmp_path / "a.hdf5", given)
    np.savez(tmp_path / "b.npz", **{key: value.numpy() for key, value in given.items()})
    np.savez_compressed(tmp_path / "c.data", **{key: value.numpy() for key, value in given.items()})
    (tmp_path / "c.data.npz").rename(tmp_path / "c.data")  # the content tells the format
    first = load_dataset(given)
    for path in (tmp_path / "a.hdf5", str(tmp_path / "b.npz"), tmp_path / "c.data"):
        assert same(load_dataset(path), first)
        assert load_dataset(path).name == str(path)
        assert load_dataset(path, splitting="adroit").lengths.tolist() == [5]


def test_a_path_may_begin_in_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_hdf5(tmp_path / "a.hdf5", columns())
    assert len(load_dataset("~/a.hdf5")) == 2


def test_a_missing_path_is_not_taken_for_an_id(tmp_path):
    for path in ("runs/data-v2.hdf5", "x.npz", tmp_path / "D4RL" / "door-v2"):
        with pytest.raises(DataError, match="is not there, or is no file"):
            load_dataset(path)


def test_a_pickle_is_refused(tmp_path):
    (tmp_path / "data.pkl").write_bytes(b"\x80\x04cposix\nsystem\n.")
    with pytest.raises(DataError, match=r"data\.pkl is a pickle.*numpy\.savez"):
        load_dataset(tmp_path / "data.pkl")


def test_arrays_of_any_kind_make_a_dataset():
    given = columns()
    arrays: dict[str, object] = {key: value.numpy() for key, value in given.items()}
    arrays |= {"rewards": list(range(10)), "timeouts": given["timeouts"].int().tolist(), "policy": "mine"}
    arrays["observations"] = given["observations"].double().numpy()
    arrays["actions"].flags.writeable = False
    assert same(load_dataset(arrays), load_dataset(given))


def test_arrays_are_not_copied():
    given = {key: value.numpy() for key, value in columns().items()}
    dataset = load_dataset(given)
    given["observations"][0, 0] = 7
    assert dataset.observations[0, 0] == 7


def test_arrays_without_numbers_are_refused():
    with pytest.raises(DataError, match="The mapping: 'rewards' holds <U3, not numbers"):
        load_dataset(columns() | {"rewards": ["one"] * 10})
    with pytest.raises(DataError, match=r"The mapping lacks \['actions'\]"):
        load_dataset({key: value for key, value in columns().items() if key != "actions"})
    with pytest.raises(DataError, match="The mapping: 'rewards' holds inf at row 0"):
        load_dataset(columns() | {"rewards": np.full(10, 1e300)})


def test_it_is_public():
    assert dtune.load_dataset is load_dataset


# The sample files: statistics of finished episodes, as their page lists them


STATISTICS = {
    "door-human-v1": (6729, 25, 39, 28, 29.01, 12.15, 223, 269, 300),
    "door-cloned-v1": (7204, 31, 39, 28, 11.1, 15.1, 200, 232, 300),
    "hammer-human-v1": (11310, 25, 46, 26, 23.16, 21.61, 321, 452, 567),
    "hammer-cloned-v1": (7119, 24, 46, 26, 9.11, 18.14, 200, 297, 567),
    "pen-human-v1": (5000, 25, 45, 24, 219.46, 144.19, 200, 200, 200),
    "pen-cloned-v1": (7091, 51, 45, 24, 124.6, 132.1, 93, 139, 200),
    "antmaze-umaze-v2": (20000, 59, 29, 8, 100.0, 0.0, 232, 336, 674),
    "antmaze-umaze-diverse-v2": (20000, 20, 29, 8, 5.0, 21.79, 220, 961, 1000),
    "hopper-medium-v2": (25000, 69, 11, 3, 40.8, 17.47, 244, 359, 1000),
    "hopper-medium-replay-v2": (20000, 145, 11, 3, 13.9, 14.81, 10, 137, 643),
    "walker2d-medium-v2": (15000, 22, 17, 6, 59.7, 24.73, 300, 677, 1000),
    "walker2d-medium-replay-v2": (15000, 69, 17, 6, 15.93, 22.47, 8, 216, 1000),
    "ant-medium-v2": (12000, 17, 111, 8, 72.68, 42.74, 23, 671, 1000),
    "ant-medium-replay-v2": (12000, 29, 111, 8, 19.01, 25.93, 11, 408, 1000),
}
"""Steps, trajectories, observation, action, score's mean and deviation, shortest, mean and longest trajectory."""


def sample(name: str) -> Path:
    folder = "antmaze" if "maze" in name else "adroit" if name.endswith("v1") else "mujoco"
    return sample_file(f"{folder}/{name}")


@pytest.mark.parametrize("name", STATISTICS)
def test_sample_files_have_the_statistics_of_their_page(name):
    steps, episodes, observed, acted, mean, deviation, *lengths = STATISTICS[name]
    columns = loading.columns_of(sample(name))
    assert columns["observations"].shape == (steps, observed)
    dataset = load_dataset(sample(name), splitting="locomotion")
    info = task_info(name)
    assert len(dataset) == episodes
    assert (dataset.observations.shape[1], dataset.actions.shape[1]) == (info.observation_dim, acted)
    scores = normalized_score(name, dataset.returns)
    assert (scores.mean().item(), scores.std(correction=0).item()) == pytest.approx((mean, deviation), abs=0.051)
    found = (dataset.lengths.min(), dataset.lengths.double().mean(), dataset.lengths.max())
    assert [round(float(length)) for length in found] == lengths


def test_the_real_demonstrations_give_the_papers_numbers_by_name(folders):
    (folders[1] / "door-human-v1.hdf5").symlink_to(sample("door-human-v1"))
    dataset, known = load_dataset("door-human-v1"), source("door-human-v1")
    assert dataset.steps == known.steps == 6504
    scores = normalized_score("door-human-v1", dataset.returns)
    assert scores.mean().item() == pytest.approx(known.score[0], abs=0.006)
    # The printed deviation went through the formula of the mean: (std - R_random) / (R_expert - R_random).
    deviation = normalized_score("door-human-v1", dataset.returns.std(correction=0).item())
    assert deviation == pytest.approx(known.score[1], abs=0.006)


@pytest.mark.parametrize(
    ("name", "steps", "episodes"), [("antmaze-umaze-v2", 19_999, 60), ("antmaze-umaze-diverse-v2", 19_980, 21)]
)
def test_antmaze_by_name_loses_the_timeouts_and_keeps_the_tail(folders, name, steps, episodes):
    (folders[0] / f"{name}.hdf5").symlink_to(sample(name))
    dataset = load_dataset(name)
    assert (dataset.steps, len(dataset)) == (steps, episodes)
    assert dataset.terminated.sum() == loading.columns_of(sample(name))["terminals"].sum()
