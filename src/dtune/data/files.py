"""A recording in a file, whatever its format: the one place that tells the formats apart."""

from pathlib import Path

from torch import Tensor

from dtune.data import hdf5, minari, npz
from dtune.data.columns import Complain, refuse
from dtune.errors import DataError


def read_columns(path: Path, complain: Complain = refuse) -> dict[str, Tensor]:
    """Reads the columns of a recording: HDF5 in D4RL's layout or Minari's, or .npz in D4RL's.

    The format is told by the content; a name can lie.

    Args:
        path: the file.
        complain: told of each column that is missing, has a wrong shape, cannot be or must not be read.

    Returns:
        Columns in D4RL's layout, for `columns.make_dataset`: all of them, unless `complain` goes on.

    Raises:
        DataError: if the file is missing or damaged as a whole, of no such format, or does not fit into memory.
    """
    if not path.is_file():
        raise DataError(
            f"{path} is not there, or is no file: give the path of a dataset, in D4RL's HDF5, in Minari's, or .npz."
        )
    with path.open("rb") as file:
        begin = file.read(len(hdf5.SIGNATURE))
    if begin.startswith(npz.SIGNATURE):
        return npz.read_columns(path, complain)
    if begin.startswith(b"\x80"):
        raise DataError(f"{path} is a pickle: reading one can run anything, so store its arrays with numpy.savez.")
    return (minari if minari.is_minari(path) else hdf5).read_columns(path, complain)
