"""D4RL's HDF5 files: read without trusting them, written so that they are whole or not there."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from dtune.data.columns import COLUMNS, FLAGS, Complain, check_columns, make_dataset, refuse
from dtune.data.datasets import Dataset
from dtune.data.guards import array, check_memory, damage_explained, elements
from dtune.data.splitting import Splitting
from dtune.errors import DataError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""The first bytes of an HDF5 file."""


def read_hdf5(path: Path | str, *, splitting: Splitting = "locomotion") -> Dataset:
    """Reads the finished episodes of a file in D4RL's layout, named after its path.

    Nothing outside the file is ever opened, and nothing is read before the sizes the file claims were found
    possible: links, outside storage and claims beyond the stored bytes or the free memory are refused.

    Args:
        path: the file.
        splitting: the rule episodes are cut by, one of `splitting.SPLITTINGS`.

    Raises:
        DataError: if the file is missing, damaged, or breaks a rule of `columns.make_dataset`.
    """
    return make_dataset(read_columns(Path(path)), name=str(path), splitting=splitting)


def read_columns(path: Path, complain: Complain = refuse) -> dict[str, Tensor]:
    """Reads the columns of a file in D4RL's layout: float32, flags that are stored as bool as bool.

    Args:
        path: the file.
        complain: told of each column that is missing, has a wrong shape, cannot be or must not be read.

    Returns:
        Those of `columns.COLUMNS` that could be read: all of them, unless `complain` goes on.

    Raises:
        DataError: if the file is no HDF5 file, or does not fit into memory.
    """
    if not path.is_file():
        raise DataError(f"{path} is not there, or is no file: give the path of a D4RL HDF5 file.")
    with damage_explained(str(path), "HDF5 file"), h5py.File(path, "r") as file:
        names = set(file)  # `key in file` would follow links
        stored = _stored(file, [key for key in COLUMNS if key in names], path, complain)
        shapes = {key: dataset.shape for key, dataset in stored.items()}
        check_columns(shapes, name=str(path), others=names - stored.keys(), complain=complain)
        check_memory(path, (4 * elements(dataset) for dataset in stored.values()))
        return dict(_read(stored, path, complain))


def write_hdf5(path: Path | str, columns: Mapping[str, Tensor]) -> None:
    """Writes columns in D4RL's layout (float32, flags as bool, gzip): the whole file, or none if interrupted.

    Args:
        path: where to; a file there is replaced.
        columns: those `columns.make_dataset` needs, and any other of one row a step, as `next_observations`.

    Raises:
        DataError: if a column is missing, or has a wrong shape.
    """
    path = Path(path)
    check_columns({key: tuple(value.shape) for key, value in columns.items()}, name=str(path))
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(unfinished, "w") as file:
            for key, value in columns.items():
                kind = torch.bool if key in FLAGS else torch.float32
                file.create_dataset(key, data=value.detach().cpu().to(kind).numpy(), compression="gzip")
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _stored(file: h5py.File, keys: list[str], path: Path, complain: Complain) -> dict[str, h5py.Dataset]:
    """The columns that may be read."""
    stored = {}
    for key in keys:
        where = f"{path}: {key!r}"
        try:
            with damage_explained(where):
                stored[key] = array(file, key, where, "biuf" if key in FLAGS else "iuf")
        except DataError as error:
            complain(str(error))
    return stored


def _read(stored: dict[str, h5py.Dataset], path: Path, complain: Complain) -> Iterator[tuple[str, Tensor]]:
    for key, dataset in stored.items():
        kind = np.dtype(bool if dataset.dtype.kind == "b" else np.float32)
        try:
            with damage_explained(f"{path}: {key!r}"):
                yield key, torch.from_numpy(dataset.astype(kind)[()])  # HDF5 converts while it reads: no second array
        except DataError as error:
            complain(str(error))
