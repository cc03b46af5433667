"""D4RL's HDF5 files: read without trusting them, written so that they are whole or not there."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from dtune.data.columns import COLUMNS, FLAGS, check_columns, make_dataset
from dtune.data.datasets import Dataset
from dtune.data.splitting import Splitting
from dtune.errors import DataError

# Deflate makes data at most 1,032 times smaller: a larger claim is a hole in the file, not data.
COMPRESSION_LIMIT = 1032
SMALL = 64 * 2**20  # bytes a column may claim without a look at what the file stores
MOST_CHUNKS = 100_000  # HDF5 needs 4 kB of memory for each it reads, stored or not


def read_hdf5(path: Path | str, *, splitting: Splitting = "locomotion") -> Dataset:
    """Reads the finished episodes of a file in D4RL's layout, named after its path.

    Nothing outside the file is ever opened, and nothing is read before the sizes the file claims were found
    possible: links, outside storage and claims beyond the stored bytes or the free memory are refused.

    Args:
        path: the file.
        splitting: the rule episodes are cut by, one of `columns.SPLITTINGS`.

    Raises:
        DataError: if the file is missing, damaged, or breaks a rule of `columns.make_dataset`.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is not there, or is no file: give the path of a D4RL HDF5 file.")
    with _damage_explained(path), h5py.File(path, "r") as file:
        names = set(file)  # `key in file` would follow links
        stored = {key: _inside(file, key, path) for key in COLUMNS if key in names}
        others = dict.fromkeys(names - set(COLUMNS), ())  # only to say what is there
        check_columns({key: dataset.shape for key, dataset in stored.items()} | others, name=str(path))
        _check_claims(stored, path)
        columns = {key: _read(stored[key]) for key in COLUMNS}
    return make_dataset(columns, name=str(path), splitting=splitting)


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


def dataset_hash(path: Path | str) -> str:
    """The SHA-256 of a file, in hexadecimal: what a run records of the data it learned from."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _damage_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{path} does not fit into memory: read it where there is more.") from error
    except Exception as error:  # h5py meets damage with whatever Python exception is nearest
        raise DataError(
            f"{path} is not a readable HDF5 file ({error}): a download that was cut short looks like this, "
            "so download it again."
        ) from error


def _inside(file: h5py.File, key: str, path: Path) -> h5py.Dataset:
    """The dataset `key` of the file, refused if its numbers might lie elsewhere."""
    # Looking at a link does not follow it; h5py would open another file on `file[key]`.
    link = file.get(key, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise DataError(
            f"{path}: {key!r} is a {type(link).__name__}, which is not followed: copy the numbers themselves."
        )
    dataset = file[key]
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{path}: {key!r} is a group, not an array: D4RL's layout has one array a column.")
    storage = dataset.id.get_create_plist()
    if storage.get_layout() == h5py.h5d.VIRTUAL or storage.get_external_count():
        raise DataError(
            f"{path}: {key!r} keeps its numbers elsewhere, where nothing is opened: copy them into the file."
        )
    if dataset.dtype.kind not in ("biuf" if key in FLAGS else "iuf"):
        raise DataError(f"{path}: {key!r} holds {dataset.dtype}, not numbers: store it as float32.")
    return dataset


def _check_claims(stored: Mapping[str, h5py.Dataset], path: Path) -> None:
    """Refuses sizes that cannot be, before memory is asked for: a few bytes of a file can claim terabytes."""
    for key, dataset in stored.items():
        claim, held = _elements(dataset) * dataset.dtype.itemsize, dataset.id.get_storage_size()
        if claim > SMALL + COMPRESSION_LIMIT * held:
            raise DataError(
                f"{path}: {key!r} claims {claim:,} bytes (shape {dataset.shape}) and stores {held:,}: no "
                "compression does that, so the file is damaged or made up; download it again."
            )
        chunks = prod(-(-size // step) for size, step in zip(dataset.shape, dataset.chunks or ()))
        if chunks > MOST_CHUNKS:
            raise DataError(
                f"{path}: {key!r} lies in {chunks:,} chunks, above the limit of {MOST_CHUNKS:,}: store it in "
                "larger ones (h5repack does it)."
            )
    need, free = 4 * sum(map(_elements, stored.values())), _free_memory()
    if need > free:
        raise DataError(
            f"{path} needs {need:,} bytes of memory where {free:,} are free: read it on a larger machine, or "
            "store fewer steps."
        )


def _elements(dataset: h5py.Dataset) -> int:
    """Numbers that memory is asked for: those of all rows, or those of one chunk where that is larger."""
    return max(prod(dataset.shape), prod(dataset.chunks or ()))


def _free_memory() -> int:
    """Bytes that can be had without swapping; all the machine has where that is not told."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _read(dataset: h5py.Dataset) -> Tensor:
    kind = np.dtype(bool if dataset.dtype.kind == "b" else np.float32)
    return torch.from_numpy(dataset.astype(kind)[()])  # HDF5 converts while it reads: no second array
