"""Looking at a stranger's HDF5 file without following, believing or executing anything in it."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import h5py

from dtune.errors import DataError

# Deflate makes data at most 1,032 times smaller: a larger claim is a hole in the file, not data.
COMPRESSION_LIMIT = 1032
SMALL = 16 * 2**20  # bytes that may be claimed without a look at what is stored: columns of zeros are often not
CHUNK = 4096  # bytes of memory that HDF5 needs for each chunk it reads, stored or not


@contextmanager
def damage_explained(where: str, kind: str = "") -> Iterator[None]:
    """Turns whatever h5py, zipfile or NumPy meets in a damaged file into a `DataError`.

    Args:
        where: the file, or the file and the key: begins the sentence.
        kind: what the whole file should have been, as `HDF5 file`.
    """
    try:
        yield
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{where} does not fit into memory: read it where there is more.") from error
    except Exception as error:  # damage ends in whatever Python exception is nearest
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{where} {f'is not a readable {kind}' if kind else 'cannot be read'} ({said}): a download that was cut "
            "short looks like this, so download it again."
        ) from error


def member(group: h5py.Group, key: str, where: str) -> h5py.Group | h5py.Dataset:
    """What the group holds under `key`, refused if it lies elsewhere.

    Args:
        group: of a file that is open.
        key: a name in it, of one part.
        where: the file and the key, for messages.

    Raises:
        DataError: if it is a link.
    """
    # Looking at a link does not follow it; h5py would open another file on `group[key]`.
    link = group.get(key, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise DataError(f"{where} is a {type(link).__name__}, which is not followed: copy the numbers themselves.")
    return group[key]


def array(group: h5py.Group, key: str, where: str, kinds: str = "iuf") -> h5py.Dataset:
    """The array under `key`, refused if it is no array of numbers, lies elsewhere, or claims an impossible size.

    Args:
        group: of a file that is open.
        key: a name in it.
        where: the file and the key, for messages.
        kinds: NumPy's letters for the kinds of numbers allowed.

    Raises:
        DataError: as said.
    """
    dataset = member(group, key, where)
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{where} is a group, not an array: a column is one array.")
    storage = dataset.id.get_create_plist()
    if storage.get_layout() == h5py.h5d.VIRTUAL or storage.get_external_count():
        raise DataError(f"{where} keeps its numbers elsewhere, where nothing is opened: copy them into the file.")
    if dataset.dtype.kind not in kinds:
        raise DataError(f"{where} holds {dataset.dtype}, not numbers: store it as float32.")
    if dataset.shape is None:
        raise DataError(f"{where} holds nothing: store one row a step.")
    check_claim(where, dataset.shape, elements(dataset) * dataset.dtype.itemsize, dataset.id.get_storage_size())
    chunks = prod(-(-size // step) for size, step in zip(dataset.shape, dataset.chunks or ()))
    if CHUNK * chunks > max(SMALL, elements(dataset) * dataset.dtype.itemsize):
        raise DataError(
            f"{where} lies in {chunks:,} chunks, and finding them takes more memory than the numbers: store it in "
            "larger ones (h5repack does it)."
        )
    return dataset


def check_claim(where: str, shape: tuple[int, ...], claimed: int, held: int) -> None:
    """Refuses a size that cannot be, before memory is asked for: a few bytes of a file can claim terabytes.

    Args:
        where: the file and the key, for messages.
        shape: that is claimed.
        claimed: bytes that it needs.
        held: bytes that the file stores for it.

    Raises:
        DataError: if the claim is larger than compression explains.
    """
    if claimed > SMALL + COMPRESSION_LIMIT * held:
        raise DataError(
            f"{where} claims {claimed:,} bytes (shape {shape}) and stores {held:,}: no "
            "compression does that, so the file is damaged or made up; download it again."
        )


def check_memory(path: Path, sizes: Iterable[int]) -> None:
    """Refuses a file whose arrays, of so many bytes each, do not fit into the memory that is free.

    Raises:
        DataError: if they do not.
    """
    need, free = sum(sizes), free_memory()
    if need > free:
        raise DataError(
            f"{path} needs {need:,} bytes of memory where {free:,} are free: read it on a larger machine, or "
            "store fewer steps."
        )


def elements(dataset: h5py.Dataset) -> int:
    """Numbers that memory is asked for: those of all rows, or those of one chunk where that is larger."""
    return max(prod(dataset.shape), prod(dataset.chunks or ()))


def free_memory() -> int:
    """Bytes that can be had without swapping; all the machine has where that is not told."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
