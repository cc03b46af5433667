"""Damaged recordings, each decided by its number; run as a program it reads some and tells how it went."""

import io
import json
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

ROWS, EPISODE = 60, 12
KEYS = ("observations", "actions", "rewards", "terminals", "timeouts")
MINARI = ("observations", "actions", "rewards", "terminations", "truncations")


def columns(rows: int = ROWS) -> dict[str, np.ndarray]:
    chance, row = np.random.default_rng(0), np.arange(rows)
    return {
        "observations": chance.normal(size=(rows, 11)).astype(np.float32),
        "actions": chance.uniform(-1, 1, (rows, 3)).astype(np.float32),
        "rewards": chance.normal(size=rows).astype(np.float32),
        "terminals": row % (2 * EPISODE) == EPISODE - 1,
        "timeouts": row % (2 * EPISODE) == 2 * EPISODE - 1,
    }


# Whole files


def d4rl(path: Path, chance: random.Random) -> None:
    options = chance.choice(
        [{}, {"compression": "gzip"}, {"compression": "lzf", "shuffle": True}, {"chunks": True, "fletcher32": True}]
    )
    with h5py.File(path, "w", libver=chance.choice(["earliest", "latest"])) as file:
        for key, value in columns().items():
            file.create_dataset(key, data=value, **options)
        file["infos/qpos"] = np.zeros((ROWS, 6), np.float32)


def minari(path: Path, chance: random.Random) -> None:
    with h5py.File(path, "w", track_order=chance.random() < 0.5) as file:
        for number, start in enumerate(range(0, ROWS, EPISODE)):
            group = file.create_group(f"episode_{number}")
            for key, name in zip(KEYS, MINARI):
                value = columns(ROWS + 1)[key][start : start + EPISODE + (key == "observations")]
                group.create_dataset(name, data=value, chunks=True, maxshape=(None, *value.shape[1:]))


def npz(path: Path, chance: random.Random) -> None:
    with path.open("wb") as file:
        chance.choice([np.savez, np.savez_compressed])(file, **columns())


# What happens to arrays


def array(chance: random.Random) -> object:
    """Anything that might be stored where a column should be."""
    kinds = ["i1", "u8", "f2", "f8", ">f4", "S3", "c8", "?", "i4"]
    shape = [chance.choice([0, 1, 2, ROWS - 1, ROWS, 111]) for _ in range(chance.randint(0, 3))]
    made = np.ones(shape, chance.choice(kinds))
    return chance.choice([made, h5py.Empty("f4"), "text", [b"a", b"bc"], np.zeros(ROWS, [("x", "f4"), ("y", "i2")])])


def values(key: str, chance: random.Random) -> np.ndarray:
    """A column with numbers that are wrong, or flags that mark no end."""
    value = columns()[key].astype(np.float64)
    if chance.random() < 0.3:
        value[:] = chance.choice([0, 1, np.nan])
    else:
        value[chance.randrange(ROWS)] = chance.choice([np.nan, np.inf, -np.inf, 1e300, -7, 1.0005, 3])
    return value


def absurd(chance: random.Random, rank: int) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """A shape beyond all memory, and chunks for it."""
    shape = tuple(
        chance.choice([10**k for k in range(4, 16)]) if i == 0 else chance.choice([1, 3, 11, 10**6])
        for i in range(rank)
    )
    return shape, chance.choice([None, tuple(min(size, chance.choice([1, 7, 10**4])) for size in shape)])


def in_hdf5(path: Path, chance: random.Random) -> None:
    """One thing in the structure of an HDF5 file."""
    with h5py.File(path, "r+") as file:
        name = chance.choice([*file, "episode_9"])
        group = file[name] if isinstance(file.get(name), h5py.Group) and chance.random() < 0.9 else file
        key = chance.choice(list(group) or ["x"])
        had = key in group
        if had:
            del group[key]
        match chance.randrange(9):
            case 0:
                pass
            case 1:
                group.create_dataset(key, data=array(chance))
            case 2:
                group.create_dataset(key, data=values(chance.choice(KEYS), chance))
            case 3:
                shape, chunks = absurd(chance, chance.randint(1, 3))
                group.create_dataset(key, shape, chance.choice(["f4", "f8", "i1", "?"]), chunks=chunks)
            case 4:
                group[key] = chance.choice(
                    [h5py.SoftLink("/infos/qpos"), h5py.SoftLink("/" + key), h5py.ExternalLink("/etc/passwd", "/x"),
                     h5py.ExternalLink(str(path), "/" + key)]
                )  # fmt: skip
            case 5:
                group[key] = group if chance.random() < 0.5 else file
            case 6:
                group.create_group(key).create_group("inner")
            case 7:
                layout = h5py.VirtualLayout(shape=(ROWS,), dtype="f4")
                layout[:] = h5py.VirtualSource(chance.choice([str(path), "other.hdf5"]), key, shape=(ROWS,))
                group.create_virtual_dataset(key, layout)
            case 8:
                group.create_dataset(key, (ROWS,), "f4", external=[("/etc/passwd", 0, 4 * ROWS)])


def in_npz(path: Path, chance: random.Random) -> None:
    """One thing in the structure of an archive."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = chance.choice(list(parts))
    stream = io.BytesIO()
    match chance.randrange(6):
        case 0:
            del parts[name]
        case 1:
            made = array(chance)
            np.save(stream, np.zeros(1) if isinstance(made, h5py.Empty) else np.array(made))
            parts[name] = stream.getvalue()
        case 2:
            np.save(stream, values(name.removesuffix(".npy"), chance))
            parts[name] = stream.getvalue()
        case 3:
            shape, _ = absurd(chance, chance.randint(1, 3))
            np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
            parts[name] = stream.getvalue() + bytes(chance.randrange(10**4))
        case 4:
            np.save(stream, np.array([{"any": "thing"}] * ROWS, dtype=object), allow_pickle=True)
            parts[name] = stream.getvalue()
        case 5:
            parts[name] = damaged(parts[name], chance)
    kind = chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
    with zipfile.ZipFile(path, "w", kind) as archive:
        for part, content in parts.items():
            archive.writestr(part, content)


# What happens to bytes


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The bytes with some flipped, cut off, wiped out, moved or added."""
    made = bytearray(content)
    size = max(len(made), 1)
    match chance.randrange(7):
        case 0 | 1:
            for _ in range(chance.choice([1, 1, 2, 8, 64])):
                made[chance.randrange(size)] ^= 1 << chance.randrange(8)
        case 2:  # the structure is at the beginning
            for _ in range(chance.choice([1, 2, 8])):
                made[chance.randrange(min(size, 4096))] = chance.choice([0, 1, 127, 128, 255])
        case 3:
            del made[chance.randrange(size) :]
        case 4:
            start = chance.randrange(size)
            made[start : start + 64] = bytes([chance.choice([0, 255])]) * len(made[start : start + 64])
        case 5:
            start, other = chance.randrange(size), chance.randrange(size)
            made[start : start + 32] = made[other : other + 32]
        case 6:
            made += chance.randbytes(chance.choice([1, 512, 5000]))
    return bytes(made)


def mutate(number: int, folder: Path) -> Path:
    """Makes the damaged file of this number."""
    chance = random.Random(number)
    layout, suffix, structure = chance.choice(
        [(d4rl, "hdf5", in_hdf5), (d4rl, "hdf5", in_hdf5), (minari, "hdf5", in_hdf5), (npz, "npz", in_npz)]
    )
    path = folder / f"{layout.__name__}-{number}.{suffix}"
    layout(path, chance)
    if chance.random() < 0.5:
        for _ in range(chance.randint(1, 3)):
            structure(path, chance)
    else:
        path.write_bytes(damaged(path.read_bytes(), chance))
    return path


# Reading them


def peak() -> int:
    """The most memory this process had since `forget_peak`, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def forget_peak() -> int:
    """What it has now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def main(first: int, count: int, say: Callable[[dict], None]) -> None:
    from dtune.data.columns import make_dataset
    from dtune.data.files import read_columns
    from dtune.errors import DataError

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, first + count):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    path = mutate(number, Path(folder))
                except Exception:  # two mutations may not go together: the file is as the first left it
                    path = next(Path(folder).iterdir())
            outcome: dict = {"number": number, "file": path.name, "size": path.stat().st_size}
            say(outcome)
            signal.setitimer(signal.ITIMER_REAL, 20)  # kills the process if HDF5 hangs
            before, began, read = forget_peak(), time.process_time(), 0
            try:
                read_in = read_columns(path)
                read = sum(value.numel() * value.element_size() for value in read_in.values())
                outcome["episodes"] = len(make_dataset(read_in, name=str(path)))
            except DataError as error:
                outcome["refused"] = str(error)
            except BaseException as error:
                outcome["error"] = repr(error)
            signal.setitimer(signal.ITIMER_REAL, 0)
            outcome |= {"seconds": time.process_time() - began, "memory": peak() - before, "read": read}
            say(outcome)
            path.unlink()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), lambda outcome: print(json.dumps(outcome), flush=True))
