"""`load_dataset`: from a name, an id, a path or arrays to episodes; and where the files of names are."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from torch import Tensor

from dtune.data import hdf5, minari
from dtune.data.columns import COLUMNS, Complain, make_dataset, refuse
from dtune.data.datasets import Dataset
from dtune.data.download import PATIENCE, Patience, download
from dtune.data.files import read_columns
from dtune.data.generate import record_random
from dtune.data.splitting import Splitting
from dtune.envs.sources import ADDRESS, SOURCES, source
from dtune.envs.tasks import DATASETS, make_simulator
from dtune.errors import DataError, meant
from dtune.experiments import presets

FILE_ENDINGS = (".hdf5", ".h5", ".npz", ".pkl")


def load_dataset(
    name: str | Path | Mapping[str, Any],
    *,
    splitting: Splitting | None = None,
    download: bool = False,
    episodes: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Loads recorded episodes, in environment units.

    Args:
        name: a dataset of Tables 2-4 (`hopper-medium-v2`; see `find`), a Minari id (`D4RL/door/human-v2`), the path
            of a file (D4RL's or Minari's HDF5, or `.npz`), or the columns themselves, by key: `observations
            [N, obs]`, `actions [N, action]` in [-1, 1], `rewards`, `terminals` and `timeouts [N]`.
        splitting: the rule episodes are cut by; that of the name, or `locomotion` for everything else, where None.
        download: whether to fetch a dataset of that name or id where it is not on this machine.
        episodes: of a random dataset that has to be recorded; as many as make the paper's steps where None.
        seed: of such a recording.

    Returns:
        The episodes, laid end to end. Ant's observations are the first 27 of D4RL's 111; Minari's actions are
        scaled to [-1, 1] by the bounds of their space.

    Raises:
        DataError: if there is no such dataset here, or it is damaged or breaks a rule of `make_dataset`.
        ConfigError: if there is no such splitting.
    """
    if isinstance(name, Mapping):
        return make_dataset(_tensors(name), name="The mapping", splitting=splitting or "locomotion")
    if str(name) in SOURCES:
        path = find(str(name), episodes=episodes, seed=seed, fetch=download)
        return make_dataset(read_columns(path), name=str(path), splitting=splitting or SOURCES[str(name)].splitting)
    columns = columns_of(name, download=download)
    return make_dataset(columns, name=str(name), splitting=splitting or "locomotion")


def columns_of(name: str | Path, *, download: bool = False, complain: Complain = refuse) -> dict[str, Tensor]:
    """Reads the columns of a path or a Minari id.

    Raises:
        DataError: if it is neither, or cannot be read.
    """
    path = Path(name).expanduser()
    if path.exists() or path.suffix in FILE_ENDINGS or isinstance(name, Path):
        return read_columns(path, complain)
    if minari.ID.fullmatch(name):
        try:
            path, space = minari.find_minari(name, download=download)
        except DataError as error:
            raise DataError(f"{error}{meant(name, SOURCES)}") from error
        columns = minari.read_columns(path, complain)
        return columns | {"actions": minari.scale_actions(columns["actions"], space)}
    raise DataError(
        f"{str(name)!r} is no file here, no Minari id (as D4RL/door/human-v2), and no dataset of Tables 2-4"
        f"{meant(str(name), SOURCES)}: {', '.join(SOURCES)}."
    )


def data_folder() -> Path:
    """Where datasets are kept: $DTUNE_DATA, or ~/.dtune/datasets."""
    return Path(os.environ.get("DTUNE_DATA", "~/.dtune/datasets")).expanduser()


def places(name: str) -> list[Path]:
    """Where the file of a dataset may lie, in the order of preference: our folder and name, then D4RL's.

    Raises:
        ConfigError: if it is not one of Tables 2-4.
    """
    ours, names = data_folder(), (f"{name}.hdf5", source(name).file_name)
    d4rls = Path(os.environ.get("D4RL_DATASET_DIR", "~/.d4rl/datasets")).expanduser()
    return [folder / file for folder in (ours, d4rls) for file in names]


def here(name: str) -> Path | None:
    """The file of a dataset that is on this machine already, any recording of a random one included; None without.

    Raises:
        ConfigError: if it is not one of Tables 2-4.
    """
    recordings = sorted(data_folder().glob(f"{name}.*-episodes.*.hdf5"), key=lambda path: -path.stat().st_size)
    return next((path for path in (*places(name), *recordings) if path.is_file()), None)


def find(name: str, *, episodes: int | None = None, seed: int = 0, threads: int = 1, fetch: bool = False) -> Path:
    """The file of a dataset of Tables 2-4, from `places`; a random one that is not there is recorded.

    Args:
        name: of the dataset.
        episodes: of such a recording; with a number it is always a recording, and D4RL's own file is not looked for.
        seed: of such a recording.
        threads: for its physics. Results do not depend on it.
        fetch: whether to download what is not there.

    Raises:
        DataError: if it is not there, or cannot be downloaded.
        ConfigError: if it is not one of Tables 2-4.
    """
    known = source(name)
    found = [path for path in places(name) if path.is_file()]
    if found and not (known.random and episodes):
        return found[0]
    if fetch:
        return fetch_file(name)
    if known.random:
        count = episodes or presets.pretraining(name, "paper").random_episodes
        return make_random(name, recording(name, count, seed), episodes=count, seed=seed, threads=threads)
    path = places(name)[0]
    raise DataError(
        f"{path} is not there: `dtune data download {name}` fetches it, or put D4RL's {known.file_name} there, "
        "or name another file (--data PATH, where the command has that)."
    )


def recording(name: str, episodes: int, seed: int) -> Path:
    """Where a random dataset recorded on this machine is kept."""
    return data_folder() / f"{name}.{episodes}-episodes.seed{seed}.hdf5"


def make_random(name: str, path: Path, *, episodes: int, seed: int = 0, threads: int = 1) -> Path:
    """Records a random dataset as D4RL did, from uniform actions, unless `path` is there already.

    Args:
        name: of a random dataset.
        path: the file to be made; its folder is made, too.
        episodes: how many.
        seed: of their starts and actions. The same seed gives the same bytes.
        threads: for the physics. Results do not depend on it.
    """
    if not path.is_file():
        task = DATASETS[name]
        print(f"recording {episodes:,} random episodes of {task} in {path}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        generator, simulator = torch.Generator().manual_seed(seed), make_simulator(task, threads)
        with _bar(name, MofNCompleteColumn()) as update:
            columns = record_random(
                simulator, episodes=episodes, generator=generator, progress=lambda done: update(done, episodes)
            )
        hdf5.write_hdf5(path, columns)
    return path


def fetch_file(name: str, *, patience: Patience = PATIENCE) -> Path:
    """Downloads D4RL's file of a dataset from $DTUNE_D4RL_URL (by default D4RL's server) into `data_folder`.

    A bar shows how far it is, where standard error is a terminal.

    Raises:
        DataError: if it cannot be had: it says which file to put where.
        ConfigError: if it is not one of Tables 2-4.
    """
    path, known = places(name)[0], source(name)
    address = f"{os.environ.get('DTUNE_D4RL_URL', ADDRESS).rstrip('/')}/{known.file}"
    with _bar(name, DownloadColumn(), TransferSpeedColumn()) as update:
        try:
            download(address, path, signature=hdf5.SIGNATURE, progress=update, patience=patience)
        except DataError as error:
            raise DataError(f"{error} Or put D4RL's {known.file_name} at {path} by hand.") from error
    return path


@contextmanager
def _bar(title: str, *columns: ProgressColumn) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on standard error, where that is a terminal: gives what is to be told how much of how much is done."""
    shown = (TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn())
    with Progress(*shown, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, whole: bar.update(task, completed=done, total=whole)


def _tensors(columns: Mapping[str, Any]) -> dict[str, Tensor]:
    """The columns as tensors; those that are arrays of float32 are not copied."""
    tensors = {}
    for key in COLUMNS:
        if key in columns and isinstance(columns[key], Tensor):
            tensors[key] = columns[key].detach()
        elif key in columns:
            array = np.asarray(columns[key])
            if array.dtype.kind not in "biuf":
                raise DataError(f"The mapping: {key!r} holds {array.dtype}, not numbers: give arrays of numbers.")
            kind = np.dtype(bool) if array.dtype.kind == "b" else np.dtype(np.float32)
            with np.errstate(over="ignore"):  # too large is infinity, which is refused by its row
                tensors[key] = torch.from_numpy(np.require(array, kind, ["C", "W"]))
    return tensors
