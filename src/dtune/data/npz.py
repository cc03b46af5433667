"""NumPy's .npz files in D4RL's layout: one array a column. Nothing in them is unpickled."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from dtune.data.columns import COLUMNS, FLAGS, Complain, check_columns, refuse
from dtune.data.guards import check_claim, check_memory, damage_explained
from dtune.errors import DataError

SIGNATURE = b"PK"
"""The first bytes of an .npz file, which is a ZIP archive."""
ENDING = ".npy"
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what NumPy writes, and what COMPRESSION_LIMIT is of


def read_columns(path: Path, complain: Complain = refuse) -> dict[str, Tensor]:
    """Reads the columns of an .npz file: float32, flags that are stored as bool as bool.

    Args:
        path: the file, as `numpy.savez` or `numpy.savez_compressed` writes it.
        complain: told of each column that is missing, has a wrong shape, cannot be or must not be read.

    Returns:
        Those of `columns.COLUMNS` that could be read: all of them, unless `complain` goes on.

    Raises:
        DataError: if the file is no ZIP archive, or does not fit into memory.
    """
    with damage_explained(str(path), ".npz file"), zipfile.ZipFile(path) as archive:
        names = {name.removesuffix(ENDING) for name in archive.namelist() if name.endswith(ENDING)}
        headers = {}
        for key in COLUMNS:
            if key in names:
                try:
                    headers[key] = _header(archive, key, f"{path}: {key!r}")
                except DataError as error:
                    complain(str(error))
        shapes = {key: shape for key, (shape, _) in headers.items()}
        check_columns(shapes, name=str(path), others=names - headers.keys(), complain=complain)
        check_memory(path, (int(np.prod(shape)) * max(kind.itemsize, 4) for shape, kind in headers.values()))
        return dict(_read(archive, list(headers), path, complain))


def read_array(archive: zipfile.ZipFile, key: str, where: str) -> np.ndarray:
    """Reads one array of numbers from an .npz file that is open.

    Args:
        archive: the file.
        key: name of the array.
        where: the file and the key, for messages.

    Raises:
        DataError: if it is missing, damaged, holds anything but numbers or claims more than the file can hold.
    """
    with damage_explained(where):
        _header(archive, key, where)
        with archive.open(key + ENDING) as stream:
            array = npy.read_array(stream, allow_pickle=False)
            if stream.read(1):  # reading to the end is what makes zipfile compare the checksum
                raise DataError(f"{where} is longer than it says: write it again.")
    return array


def _header(archive: zipfile.ZipFile, key: str, where: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and kind of an array, refused if it holds no numbers or claims more than the archive can hold."""
    with damage_explained(where):
        entry = archive.getinfo(key + ENDING)
        if entry.compress_type not in COMPRESSIONS or entry.flag_bits & 1:
            raise DataError(f"{where} is encrypted, or compressed as NumPy does not: write it with numpy.savez.")
        with archive.open(entry) as stream:
            first = npy.read_magic(stream) == (1, 0)
            shape, _, kind = (npy.read_array_header_1_0 if first else npy.read_array_header_2_0)(stream)
    if kind.kind not in ("biuf" if key in FLAGS else "iuf"):
        raise DataError(f"{where} holds {kind}, not numbers: store it as float32.")
    size = int(np.prod(shape, dtype=object)) * kind.itemsize
    check_claim(where, shape, max(size, entry.file_size), entry.compress_size)
    if size > entry.file_size:
        raise DataError(f"{where} claims {size:,} bytes and has {entry.file_size:,}: it is cut short; write it again.")
    return shape, kind


def _read(archive: zipfile.ZipFile, keys: list[str], path: Path, complain: Complain) -> Iterator[tuple[str, Tensor]]:
    for key in keys:
        try:
            array = read_array(archive, key, f"{path}: {key!r}")
            kind = np.dtype(bool if array.dtype.kind == "b" else np.float32)
            with np.errstate(over="ignore"):  # too large for float32 is infinity, which is refused by its row
                yield key, torch.from_numpy(np.ascontiguousarray(array, dtype=kind))
        except DataError as error:
            complain(str(error))
