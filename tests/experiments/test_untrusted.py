"""Files of strangers: no code in them runs, and nothing outside of them is read.

Python itself is asked: an audit hook notes what is opened, run, started or unpickled while a file is read.
"""

import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch

from dtune.data.columns import COLUMNS
from dtune.errors import DtuneError
from dtune.experiments import checkpoint
from dtune.experiments.folder import read_config
from dtune.experiments.loading import load_dataset
from dtune.experiments.policies import KINDS, describe, load_policy
from dtune.experiments.record import read_rows
from dtune.experiments.replay import read_replay
from dtune.models.foreign import Foreign, read_foreign

CODE = {"exec", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class",
        "ctypes.dlopen", "socket.connect", "socket.getaddrinfo", "import"}  # fmt: skip
noted: list[tuple[str, str]] | None = None


def note(event: str, arguments: tuple) -> None:
    if noted is not None and (event in CODE or event == "open"):
        noted.append((event, str(arguments[0]) if arguments else ""))


sys.addaudithook(note)  # there is no taking it away: it does nothing while `noted` is None


@contextlib.contextmanager
def audited() -> Iterator[list[tuple[str, str]]]:
    global noted
    noted = seen = []
    try:
        yield seen
    finally:
        noted = None


class Payload:
    """What a pickle of a stranger holds: unpickled, it leaves a mark."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def columns(rows: int = 20) -> dict[str, np.ndarray]:
    flags = np.arange(rows) % 10 == 9
    return {
        "observations": np.zeros((rows, 3), np.float32), "actions": np.zeros((rows, 2), np.float32),
        "rewards": np.ones(rows, np.float32), "terminals": flags, "timeouts": np.zeros(rows, bool),
    }  # fmt: skip


def reseal(folder: Path) -> None:
    """A stranger can make the hashes agree."""
    names = sorted(file.name for file in folder.iterdir() if file.name != "MANIFEST.sha256")
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "MANIFEST.sha256").write_text("".join(lines))


def a_policy(kind: str, **changes: int) -> Any:
    make, shape = KINDS[kind]
    heads = {} if kind == "PerceptronPolicy" else {"heads": 1}
    small = {"observation_dim": 3, "action_dim": 2, "layers": 1, "width": 8, **heads}
    return make(shape(**{**small, **changes}), torch.Generator().manual_seed(0))


def a_checkpoint(folder: Path, kind: str = "DecisionTransformer") -> Path:
    policy = a_policy(kind)
    state = {"algorithm": {"policy": policy.state_dict(), "list": [1, {"x": torch.ones(2)}]}}
    return checkpoint.save(folder, 1, state, documents=describe(policy))


def pickled(path: Path, secret: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(mark)))


def zipped_pickle(path: Path, secret: Path, mark: Path) -> None:
    np.savez(path.with_suffix(".npz"), **columns())
    with zipfile.ZipFile(path.with_suffix(".npz")) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    content = io.BytesIO()
    np.save(content, np.array([Payload(mark)], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (members | {"rewards.npy": content.getvalue()}).items():
            archive.writestr(name, data)


def climbing_archive(path: Path, secret: Path, mark: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in COLUMNS:
            archive.writestr(f"../../{mark.name}/{name}.npy", b"")


def hdf5(path: Path, change: Callable[[h5py.File], None]) -> None:
    with h5py.File(path, "w") as file:
        for name, values in columns().items():
            file[name] = values
        del file["rewards"]
        change(file)


def external_link(path: Path, secret: Path, mark: Path) -> None:
    hdf5(path, lambda file: file.__setitem__("rewards", h5py.ExternalLink(str(secret), "rewards")))


def soft_link(path: Path, secret: Path, mark: Path) -> None:
    hdf5(path, lambda file: file.__setitem__("rewards", h5py.SoftLink("/observations")))


def external_storage(path: Path, secret: Path, mark: Path) -> None:
    hdf5(path, lambda f: f.create_dataset("rewards", (20,), "f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)]))


def virtual_dataset(path: Path, secret: Path, mark: Path) -> None:
    layout = h5py.VirtualLayout((20,), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "rewards", (20,))
    hdf5(path, lambda file: file.create_virtual_dataset("rewards", layout))


def pickles_in_hdf5(path: Path, secret: Path, mark: Path) -> None:
    hdf5(path, lambda file: file.__setitem__("rewards", np.void(pickle.dumps(Payload(mark)))))


DATASETS = {
    "pickle.pkl": pickled, "pickle.hdf5": pickled, "pickle.npz": pickled, "objects.npz": zipped_pickle,
    "climbing.npz": climbing_archive, "link.hdf5": external_link, "soft.hdf5": soft_link,
    "storage.hdf5": external_storage, "virtual.hdf5": virtual_dataset, "opaque.hdf5": pickles_in_hdf5,
}  # fmt: skip


def refuses(read: Callable[[], object], allowed: Path, mark: Path) -> None:
    """`read` is refused; what was opened meanwhile lies in `allowed`; nothing ran."""
    with contextlib.suppress(DtuneError):  # imports and caches of the first time are no part of it
        read()
    with audited() as seen, pytest.raises(DtuneError):
        read()
    assert not mark.exists()
    own = os.path.realpath(allowed)
    for event, what in seen:
        assert event == "open", (event, what)
        assert os.path.realpath(what).startswith((own, "/proc/", "/sys/fs/cgroup")), what


@pytest.mark.parametrize("name", DATASETS)
def test_a_strangers_dataset(tmp_path, name):
    secret, mark, folder = tmp_path / "secret.hdf5", tmp_path / "mark", tmp_path / "given"
    folder.mkdir()
    with h5py.File(secret, "w") as file:
        file["rewards"] = np.ones(20, np.float32)
    DATASETS[name](folder / name, secret, mark)
    refuses(lambda: load_dataset(folder / name), folder, mark)


def header(folder: Path, content: dict | bytes) -> None:
    """Another header before the tensors."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "tensors.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))


def entry(numbers: int, start: int, stop: int) -> dict:
    return {"dtype": "F32", "shape": [numbers], "data_offsets": [start, stop]}


def state(folder: Path, value: object) -> None:
    document = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(document | {"state": value}))


def described(folder: Path, **changes: object) -> None:
    document = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(document | changes))


def replaced(folder: Path, name: str, make: Callable[[Path], object]) -> None:
    (folder / name).unlink()
    make(folder / name)


X = "algorithm/list/1/x"
FORGERIES: dict[str, Callable[[Path, Path, Path], object]] = {
    "pickled weights": lambda f, s, m: pickled(f / "policy.safetensors", s, m),
    "pickled tensors": lambda f, s, m: torch.save(Payload(m), f / "tensors.safetensors"),
    "pickled state": lambda f, s, m: pickled(f / "state.json", s, m),
    "header beyond the file": lambda f, s, m: header(f, {X: entry(2, 0, 2**40)}),
    "header before the file": lambda f, s, m: header(f, {X: entry(2, -8, 0)}),
    "header that overlaps": lambda f, s, m: header(f, {X: entry(16, 0, 64), "y": entry(16, 0, 64)}),
    "header of objects": lambda f, s, m: header(f, {X: entry(2, 0, 64) | {"dtype": "O"}}),
    "header of code": lambda f, s, m: header(f, b"__import__('os').mkdir('" + str(m).encode() + b"')"),
    "header longer than the file": lambda f, s, m: (f / "tensors.safetensors").write_bytes(b"\xff" * 7 + b"\x7f"),
    "a tag for code": lambda f, s, m: state(f, {"$python": f"os.mkdir('{m}')"}),
    "a tag of YAML": lambda f, s, m: (f / "state.json").write_text(f"!!python/object/apply:os.mkdir ['{m}']"),
    "a file for a tensor": lambda f, s, m: state(f, {"x": {"$tensor": str(s)}}),
    "a kind that is a class": lambda f, s, m: described(f, kind="os.mkdir", config={"path": str(m)}),
    "a kind of another module": lambda f, s, m: described(f, kind="dtune.experiments.disk.write"),
    "settings it has not": lambda f, s, m: described(f, config={"__class__": "os", "__reduce__": str(m)}),
    "a link to a secret": lambda f, s, m: replaced(f, "tensors.safetensors", lambda path: path.symlink_to(s)),
    "a link without an end": lambda f, s, m: replaced(f, "state.json", lambda path: path.symlink_to("/dev/zero")),
    "a pipe": lambda f, s, m: replaced(f, "state.json", os.mkfifo),
    "a folder": lambda f, s, m: replaced(f, "state.json", os.mkdir),
}  # fmt: skip


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_strangers_checkpoint(tmp_path, forgery):
    secret, mark = tmp_path / "secret", tmp_path / "mark"
    safetensors.torch.save_file({X: torch.ones(2)}, secret)
    given = tmp_path / "given"
    folder = a_checkpoint(given)
    FORGERIES[forgery](folder, secret, mark)
    with contextlib.suppress(OSError):
        if "without an end" not in forgery and forgery != "a pipe":
            reseal(folder)
    read = load_policy if any(word in forgery for word in ("weights", "kind", "settings")) else checkpoint.load
    refuses(lambda: read(folder), given, mark)


def configured(folder: Path, **changes: object) -> Path:
    """A stranger's changes to what the document says of the network."""
    config = json.loads((folder / "policy.json").read_text())["config"]
    described(folder, config=config | changes)
    reseal(folder)
    return folder


def never(*arguments: object) -> None:
    pytest.fail("a network was made for a stranger's numbers")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "changes",
    [{"width": 4096, "layers": 8}, {"layers": 999}, {"observation_dim": 2**60}, {"action_dim": 10**3000}, {"width": 4}],
    ids=["wide", "deep", "seeing", "acting", "narrow"],
)
def test_no_network_is_made_that_the_weights_are_not_of(tmp_path, monkeypatch, kind, changes):
    folder = configured(a_checkpoint(tmp_path, kind), **changes)
    monkeypatch.setitem(KINDS, kind, (never, KINDS[kind][1]))
    with pytest.raises(
        checkpoint.CheckpointError, match=r"policy\.json describes \(the weights are .* and it asks for"
    ):
        load_policy(folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{}, {"layers": 3}, {"observation_dim": 7, "action_dim": 5, "width": 12}])
def test_a_network_has_the_size_that_its_shape_tells(kind, changes):
    policies = [a_policy(kind, **changes)]
    clock = {"DecisionTransformer": {"timestep_embedding": 6}, "Reinformer": {"timesteps": 6}}.get(kind, {})
    policies += [a_policy(kind, **changes, **clock)]
    for policy in policies:
        tensors = policy.state_dict().values()
        assert policy.config.size == (len(tensors), sum(tensor.numel() for tensor in tensors))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("context_length", 2**40, "must be at most 4,096, got 1099511627776"),
        ("context_length", 2.5, "must be a JSON int, got 2.5"),
        ("layers", 10**6, "must be at most 1,000, got 1000000"),
        ("layers", True, "must be a JSON int, got True"),
        ("width", "8" * 500, "must be a JSON int, got '88"),
        ("timestep_embedding", None, "must be a JSON int, got None"),
        ("return_scale", [1] * 500, r"must be a JSON float, got \[1, 1"),
        ("return_scale", "0.001", "must be a JSON float, got '0.001'"),
        ("return_scale", 0, "must be above 0 and finite in float32, got 0"),
        ("return_scale", -0.001, "must be above 0 and finite in float32, got -0.001"),
        ("return_scale", float("nan"), "must be a finite number, got nan"),
        ("return_scale", float("inf"), "must be a finite number, got inf"),
        ("return_scale", 10**400, "must be above 0 and finite in float32, got 1000"),
        ("return_scale", 1e-300, "must be above 0 and finite in float32, got 1e-300"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_settings_of_another_type_or_size_are_refused(tmp_path, name, value, said):
    folder = configured(a_checkpoint(tmp_path), **{name: value})
    with pytest.raises(checkpoint.CheckpointError, match=f"{folder} .*{name} {said}") as caught:
        load_policy(folder)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_and_a_whole_number_for_a_scale(tmp_path, kind):
    folder = a_checkpoint(tmp_path, kind)
    if kind != "PerceptronPolicy":
        configured(folder, return_scale=1, context_length=4096)
    assert type(load_policy(folder)).__name__ == kind


def test_a_last_that_leads_elsewhere_is_not_followed(tmp_path):
    a_checkpoint(tmp_path / "elsewhere")
    (tmp_path / "given" / "checkpoints").mkdir(parents=True)
    outside = tmp_path / "elsewhere" / "checkpoints" / "iteration_000001"
    (tmp_path / "given" / "checkpoints" / "last").symlink_to(outside)
    refuses(lambda: checkpoint.load_last(tmp_path / "given"), tmp_path / "given", tmp_path / "mark")


@pytest.mark.parametrize(
    "content", [b"!!python/object/apply:os.mkdir [mark]", b"\x80\x04.", b'{"a": ' * 100_000, b"[]"]
)
def test_a_strangers_configuration(tmp_path, content):
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "config.json").write_bytes(content)
    refuses(lambda: read_config(tmp_path / "given"), tmp_path / "given", tmp_path / "mark")


def test_a_strangers_record_replay_and_model(tmp_path):
    folder, mark = tmp_path / "given", tmp_path / "mark"
    folder.mkdir()
    for name in ("metrics.csv", "replay.npz", "model.pt"):
        pickled(folder / name, mark, mark)
        (folder / name).write_bytes((folder / name).read_bytes() + b"\n")
    refuses(lambda: read_rows(folder / "metrics.csv"), folder, mark)
    refuses(lambda: read_replay(folder / "replay.npz"), folder, mark)
    refuses(lambda: read_foreign(folder / "model.pt", Foreign()), folder, mark)
    torch.save({"model_state_dict": Payload(mark)}, folder / "model.pt")
    refuses(lambda: read_foreign(folder / "model.pt", Foreign()), folder, mark)


def test_the_audit_sees(tmp_path):
    """The sentinel goes off where something does unpickle, start a process, or read elsewhere."""
    pickled(tmp_path / "x", tmp_path, tmp_path / "mark")

    def run() -> None:
        with contextlib.suppress(FileExistsError):
            pickle.loads((tmp_path / "x").read_bytes())  # noqa: S301
        raise DtuneError

    with pytest.raises(AssertionError):
        refuses(run, tmp_path, tmp_path / "mark")

    def look() -> None:
        Path(__file__).read_bytes()
        raise DtuneError

    with pytest.raises(AssertionError, match="test_untrusted"):
        refuses(look, tmp_path, tmp_path / "nothing")


def test_a_good_checkpoint_and_dataset_are_read_in_the_same_way(tmp_path):
    """What is refused above is refused for its forgery."""
    folder = a_checkpoint(tmp_path / "given")
    reseal(folder)
    assert checkpoint.load(folder)["algorithm"]["list"][1]["x"].eq(1).all()
    load_policy(folder)
    np.savez(tmp_path / "good.npz", **columns())
    assert len(load_dataset(tmp_path / "good.npz")) == 2
    shutil.copytree(tmp_path / "given", tmp_path / "copy", symlinks=True)
    assert checkpoint.load_last(tmp_path / "copy") is not None
