"""NumPy's archives, honest and not."""

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from dtune.data import guards, npz
from dtune.data.columns import COLUMNS
from dtune.data.files import read_columns
from dtune.errors import DataError

ROWS = 12


def arrays() -> dict[str, np.ndarray]:
    chance = np.random.default_rng(0)
    return {
        "observations": chance.normal(size=(ROWS, 3)).astype(np.float32),
        "actions": chance.uniform(-1, 1, (ROWS, 2)).astype(np.float32),
        "rewards": chance.normal(size=ROWS),
        "terminals": np.arange(ROWS) == 11,
        "timeouts": (np.arange(ROWS) == 5).astype(np.uint8),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.savez(tmp_path / "data.npz", **arrays())
    return tmp_path / "data.npz"


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_columns(path)
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


def member(name: str, header: bytes, body: bytes = b"", **options: int) -> bytes:
    """An archive of one array, whose header says what it likes."""
    text = header + b" " * (-(len(header) + 11) % 64) + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as archive:
        archive.writestr(f"{name}.npy", content)
    return stream.getvalue()


def test_what_was_saved_is_read_as_float32_and_flags_as_they_are(path):
    columns, given = read_columns(path), arrays()
    assert list(columns) == list(COLUMNS)
    for key in COLUMNS:
        assert torch.equal(columns[key], torch.from_numpy(given[key]).to(columns[key].dtype))
    assert {key: value.dtype for key, value in columns.items()} == dict.fromkeys(COLUMNS, torch.float32) | {
        "terminals": torch.bool
    }


def test_other_arrays_are_not_looked_at(path):
    np.savez(path, **arrays(), policy=np.array([{"any": "thing"}], dtype=object), notes=np.array("x"))
    assert list(read_columns(path)) == list(COLUMNS)


def test_fortran_order_and_other_byte_orders_are_numbers_too(path):
    given = arrays()
    odd = given | {
        "observations": np.asfortranarray(given["observations"].astype(">f8")),
        "rewards": given["rewards"].astype(">f4"),
    }
    np.savez_compressed(path, **odd)
    columns = read_columns(path)
    assert torch.equal(columns["observations"], torch.from_numpy(given["observations"]))


def test_objects_are_never_unpickled(path):
    class Trap:
        def __reduce__(self):
            return exec, ("raise SystemExit('ran')",)

    np.savez(path, **arrays() | {"rewards": np.array([Trap()] * ROWS, dtype=object)})
    assert "'rewards' holds object, not numbers" in refusal(path)


@pytest.mark.parametrize("key", COLUMNS)
def test_a_missing_array_is_refused(path, key):
    np.savez(path, **{name: value for name, value in arrays().items() if name != key}, extra=np.zeros(1))
    assert f"lacks ['{key}'] and has" in refusal(path)
    assert "'extra'" in refusal(path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rewards", np.zeros((ROWS, 2)), "'rewards' has the shape (12, 2)"),
        ("rewards", np.float32(1), "'rewards' has the shape ()"),
        ("actions", np.zeros(ROWS), "'actions' has the shape (12,)"),
        ("actions", np.zeros((ROWS, 2), complex), "'actions' holds complex128"),
        ("terminals", np.array(["no"] * ROWS), "'terminals' holds <U2"),
        ("timeouts", np.zeros(ROWS - 1), "unequal length"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arrays_that_do_not_fit_are_refused(path, key, value, said):
    np.savez(path, **arrays() | {key: value})
    assert said in refusal(path)


def test_an_absurd_shape_is_refused_before_memory_is_asked_for(path):
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000, 4)}"
        path.write_bytes(member("observations", header, b"\0" * 100, compression=compression))
        assert "'observations' claims 160,000,000,000 bytes" in refusal(path)
    path.write_bytes(
        member("observations", b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000, 4)}", b"\0" * 100)
    )
    assert "it is cut short" in refusal(path)


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4)}",
        b"{'descr': '<f4', 'shape': (1, 4)}",
        b"__import__('os').system('true')",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': ('a', 4)}",
        b"[" * 200,
        b"",
    ],
)
def test_a_header_that_makes_no_sense_is_refused(path, header):
    path.write_bytes(member("observations", header, b"\0" * 100))
    assert "'observations'" in refusal(path)


def version(major: int, header: bytes) -> bytes:
    """An array of a later version of the format: its header may be longer."""
    return b"\x93NUMPY" + bytes([major, 0]) + len(header).to_bytes(4, "little") + header


def replaced(path: Path, key: str, content: bytes) -> None:
    np.savez(path, **{name: value for name, value in arrays().items() if name != key})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{key}.npy", content)


def test_a_long_header_is_refused_before_it_is_read(path):
    replaced(path, "rewards", version(2, b" " * 2**25))
    assert path.stat().st_size < 2**16
    tracemalloc.start()
    try:
        assert "'rewards' has a header of 33,554,432 bytes and 10,000 are read at most" in refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


def test_later_versions_of_the_header(path):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (12,)}"
    numbers = arrays()["rewards"].tobytes()
    replaced(path, "rewards", version(2, header) + numbers)
    assert torch.equal(read_columns(path)["rewards"], torch.from_numpy(arrays()["rewards"]).float())
    replaced(path, "rewards", version(3, header) + numbers)
    assert "'rewards' has a header of version (3, 0)" in refusal(path)


def crowded(path: Path, count: int) -> None:
    """An archive with so many members of no bytes beside the columns."""
    np.savez(path, **arrays())
    with zipfile.ZipFile(path, "a") as archive:
        for number in range(count):
            archive.writestr(f"{number:0100}/", b"")


@pytest.mark.parametrize("lie", ["none", "count", "comment"])
def test_a_long_table_of_contents_is_refused_before_it_is_read(path, lie, monkeypatch):
    crowded(path, 2000)
    content = bytearray(path.read_bytes())
    if lie == "count":
        content[-14:-10] = b"\1\0\1\0"
    if lie == "comment":
        content[-2:] = b"\x02\0PK"
    path.write_bytes(content)
    monkeypatch.setattr(zipfile, "ZipInfo", lambda *_: pytest.fail("a line of it was looked at"))
    assert "has a table of contents of 294," in refusal(path)


def test_an_archive_of_many_arrays_is_read(path):
    crowded(path, 1000)
    assert list(read_columns(path)) == list(COLUMNS)


def test_more_numbers_than_the_shape_says_are_refused(path):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4)}"
    with zipfile.ZipFile(path, "a") as archive:
        assert archive  # the others are there
    np.savez(path, **{key: value[:2] for key, value in arrays().items() if key != "observations"})
    with (
        zipfile.ZipFile(path, "a") as archive,
        zipfile.ZipFile(io.BytesIO(member("observations", header, b"\0" * 100))) as other,
    ):
        archive.writestr("observations.npy", other.read("observations.npy"))
    assert "'observations' is longer than it says" in refusal(path)


def test_other_compressions_are_refused(path):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000, 4)}"
    path.write_bytes(member("observations", header, b"\0" * 10**6, compression=zipfile.ZIP_BZIP2))
    assert "'observations' is encrypted, or compressed as NumPy does not" in refusal(path)


def test_damage_is_said(path):
    content = path.read_bytes()
    place = content.index(b"\x93NUMPY") + 200  # in the numbers of the first array
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert "'observations' cannot be read (Bad CRC-32" in refusal(path)
    path.write_bytes(content[:-40])
    assert "not a readable .npz file" in refusal(path)


def test_a_file_that_does_not_fit_into_memory_is_refused(path, monkeypatch):
    monkeypatch.setattr(guards, "free_memory", lambda: 100)
    assert "bytes of memory where 100 are free" in refusal(path)


def test_everything_wrong_can_be_gathered(path):
    np.savez(path, **arrays() | {"rewards": np.array(["x"]), "actions": np.zeros(3), "timeouts": np.zeros((3, 3))})
    problems: list[str] = []
    assert list(npz.read_columns(path, problems.append)) == ["observations", "actions", "terminals", "timeouts"]
    assert len(problems) == 3
