"""Minari's datasets: made, found and described by minari itself."""

import json
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from dtune.data import minari as module
from dtune.data.files import read_columns
from dtune.errors import DataError
from dtune.experiments.loading import load_dataset

LENGTHS = [4, 1, 6]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def buffers(observe: Any = None, act: Any = None) -> list[Any]:
    """Episodes of the lengths above: the first is cut by the clock, the others are ended by the environment."""
    minari = pytest.importorskip("minari")
    chance = np.random.default_rng(0)
    made = []
    for number, length in enumerate(LENGTHS):
        observations = chance.normal(size=(length + 1, 3)).astype(np.float32)
        actions = chance.uniform(-2, 2, (length, 2)).astype(np.float32)
        last = np.arange(length) == length - 1
        made.append(
            minari.data_collector.EpisodeBuffer(
                id=number,
                observations=observe(observations) if observe else observations,
                actions=act(actions) if act else actions,
                rewards=list(chance.normal(size=length)),
                terminations=list(last & (number > 0)),
                truncations=list(last & (number == 0)),
                infos={"noise": chance.normal(size=length)},
            )
        )
    return made


def make(
    name: str = "mine/small-v0", observe: Any = None, act: Any = None, space: Any = None, observed: Any = None
) -> list[Any]:
    """Lets minari write a dataset; its episodes as they went in."""
    minari, spaces = pytest.importorskip("minari"), pytest.importorskip("gymnasium").spaces
    made = buffers(observe, act)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # minari's own, on environments that are not there
        minari.create_dataset_from_buffers(
            name,
            buffer=made,
            observation_space=observed or spaces.Box(-np.inf, np.inf, (3,), np.float32),
            action_space=space or spaces.Box(-2.0, 2.0, (2,), np.float32),
            author="",
            author_email="",
            code_permalink="",
            algorithm_name="",
            description="",
        )
    return made


def joined(made: list[Any], key: str) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([np.asarray(getattr(episode, key), np.float32) for episode in made]))


def main_file(folder: Path, name: str = "mine/small-v0") -> Path:
    return folder / name / "data" / "main_data.hdf5"


def test_a_dataset_is_loaded_by_its_id(folder):
    made = make()
    dataset = load_dataset("mine/small-v0")
    assert dataset.name == "mine/small-v0"
    assert dataset.lengths.tolist() == LENGTHS
    expected = torch.from_numpy(np.concatenate([episode.observations[:-1] for episode in made]))
    assert torch.equal(dataset.observations, expected)
    torch.testing.assert_close(dataset.rewards, joined(made, "rewards"))
    assert dataset.terminated.nonzero().squeeze(1).tolist() == [4, 10]
    torch.testing.assert_close(dataset.actions, joined(made, "actions") / 2)  # from [-2, 2] to [-1, 1]


def test_many_episodes_come_in_the_order_of_their_numbers(folder, monkeypatch):
    monkeypatch.setitem(globals(), "LENGTHS", [2] * 12)
    made = make()
    torch.testing.assert_close(load_dataset("mine/small-v0").rewards, joined(made, "rewards"))


def test_one_sided_boxes_are_scaled_and_boxes_without_bounds_are_not():
    spaces = pytest.importorskip("gymnasium").spaces
    actions = torch.tensor([[0.0, 3.0], [1.0, 4.0]])
    box = spaces.Box(np.array([0, 3], np.float32), np.array([1, 5], np.float32))
    assert module.scale_actions(actions, box).tolist() == [[-1, -1], [1, 0]]
    for open_box in (spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(-1.0, 1.0, (2,))):
        assert module.scale_actions(actions, open_box) is actions


def test_observations_of_parts_are_flattened_as_gymnasium_does(folder):
    gymnasium = pytest.importorskip("gymnasium")
    box = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    observed = gymnasium.spaces.Dict({"goal": box, "body": gymnasium.spaces.Dict({"z": box, "a": box})})

    def parts(rows: np.ndarray) -> dict:
        return {"goal": rows[:, :1], "body": {"z": rows[:, 1:2], "a": rows[:, 2:]}}

    made = make(observe=parts, observed=observed)
    first = {
        "goal": made[0].observations["goal"][0],
        "body": {k: v[0] for k, v in made[0].observations["body"].items()},
    }
    dataset = load_dataset("mine/small-v0")
    assert dataset.observations[0].tolist() == gymnasium.spaces.flatten(observed, first).tolist()


def test_the_file_alone_is_read_too_with_actions_as_they_are(folder):
    make(act=lambda actions: actions / 2)
    dataset = load_dataset(main_file(folder))
    assert dataset.lengths.tolist() == LENGTHS
    assert dataset.name == str(main_file(folder))


def test_actions_outside_are_refused_where_no_space_is_known(folder):
    make()
    with pytest.raises(DataError, match="'actions' reach"):
        load_dataset(main_file(folder))


def test_discrete_actions_are_refused(folder):
    spaces = pytest.importorskip("gymnasium").spaces
    make(act=lambda actions: np.zeros(len(actions), np.int64), space=spaces.Discrete(3))
    with pytest.raises(DataError, match=r"mine/small-v0 has actions of Discrete\(3\)"):
        load_dataset("mine/small-v0")
    with pytest.raises(DataError, match=r"episode_0/actions holds int64"):
        load_dataset(main_file(folder))


def test_what_is_not_there_is_said_with_its_place_and_the_command(folder):
    pytest.importorskip("minari")
    with pytest.raises(
        DataError, match=r"D4RL/door/human-v2/data is not there: `dtune data download D4RL/door/human-v2`"
    ):
        load_dataset("D4RL/door/human-v2")


def test_it_is_downloaded_by_minari_when_asked(folder, monkeypatch):
    minari = pytest.importorskip("minari")
    make()
    kept = shutil.move(folder / "mine", folder.parent / "remote")
    asked = []

    def fetch(dataset_id: str) -> None:
        asked.append(dataset_id)
        shutil.copytree(kept, folder / "mine")

    monkeypatch.setattr(minari, "download_dataset", fetch)
    assert len(load_dataset("mine/small-v0", download=True)) == 3
    assert len(load_dataset("mine/small-v0", download=True)) == 3
    assert asked == ["mine/small-v0"]


def test_a_network_that_is_not_there_is_said(folder, monkeypatch):
    minari = pytest.importorskip("minari")

    def fail(dataset_id: str) -> None:
        raise ConnectionError("no way\nthere")

    monkeypatch.setattr(minari, "download_dataset", fail)
    with pytest.raises(DataError, match=r"Minari cannot give a/b-v0 \(no way there\): put it in .*a/b-v0"):
        load_dataset("a/b-v0", download=True)


def test_without_minari_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "minari", None)
    with pytest.raises(DataError, match=r"minari is not installed: pip install 'dtune\[minari\]'"):
        load_dataset("D4RL/door/human-v2")


def test_metadata_never_make_an_environment(folder, tmp_path):
    """To learn the spaces, minari would make the environment that the file names, and so import its module."""
    make()
    path = main_file(folder).with_name("metadata.json")
    described = json.loads(path.read_text())
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    del described["action_space"]
    described["env_spec"] = json.dumps({"id": "Trap-v0", "entry_point": "trap:Env", "kwargs": {}})
    path.write_text(json.dumps(described))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        with pytest.raises(DataError, match="does not say its observation_space and action_space"):
            load_dataset("mine/small-v0")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "cannot be read"), ("[1]", "cannot be read"), ('{"data_format": "arrow"}', "only HDF5 is read")],
)
def test_damaged_metadata_are_refused(folder, content, said):
    make()
    main_file(folder).with_name("metadata.json").write_text(content)
    with pytest.raises(DataError, match=said):
        load_dataset("mine/small-v0")


# The file, made by hand


def episodes(path: Path, count: int = 2) -> None:
    with h5py.File(path, "w") as file:
        for number in range(count):
            group = file.create_group(f"episode_{number}")
            group["observations"] = np.zeros((4, 2), np.float32)
            group["actions"] = np.zeros((3, 1), np.float32)
            group["rewards"] = np.ones(3)
            group["terminations"] = np.zeros(3, bool)
            group["truncations"] = np.zeros(3, bool)


def replace(path: Path, key: str, value: Any) -> None:
    with h5py.File(path, "r+") as file:
        del file[key]
        file[key] = value


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_columns(path)
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


def test_an_episode_ends_though_nothing_says_so(tmp_path):
    episodes(tmp_path / "main_data.hdf5")
    columns = read_columns(tmp_path / "main_data.hdf5")
    assert columns["timeouts"].tolist() == [False, False, True] * 2
    assert not columns["terminals"].any()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("observations", np.zeros((3, 2), np.float32), "episode_1/ has {'actions': 3"),
        ("actions", np.zeros((3, 1), np.int32), "episode_1/actions holds int32"),
        ("rewards", np.float32(1), "episode_1/rewards is a single number"),
        ("rewards", np.zeros(2), "episode_1/ has {'actions': 3, 'rewards': 2"),
        ("terminations", np.array([b"x"] * 3), "episode_1/terminations holds |S1"),
        ("truncations", h5py.SoftLink("/episode_0/truncations"), "episode_1/truncations is a SoftLink"),
        ("actions", h5py.ExternalLink("other.hdf5", "/x"), "episode_1/actions is a ExternalLink"),
        ("actions", np.zeros((3, 4), np.float32), "episodes of different sizes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_episode_that_breaks_a_rule_is_refused(tmp_path, key, value, said):
    path = tmp_path / "main_data.hdf5"
    episodes(path)
    replace(path, f"episode_1/{key}", value)
    assert said in refusal(path)


@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "terminations", "truncations"])
def test_a_missing_array_is_refused(tmp_path, key):
    path = tmp_path / "main_data.hdf5"
    episodes(path)
    with h5py.File(path, "r+") as file:
        del file[f"episode_1/{key}"]
    assert f"episode_1/ lacks '{key}'" in refusal(path)


def test_a_group_inside_itself_ends(tmp_path):
    path = tmp_path / "main_data.hdf5"
    episodes(path)
    with h5py.File(path, "r+") as file:
        del file["episode_1/observations"]
        group = file.create_group("episode_1/observations")
        group["again"] = group
    assert "episode_1/observations/again is a group that has another name" in refusal(path)


def test_groups_too_deep_are_not_read(tmp_path):
    path = tmp_path / "main_data.hdf5"
    episodes(path)
    replace(path, "episode_1/observations", np.zeros((4, 2)))
    with h5py.File(path, "r+") as file:
        file.move("episode_1/observations", "kept")
        file["episode_1/observations/a/b/c/d/e"] = file["kept"]
    assert "nothing so deep is read" in refusal(path)


@pytest.mark.parametrize("links", [16, 100])
def test_groups_of_many_names_are_not_walked(tmp_path, links):
    """100 names in each of 4 groups, one in the other, are 100,000,000 ways to one array."""
    path = tmp_path / "main_data.hdf5"
    episodes(path)
    with h5py.File(path, "r+") as file:
        inner = file["episode_1/observations"]
        del file["episode_1/observations"]
        for depth in range(4):
            group = file.create_group(f"level_{depth}")
            for number in range(links):
                group[f"{number:03}"] = inner
            inner = group
        file["episode_1/observations"] = inner
    assert path.stat().st_size < 100_000
    began = time.monotonic()
    assert "episode_1/observations/000/000/000/001 is an array that has another name" in refusal(path)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("name", "other", "kind"),
    [
        ("episode_2", "episode_0", "a group"),
        ("episode_1/observations", "episode_0/observations", "an array"),
        ("episode_1/rewards", "episode_0/rewards", "an array"),
        ("episode_1/truncations", "episode_1/terminations", "an array"),
    ],
)
def test_the_same_by_two_names_is_refused(tmp_path, name, other, kind):
    path = tmp_path / "main_data.hdf5"
    episodes(path)
    with h5py.File(path, "r+") as file:
        if name in file:
            del file[name]
        file[name] = file[other]
    assert f"{name} is {kind} that has another name" in refusal(path).replace("'", "")


def test_claims_of_many_episodes_are_added_up(tmp_path):
    path = tmp_path / "main_data.hdf5"
    episodes(path, 10)
    with h5py.File(path, "r+") as file:
        for number in range(10):
            shapes = {"observations": (10**6, 2), "actions": (10**6 - 1, 1)}
            for key in list(file[f"episode_{number}"]):
                del file[f"episode_{number}/{key}"]
                shape = shapes.get(key, (10**6 - 1,))
                file.create_dataset(f"episode_{number}/{key}", shape, np.float32)  # of which nothing is stored
    assert "no compression does that" in refusal(path)


def test_every_bad_episode_can_be_gathered(tmp_path):
    path = tmp_path / "main_data.hdf5"
    episodes(path, 4)
    for number in (1, 3):
        replace(path, f"episode_{number}/rewards", np.zeros(9))
    problems: list[str] = []
    assert len(module.read_columns(path, problems.append)["rewards"]) == 6
    assert ["episode_1/" in problems[0], "episode_3/" in problems[1], len(problems)] == [True, True, 2]
