"""Minari's datasets: found, described and downloaded by `minari`, their numbers read as carefully as D4RL's."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from dtune.data.columns import Complain, refuse
from dtune.data.guards import array, check_claim, damage_explained, elements, free_memory, member
from dtune.errors import DataError

ID = re.compile(r"(?:[\w-]+/)*[\w-]+-v\d+")
"""A Minari id, as `D4RL/door/human-v2`."""
FILE = "main_data.hdf5"
_EPISODE = re.compile(r"episode_(\d{1,9})")
_DEPTH = 4  # of observations in observations


def find_minari(dataset_id: str, *, download: bool = False) -> tuple[Path, Any]:
    """Finds a dataset by `minari`, and downloads it by `minari` if asked to.

    Args:
        dataset_id: Minari's id of it.
        download: whether to fetch it where it is not on this machine.

    Returns:
        Its file of numbers, and the space of its actions (a Gymnasium `Box`).

    Raises:
        DataError: if it or `minari` is not here, cannot be downloaded, is not stored as HDF5, needs code to be
            run to be understood, or its actions are not a `Box`.
    """
    minari = _minari(dataset_id)
    folder = minari_folder() / dataset_id / "data"
    if not folder.is_dir() and not download:
        raise DataError(
            f"{folder} is not there: `dtune data download {dataset_id}` fetches it where there is a network, or put "
            "Minari's folder of the dataset there."
        )
    try:
        if not folder.is_dir():
            minari.download_dataset(dataset_id)
        _check_described(folder)
        dataset = minari.load_dataset(dataset_id)
        space, file = dataset.action_space, Path(dataset.storage.data_path) / FILE
    except DataError:
        raise
    except Exception as error:  # minari, Gymnasium and the network each have their own
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"Minari cannot give {dataset_id} ({said}): put it in {folder.parent}.") from error
    if not (type(space).__name__ == "Box" and len(space.shape) == 1 and space.dtype.kind == "f"):
        raise DataError(
            f"{dataset_id} has actions of {space}: a decision transformer here acts by a vector of real numbers, so "
            "choose a dataset with a Box of one dimension."
        )
    return file, space


def minari_folder() -> Path:
    """Where Minari keeps its datasets: $MINARI_DATASETS_PATH, or ~/.minari/datasets."""
    return Path(os.environ.get("MINARI_DATASETS_PATH", "~/.minari/datasets")).expanduser()


def scale_actions(actions: Tensor, space: Any) -> Tensor:
    """Maps actions from the box of their space onto [-1, 1]; where it has no bounds they stay as they are."""
    low, high = (torch.from_numpy(np.array(bound, np.float32)) for bound in (space.low, space.high))
    if actions.shape[1:] != low.shape or not bool((low.isfinite() & high.isfinite() & (high > low)).all()):
        return actions
    return actions if bool((low == -1).all() & (high == 1).all()) else (actions - low) / (high - low) * 2 - 1


def is_minari(path: Path) -> bool:
    """Whether an HDF5 file has Minari's layout: a group an episode."""
    with damage_explained(str(path), "HDF5 file"), h5py.File(path, "r") as file:
        return any(_EPISODE.fullmatch(name) for name in file)


def read_columns(path: Path, complain: Complain = refuse) -> dict[str, Tensor]:
    """Reads a file of Minari's layout as columns of D4RL's.

    Each `episode_i` becomes rows one after the other, without its last observation, which nothing was done at;
    its last row is a timeout unless it is a terminal. Observations of several parts are put side by side in the
    order of their names, as Gymnasium flattens them.

    Args:
        path: the file.
        complain: told of each episode that cannot be or must not be read.

    Returns:
        float32 `observations [N, obs]`, `actions [N, action]` in the units of the file, `rewards [N]`; bool
        `terminals [N]` and `timeouts [N]`.

    Raises:
        DataError: if it is no HDF5 file, no episode in it can be read, or it does not fit into memory.
    """
    episodes: list[dict[str, Tensor]] = []
    with damage_explained(str(path), "HDF5 file"), h5py.File(path, "r") as file:
        budget = _Budget(path)
        for name in sorted(filter(_EPISODE.fullmatch, file), key=lambda name: int(name.removeprefix("episode_"))):
            try:
                with damage_explained(f"{path}: {name!r}"):
                    episodes.append(_episode(member(file, name, f"{path}: {name!r}"), budget, f"{path}: {name}/"))
            except DataError as error:
                complain(str(error))
    widths = {tuple(episode[key].shape[1] for key in ("observations", "actions")) for episode in episodes}
    if len(widths) != 1:
        raise DataError(
            f"{path} has episodes of different sizes, {sorted(widths)}: store those of one environment in it."
            if episodes
            else f"{path} has no episode that can be read: give another, or download it again."
        )
    return {key: torch.cat([episode.pop(key) for episode in episodes]) for key in list(episodes[0])}


class _Budget:
    """What may still be read of a file: nothing twice under two names, and no more than it can hold in all."""

    def __init__(self, path: Path) -> None:
        self._path, self._free, self._seen = path, free_memory(), set[int]()
        self._claimed = self._held = 0

    def meet(self, found: h5py.Group | h5py.Dataset, where: str) -> None:
        """Refuses what was met before: groups of many names in one another are a tree without end."""
        address = h5py.h5o.get_info(found.id).addr
        if address in self._seen:
            kind = "a group" if isinstance(found, h5py.Group) else "an array"
            raise DataError(f"{where} is {kind} that has another name, too: store each by one name.")
        self._seen.add(address)

    def spend(self, dataset: h5py.Dataset, where: str) -> None:
        """Refuses an array that the file cannot hold, or the memory not take, with those before it."""
        self._claimed += elements(dataset) * max(dataset.dtype.itemsize, 4)
        self._held += dataset.id.get_storage_size()
        check_claim(where, dataset.shape, self._claimed, 4 * self._held)
        if self._claimed > self._free:
            raise DataError(
                f"{self._path} needs more than the {self._free:,} bytes of memory that are free: read it on a larger "
                "machine, or store fewer steps."
            )


def _episode(group: Any, budget: _Budget, where: str) -> dict[str, Tensor]:
    """The columns of one episode."""
    if not isinstance(group, h5py.Group):
        raise DataError(f"{where.rstrip('/')} is not a group: Minari's layout has one for each episode.")
    budget.meet(group, where.rstrip("/"))
    for key in ("observations", "actions", "rewards", "terminations", "truncations"):
        if key not in set(group):
            raise DataError(f"{where} lacks {key!r}: Minari's layout needs it, so record the dataset again.")
    parts = list(_parts(group, "observations", budget, where, _DEPTH))
    flat = {key: _array(group, key, budget, where) for key in ("rewards", "terminations", "truncations")}
    found = {"actions": _array(group, "actions", budget, where, "f"), **flat}
    steps = len(flat["rewards"])
    counts = {key: len(dataset) for key, dataset in found.items()} | {"observations": min(map(len, parts), default=0)}
    due = dict.fromkeys(found, steps) | {"observations": steps + 1}
    ranks = [found["actions"].ndim - 1, *(dataset.ndim for dataset in flat.values())]
    if steps == 0 or counts != due or ranks != [1] * len(ranks) or {len(part) for part in parts} != {steps + 1}:
        raise DataError(
            f"{where} has {counts}: each step has one of each, actions are vectors, and one observation more ends the "
            "episode, so record the dataset again."
        )
    rows = [_read(part, budget, where) for part in parts]
    terminals = _read(found["terminations"], budget, where) != 0
    timeouts = _read(found["truncations"], budget, where) != 0
    timeouts[-1] = True
    return {
        "observations": torch.cat([part.reshape(steps + 1, part[0].numel()) for part in rows], dim=1)[:-1],
        "actions": _read(found["actions"], budget, where),
        "rewards": _read(found["rewards"], budget, where),
        "terminals": terminals,
        "timeouts": timeouts & ~terminals,
    }


def _parts(group: h5py.Group, key: str, budget: _Budget, where: str, depth: int) -> Iterator[h5py.Dataset]:
    """The arrays under `key`, in the order of their names, each met once."""
    found = member(group, key, f"{where}{key}")
    if not isinstance(found, h5py.Group):
        yield _array(group, key, budget, where)
    elif depth == 0:
        raise DataError(f"{where}{key} has groups in groups in groups: nothing so deep is read.")
    else:
        budget.meet(found, f"{where}{key}")
        for name in sorted(found):
            yield from _parts(found, name, budget, f"{where}{key}/", depth - 1)


def _array(group: h5py.Group, key: str, budget: _Budget, where: str, kinds: str = "biuf") -> h5py.Dataset:
    with damage_explained(f"{where}{key}"):
        dataset = array(group, key, f"{where}{key}", kinds)
        budget.meet(dataset, f"{where}{key}")
    if dataset.ndim == 0:
        raise DataError(f"{where}{key} is a single number: store one row a step.")
    return dataset


def _read(dataset: h5py.Dataset, budget: _Budget, where: str) -> Tensor:
    name = where + dataset.name.rpartition("/")[2]
    with damage_explained(name):
        budget.spend(dataset, name)
        return torch.from_numpy(dataset.astype(np.float32)[()])


def _check_described(folder: Path) -> None:
    """Refuses metadata without the spaces: `minari` would make the environment they name, which runs its code."""
    path = folder / "metadata.json"
    try:
        described = dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error}): download the dataset again.") from error
    if described.get("data_format", "hdf5") != "hdf5":
        raise DataError(
            f"{path} says that the data are {described['data_format']!r}: only HDF5 is read, so convert it."
        )
    if not all(isinstance(described.get(key), str) for key in ("observation_space", "action_space")):
        raise DataError(
            f"{path} does not say its observation_space and action_space: to learn them, code of the file's choosing "
            "would be run, so store them."
        )


def _minari(dataset_id: str) -> ModuleType:
    try:
        import minari
    except ImportError as error:
        raise DataError(
            f"{dataset_id} looks like a Minari id, and minari is not installed: pip install 'dtune[minari]'."
        ) from error
    return minari
