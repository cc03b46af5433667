"""NumPy's .npz files in D4RL's layout: one array a column. Nothing in them is unpickled."""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
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
HEADERS = {(1, 0): (2, npy.read_array_header_1_0), (2, 0): (4, npy.read_array_header_2_0)}
"""By version of the header before an array's numbers: bytes that its length is told in, and who reads it."""
HEADER_LIMIT = 10_000  # bytes, NumPy's own: but NumPy reads the header before it compares
DIRECTORY_LIMIT = 2**18  # bytes of an archive's table of contents: some 3,000 arrays


class _Archive(io.BufferedReader):
    """The file of an archive; zipfile reads the table of contents at once, and makes an object of every line."""

    opened = False

    def read(self, size: int | None = -1, /) -> bytes:
        if not self.opened and size is not None and size > DIRECTORY_LIMIT:
            raise DataError(
                f"{self.name} has a table of contents of {size:,} bytes and {DIRECTORY_LIMIT:,} are read at most:"
                " store fewer arrays in one file."
            )
        return super().read(size)


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens an .npz file, a stranger's perhaps, for as long as the context lasts.

    Raises:
        DataError: if its table of contents is longer than that of any recording.
    """
    with _Archive(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
        file.opened = True
        yield archive


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
    with damage_explained(str(path), ".npz file"), open_archive(path) as archive:
        names = {name.removesuffix(ENDING) for name in archive.namelist() if name.endswith(ENDING)}
        headers = {}
        for key in COLUMNS:
            if key in names:
                try:
                    headers[key] = read_header(archive, key, f"{path}: {key!r}")
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
        read_header(archive, key, where)
        with archive.open(key + ENDING) as stream:
            array = npy.read_array(stream, allow_pickle=False)
            if stream.read(1):  # reading to the end is what makes zipfile compare the checksum
                raise DataError(f"{where} is longer than it says: write it again.")
    return array


def read_header(archive: zipfile.ZipFile, key: str, where: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and kind of an array, refused if it holds no numbers or claims more than the archive can hold.

    Args:
        archive: the file, open.
        key: name of the array.
        where: the file and the key, for messages.

    Raises:
        DataError: as said, or if it is missing or damaged.
    """
    with damage_explained(where):
        entry = archive.getinfo(key + ENDING)
        if entry.compress_type not in COMPRESSIONS or entry.flag_bits & 1:
            raise DataError(f"{where} is encrypted, or compressed as NumPy does not: write it with numpy.savez.")
        shape, kind = _read_description(archive, entry, where)
    if kind.kind not in ("biuf" if key in FLAGS else "iuf"):
        raise DataError(f"{where} holds {kind}, not numbers: store it as float32.")
    size = int(np.prod(shape, dtype=object)) * kind.itemsize
    check_claim(where, shape, max(size, entry.file_size), entry.compress_size)
    if size > entry.file_size:
        raise DataError(f"{where} claims {size:,} bytes and has {entry.file_size:,}: it is cut short; write it again.")
    return shape, kind


def _read_description(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, where: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and kind, from a header whose length is looked at before it is read."""
    with archive.open(entry) as stream:
        version = npy.read_magic(stream)
        if version not in HEADERS:
            raise DataError(f"{where} has a header of version {version}: write it with numpy.savez, as plain numbers.")
        width, parse = HEADERS[version]
        told = stream.read(width)
        length = int.from_bytes(told, "little")
        if length > HEADER_LIMIT:
            raise DataError(
                f"{where} has a header of {length:,} bytes and {HEADER_LIMIT:,} are read at most: write it with"
                " numpy.savez, as plain numbers."
            )
        shape, _, kind = parse(io.BytesIO(told + stream.read(length)))
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
