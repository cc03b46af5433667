import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from shared import sample_file

from dtune.data import guards
from dtune.data.columns import COLUMNS
from dtune.data.datasets import Dataset
from dtune.data.hdf5 import read_hdf5, write_hdf5
from dtune.errors import DataError

ROWS = 40


def columns() -> dict[str, torch.Tensor]:
    """Four episodes of 10 steps, all but the first cut by the clock."""
    generator = torch.Generator().manual_seed(0)
    last = torch.arange(ROWS) % 10 == 9
    return {
        "observations": torch.randn(ROWS, 4, generator=generator),
        "next_observations": torch.randn(ROWS, 4, generator=generator),
        "actions": torch.rand(ROWS, 2, generator=generator) * 2 - 1,
        "rewards": torch.randn(ROWS, generator=generator),
        "terminals": last & (torch.arange(ROWS) == 9),
        "timeouts": last & (torch.arange(ROWS) > 9),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_hdf5(tmp_path / "data.hdf5", columns())
    return tmp_path / "data.hdf5"


def replace(path: Path, key: str, value: object, **options: object) -> None:
    with h5py.File(path, "r+") as file:
        del file[key]
        file.create_dataset(key, data=value, **options)


def refusal(path: Path) -> str:
    """What reading the file is refused with: one line that names the file, and soon."""
    start = time.process_time()
    with pytest.raises(DataError) as caught:
        read_hdf5(path)
    assert time.process_time() - start < 2
    assert str(path) in str(caught.value)
    return str(caught.value)


# Round trip


def test_what_was_written_is_read(path: Path):
    dataset, given = read_hdf5(path), columns()
    for key in ("observations", "actions", "rewards"):
        assert torch.equal(getattr(dataset, key), given[key])
    assert torch.equal(dataset.terminated, given["terminals"])
    assert dataset.lengths.tolist() == [10, 10, 10, 10]
    assert dataset.name == str(path)


def test_the_file_has_d4rls_layout(path: Path):
    with h5py.File(path) as file:
        assert set(file) == {*COLUMNS, "next_observations"}
        assert {key: file[key].dtype for key in file} == {
            key: np.dtype(bool if key in ("terminals", "timeouts") else np.float32) for key in file
        }
        assert {file[key].compression for key in file} == {"gzip"}


def test_the_same_columns_make_the_same_file(path: Path):
    write_hdf5(path.with_name("again.hdf5"), columns())
    assert path.read_bytes() == path.with_name("again.hdf5").read_bytes()
    write_hdf5(path, columns() | {"rewards": torch.zeros(ROWS)})
    assert path.read_bytes() != path.with_name("again.hdf5").read_bytes()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(path: Path, monkeypatch: pytest.MonkeyPatch):
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_hdf5(path, columns() | {"rewards": torch.zeros(ROWS)})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_incomplete_columns_are_not_written(tmp_path: Path):
    given = columns()
    del given["timeouts"]
    with pytest.raises(DataError, match="timeouts"):
        write_hdf5(tmp_path / "data.hdf5", given)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["<f8", ">f4", "<f2"])
def test_numbers_of_other_kinds_are_read_as_float32(path: Path, kind: str):
    rewards = np.arange(ROWS) / 4
    replace(path, "rewards", rewards.astype(kind)[:, None])
    replace(path, "terminals", columns()["terminals"].numpy().astype(np.uint8))
    dataset = read_hdf5(path)
    assert torch.equal(dataset.rewards, torch.from_numpy(rewards).float())
    assert torch.equal(dataset.terminated, columns()["terminals"])


def test_other_things_in_the_file_are_not_looked_at(path: Path):
    with h5py.File(path, "r+") as file:
        file["infos/policy"] = h5py.ExternalLink("/nowhere.hdf5", "/")
        file["more"] = h5py.SoftLink("/nowhere")
    assert len(read_hdf5(path)) == 4


# Files that cannot be read


def test_a_missing_file_is_refused(tmp_path: Path):
    assert "is not there" in refusal(tmp_path / "data.hdf5")
    assert "is not there" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>404</html>", b"\x89HDF\r\n\x1a\n"])
def test_a_file_that_is_not_hdf5_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "data.hdf5").write_bytes(content)
    assert "not a readable HDF5 file" in refusal(tmp_path / "data.hdf5")


def test_a_truncated_file_is_refused(path: Path):
    path.write_bytes(path.read_bytes()[:-100])
    assert "download it again" in refusal(path)


def test_damaged_numbers_are_refused(path: Path):
    content = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        chunk = file["observations"].id.get_chunk_info(0)
    content[chunk.byte_offset + chunk.size // 2] ^= 0xFF
    path.write_bytes(content)
    assert "download it again" in refusal(path)


# Files that point elsewhere


def test_links_are_refused(path: Path):
    other = path.with_name("other.hdf5")
    write_hdf5(other, columns())
    for key, link in (
        ("actions", h5py.ExternalLink(str(other), "/actions")),
        ("rewards", h5py.SoftLink("/moved")),
    ):
        write_hdf5(path, columns())
        with h5py.File(path, "r+") as file:
            file.move(key, "/moved")
            file[key] = link
        assert f"'{key}' is a {type(link).__name__}" in refusal(path)


def test_a_virtual_column_is_refused(path: Path):
    other = path.with_name("other.hdf5")
    write_hdf5(other, columns())
    layout = h5py.VirtualLayout(shape=(ROWS,), dtype=np.float32)
    layout[:] = h5py.VirtualSource(str(other), "rewards", shape=(ROWS,))
    with h5py.File(path, "r+") as file:
        del file["rewards"]
        file.create_virtual_dataset("rewards", layout)
        assert file["rewards"][:].any()  # it works, so it is refused for what it is
    assert "'rewards' keeps its numbers elsewhere" in refusal(path)


def test_numbers_outside_the_file_are_refused(path: Path):
    raw = path.with_name("raw")
    raw.write_bytes(np.ones(ROWS, np.float32).tobytes())
    with h5py.File(path, "r+") as file:
        del file["rewards"]
        file.create_dataset("rewards", (ROWS,), np.float32, external=[(str(raw), 0, 4 * ROWS)])
        assert file["rewards"][:].all()
    assert "'rewards' keeps its numbers elsewhere" in refusal(path)


# Files that break a rule


@pytest.mark.parametrize("key", COLUMNS)
def test_a_missing_key_is_refused(path: Path, key: str):
    with h5py.File(path, "r+") as file:
        del file[key]
    message = refusal(path)
    assert f"lacks ['{key}']" in message
    assert "next_observations" in message


def test_a_group_in_place_of_a_column_is_refused(path: Path):
    with h5py.File(path, "r+") as file:
        del file["actions"]
        file.create_group("actions")
    assert "'actions' is a group" in refusal(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rewards", np.array(["one"] * ROWS, dtype=object)),
        ("rewards", np.zeros(ROWS, bool)),
        ("observations", np.zeros((ROWS, 4), np.complex64)),
        ("actions", np.zeros((ROWS, 2), [("x", np.float32)])),
        ("terminals", np.array([b"no"] * ROWS)),
    ],
)
def test_a_column_that_holds_no_numbers_is_refused(path: Path, key: str, value: np.ndarray):
    replace(path, key, value)
    message = refusal(path)
    assert f"'{key}' holds" in message
    assert "not numbers" in message


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rewards", np.zeros(ROWS - 1), "unequal length"),
        ("rewards", np.zeros((ROWS, 2)), "'rewards' has the shape (40, 2)"),
        ("observations", np.zeros(ROWS), "'observations' has the shape (40,)"),
        ("rewards", np.zeros(0), "unequal length"),
        ("observations", h5py.Empty("f4"), "'observations' holds nothing"),
        ("observations", np.full((ROWS, 4), np.nan), "'observations' holds nan at row 0"),
        ("observations", np.full((ROWS, 4), 1e300), "'observations' holds inf at row 0"),
        ("actions", np.full((ROWS, 2), 1.5), "'actions' reach 1.5"),
        ("timeouts", np.full(ROWS, 3), "'timeouts' holds 3.0 at row 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_columns_that_break_a_rule_are_refused(path: Path, key: str, value: object, said: str):
    replace(path, key, value)
    assert said in refusal(path)


def test_a_file_without_a_finished_episode_is_refused(path: Path):
    for key in ("terminals", "timeouts"):
        replace(path, key, np.zeros(ROWS, bool))
    assert "no finished episode in 40 rows" in refusal(path)


def test_a_file_without_rows_is_refused(path: Path):
    for key in COLUMNS:
        replace(path, key, columns()[key][:0].numpy())
    assert "no finished episode in 0 rows" in refusal(path)


def test_a_size_beyond_what_is_stored_is_refused_before_memory_is_asked_for(path: Path):
    for shape, chunks in (((10**12, 4), (1000, 4)), ((10**8, 4), None), ((ROWS, 4), (5 * 10**7, 4))):
        with h5py.File(path, "r+") as file:
            for key in COLUMNS:
                del file[key]
                tail = () if key not in ("observations", "actions") else shape[1:]
                options = {"chunks": chunks[: 1 + len(tail)], "maxshape": (None, *tail)} if chunks else {}
                file.create_dataset(key, (shape[0], *tail), np.float32, **options)
        assert "no compression does that" in refusal(path)


def test_a_column_in_countless_chunks_is_refused(path: Path):
    replace(path, "rewards", None, shape=(10**6,), dtype=np.float32, chunks=(1,))
    for key in set(COLUMNS) - {"rewards"}:
        replace(path, key, np.zeros((10**6, 1), np.float32), chunks=(1000, 1))
    assert "'rewards' lies in 1,000,000 chunks" in refusal(path)


def test_a_file_that_does_not_fit_into_memory_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch):
    needed = 4 * ROWS * (4 + 2 + 1 + 1 + 1)
    monkeypatch.setattr(guards, "free_memory", lambda: needed - 1)
    assert f"needs {needed:,} bytes" in refusal(path)
    monkeypatch.setattr(guards, "free_memory", lambda: needed)
    assert len(read_hdf5(path)) == 4


def test_free_memory_is_at_most_what_the_machine_has():
    assert 2**20 < guards.free_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# Damage of any kind


def _drop(path: Path, chance: random.Random) -> None:
    with h5py.File(path, "r+") as file:
        for key in chance.sample(COLUMNS, chance.randint(1, 3)):
            del file[key]


def _retype(path: Path, chance: random.Random) -> None:
    key = chance.choice(COLUMNS)
    kind = chance.choice(["i1", "u8", "f2", "f8", ">f4", "S3", "c8", "?"])
    with h5py.File(path) as file:
        value = file[key][:]
    replace(path, key, value.astype(kind))


def _reshape(path: Path, chance: random.Random) -> None:
    key = chance.choice(COLUMNS)
    shape = [chance.choice([0, 1, 2, ROWS - 1, ROWS, 111]) for _ in range(chance.randint(0, 3))]
    replace(path, key, np.ones(shape, np.float32))


def _truncate(path: Path, chance: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(len(content))])


def _flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 1, 4, 32])):
        content[chance.randrange(len(content))] ^= chance.randrange(1, 256)
    path.write_bytes(content)


@pytest.mark.filterwarnings("ignore::numpy.exceptions.ComplexWarning")
@pytest.mark.parametrize("damage", [_drop, _retype, _reshape, _truncate, _flip])
def test_any_damage_ends_in_a_dataset_or_a_data_error(path: Path, damage: Callable[[Path, random.Random], None]):
    whole, refused = path.read_bytes(), 0
    for seed in range(40):
        path.write_bytes(whole)
        damage(path, random.Random(seed))
        try:
            assert isinstance(read_hdf5(path), Dataset)
        except DataError:
            refused += 1
    assert refused > 0


# Sample files, where present


HOPPER, WALKER2D, ANT = (-20.272305, 3234.3), (1.629008, 4592.3), (-325.6, 3879.7)
DOOR, HAMMER, PEN = (-56.512833, 2880.5693087), (-274.856578, 12794.1348252), (96.262799, 3076.8331018)


@pytest.mark.parametrize(
    ("file", "reference", "episodes", "score", "lengths", "sizes"),
    [
        ("mujoco/hopper-medium-v2", HOPPER, 69, (40.8, 17.47), (244, 359, 1000), (11, 3)),
        ("mujoco/hopper-medium-replay-v2", HOPPER, 145, (13.9, 14.81), (10, 137, 643), (11, 3)),
        ("mujoco/walker2d-medium-v2", WALKER2D, 22, (59.7, 24.73), (300, 677, 1000), (17, 6)),
        ("mujoco/walker2d-medium-replay-v2", WALKER2D, 69, (15.93, 22.47), (8, 216, 1000), (17, 6)),
        ("mujoco/ant-medium-v2", ANT, 17, (72.68, 42.74), (23, 671, 1000), (27, 8)),
        ("mujoco/ant-medium-replay-v2", ANT, 29, (19.01, 25.93), (11, 408, 1000), (27, 8)),
        ("adroit/door-human-v1", DOOR, 24, (28.35, 11.96), (223, 271, 300), (39, 28)),
        ("adroit/hammer-human-v1", HAMMER, 24, (23.15, 22.06), (321, 456, 567), (46, 26)),
        ("adroit/pen-human-v1", PEN, 24, (216.03, 146.16), (200, 200, 200), (45, 24)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sample_files_have_their_known_statistics(
    file: str,
    reference: tuple[float, float],
    episodes: int,
    score: tuple[float, float],
    lengths: tuple[int, int, int],
    sizes: tuple[int, int],
):
    dataset = read_hdf5(sample_file(file), splitting="adroit" if file.startswith("adroit") else "locomotion")
    scores = 100 * (dataset.returns - reference[0]) / (reference[1] - reference[0])
    assert len(dataset) == episodes
    assert (scores.mean().item(), scores.std(correction=0).item()) == pytest.approx(score, abs=0.006)
    found_lengths = (dataset.lengths.min(), dataset.lengths.double().mean().round(), dataset.lengths.max())
    assert tuple(map(int, found_lengths)) == lengths
    assert (dataset.observations.shape[1], dataset.actions.shape[1]) == sizes
    assert dataset.observation_statistics()[1].min() > 1e-4  # no number that never changes
