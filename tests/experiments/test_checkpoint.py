import contextlib
import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dtune.errors import ConfigError, DataError, DtuneError
from dtune.experiments import checkpoint, disk
from dtune.experiments.checkpoint import CheckpointError, load, load_last, save
from dtune.experiments.encoding import decode, encode


def same(a, b) -> bool:
    """Equal in structure, types and bits."""
    if isinstance(a, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return a.contiguous().view(-1).view(torch.uint8).equal(b.contiguous().view(-1).view(torch.uint8))
    if isinstance(a, float):
        return isinstance(b, float) and ((a != a and b != b) or struct.pack("d", a) == struct.pack("d", b))
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def make_state(seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(2, 3, generator=generator))
    optimiser = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    matrix = torch.randn(4, 5, generator=generator)
    return {
        "algorithm": {
            "policy": layer.state_dict(),
            "optimiser": optimiser.state_dict(),  # keys of int, a tuple of betas, a shared nothing
            "replay": [{"rewards": torch.randn(n, dtype=torch.float64, generator=generator)} for n in (1, 3)],
        },
        "generator": generator.get_state(),
        "dtypes": {
            "bool": torch.tensor([True, False]),
            "int64": torch.tensor([2**62, -1]),
            "int32": torch.tensor(-7, dtype=torch.int32),
            "uint8": torch.arange(256, dtype=torch.uint8),
            "bfloat16": matrix.bfloat16(),
            "float16": matrix.half(),
            "scalar": torch.tensor(0.1),
            "special": torch.tensor([float("nan"), float("inf"), -0.0, 5e-324], dtype=torch.float64),
            "empty": torch.zeros(0, 3),
        },
        "views": [matrix, matrix.T, matrix[:, 1], matrix.expand(2, 4, 5), matrix[0, 0]],
        "floats": [0.1, 1.0, -0.0, 1e308, 5e-324, float("inf"), float("-inf"), float("nan"), 1 / 3],
        "others": [True, False, None, 0, -(2**80), "text\n\ud83d", "", [], {}, (), ((1,), [2])],
        "odd keys": {"$tensor": "mine", "a/b": torch.ones(1), "~": 1},
    }


def test_a_state_comes_back_to_the_last_bit(tmp_path):
    state = make_state()
    path = save(tmp_path, 40, state)
    assert path == tmp_path / "checkpoints" / "iteration_000040"
    assert same(plain(state), load(path))
    assert same(plain(state), load(tmp_path / "checkpoints" / "last"))
    found = load_last(tmp_path)
    assert found is not None
    assert (found.iteration, found.warning) == (40, None)
    assert same(plain(state), found.state)


def plain(state):
    """OrderedDicts as dicts."""
    return decode(*encode(state))


def test_saving_twice_gives_the_same_bytes(tmp_path):
    state = make_state()
    first, second = save(tmp_path / "a", 1, state), save(tmp_path / "b", 1, state)
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
keys = st.text(max_size=3) | st.integers(-3, 3)


@settings(derandomize=True, deadline=None, database=None)
@given(
    st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(keys, inner, max_size=3)
        ),
        max_leaves=12,
    )
)
def test_any_structure_survives_json(state):
    document, tensors = encode(state)
    assert same(decode(json.loads(json.dumps(document, allow_nan=False)), tensors), state)


@pytest.mark.parametrize("value", [{1, 2}, 1j, b"bytes", object(), torch.float32, {1.5: 1}, {True: 1}])
def test_what_cannot_be_stored_is_refused_with_its_path(value):
    with pytest.raises(TypeError, match=r"here/0"):
        encode({"here": [value]})


def test_two_tensors_never_share_a_name():
    with pytest.raises(TypeError, match="'a/0'"):
        encode({"a": {0: torch.ones(1), "0": torch.zeros(1)}})
    one, two = torch.zeros(1), torch.ones(1)
    state = {"a/b": one, "a": {"b": two}, "a~1b": two}
    assert same(decode(*encode(state)), state)


def test_changing_a_tensor_after_encoding_changes_nothing():
    tensor = torch.zeros(3)
    _, tensors = encode({"x": tensor})
    tensor += 1
    assert tensors["x"].equal(torch.zeros(3))


def test_the_policy_can_be_loaded_alone(tmp_path):
    state = make_state()
    path = save(tmp_path, 1, state, documents={"policy.json": {"width": 3}})
    weights = safetensors.torch.load_file(path / "policy.safetensors")
    nn.Linear(3, 2).load_state_dict(weights)
    assert weights["weight"].equal(state["algorithm"]["policy"]["weight"])
    assert json.loads((path / "policy.json").read_text()) == {"width": 3}
    assert not any("policy" in name for name in safetensors.torch.load_file(path / "tensors.safetensors"))


def test_a_state_without_a_policy_must_say_so(tmp_path):
    with pytest.raises(TypeError, match="algorithm/policy"):
        save(tmp_path, 1, {"x": torch.ones(1)})
    path = save(tmp_path, 1, {"x": 1}, policy=None)
    assert load(path) == {"x": 1}
    assert not (path / "policy.safetensors").exists()


def test_the_manifest_is_what_sha256sum_reads(tmp_path):
    path = save(tmp_path, 1, make_state())
    subprocess.run(
        ["sha256sum", "--check", "--strict", "MANIFEST.sha256"], cwd=path, check=True, capture_output=True
    )


def test_damage_anywhere_is_never_loaded(tmp_path):
    path = save(tmp_path, 1, make_state())
    chance = random.Random(0)
    for file in sorted(path.iterdir()):
        good = file.read_bytes()
        places = range(len(good)) if len(good) < 100 else chance.sample(range(len(good)), 100)
        for place in places:
            damaged = bytearray(good)
            damaged[place] ^= 1 << chance.randrange(8)
            file.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=file.name):
                load(path)
        for length in [0, len(good) - 1, *chance.sample(range(len(good)), 20)]:
            file.write_bytes(good[:length])
            with pytest.raises(CheckpointError):
                load(path)
        file.unlink()
        with pytest.raises(CheckpointError, match=f"{file.name}.*use another checkpoint"):
            load(path)
        file.write_bytes(good)
    (path / "extra.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"extra\.txt is not in"):
        load(path)
    (path / "extra.txt").unlink()
    load(path)


def forge(path: Path, **changes) -> None:
    """Edits state.json and makes the manifest agree, as a stranger could."""
    header = json.loads((path / "state.json").read_text()) | changes
    (path / "state.json").write_text(json.dumps(header))
    reseal(path)


def reseal(path: Path) -> None:
    names = sorted(file.name for file in path.iterdir() if file.name != "MANIFEST.sha256")
    lines = [f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (path / "MANIFEST.sha256").write_text("".join(lines))


def test_an_unknown_format_names_both_versions(tmp_path):
    path = save(tmp_path, 1, make_state())
    forge(path, version=99)
    with pytest.raises(
        CheckpointError, match=r"format 99 and this dtune reads 1.*version of dtune that wrote it"
    ):
        load(path)


@pytest.mark.parametrize(
    "state",
    [
        {"x": {"$tensor": "nowhere"}},
        {"x": {"$tensor": []}},
        {"x": {"$unknown": 1}},
        {"x": {"$float": "1"}},
        {"x": {"$float": 1, "y": 2}},
        {"x": {"$tuple": 1}},
        {"x": {"$items": [[1]]}},
        {"x": {"$items": [[[], 1]]}},
        [1],
    ],
)
def test_a_forged_state_is_refused(tmp_path, state):
    path = save(tmp_path, 1, make_state())
    forge(path, state=state)
    with pytest.raises(CheckpointError, match=r"state\.json is not a checkpoint of dtune"):
        load(path)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "[" * 100_000, "\udcff", '{"version": 1}'])
def test_a_forged_document_is_refused(tmp_path, text):
    path = save(tmp_path, 1, make_state())
    (path / "state.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    reseal(path)
    with pytest.raises(CheckpointError):
        load(path)


@pytest.mark.parametrize("name", ["tensors.safetensors", "policy.safetensors"])
def test_forged_tensors_are_refused(tmp_path, name):
    path = save(tmp_path, 1, make_state())
    (path / name).write_bytes(b"\x80\x04cposix\nsystem\n")
    reseal(path)
    with pytest.raises(CheckpointError):
        load(path)


def test_a_damaged_last_falls_back_and_says_so(tmp_path):
    states = {iteration: make_state(iteration) for iteration in (10, 20, 30)}
    for iteration, state in states.items():
        save(tmp_path, iteration, state, keep=3)
    tensors = tmp_path / "checkpoints" / "iteration_000030" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    found = load_last(tmp_path)
    assert found is not None
    assert found.iteration == 20
    assert same(found.state, plain(states[20]))
    assert found.warning is not None
    assert "tensors.safetensors" in found.warning
    assert "Continuing from iteration_000020" in found.warning


def test_a_link_to_nowhere_falls_back(tmp_path):
    save(tmp_path, 10, make_state())
    path = save(tmp_path, 20, make_state())
    shutil.rmtree(path)
    found = load_last(tmp_path)
    assert found is not None
    assert found.iteration == 10
    assert found.warning is not None


def test_nothing_to_load(tmp_path):
    assert load_last(tmp_path) is None
    (tmp_path / "checkpoints" / ".tmp-iteration_000010").mkdir(parents=True)
    assert load_last(tmp_path) is None
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        load(tmp_path / "checkpoints" / ".tmp-iteration_000010")
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        load(tmp_path / "nowhere")


def test_only_bad_ones_is_an_error_with_a_way_out(tmp_path):
    path = save(tmp_path, 10, make_state())
    (path / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"state\.json.*Delete that folder to start"):
        load_last(tmp_path)
    assert issubclass(CheckpointError, DataError)
    assert CheckpointError.exit_code == 3


def names(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").iterdir()}


def test_the_newest_and_the_best_are_kept(tmp_path):
    for iteration in range(1, 7):
        save(tmp_path, iteration, {"i": iteration}, policy=None, keep=2, best=iteration == 2)
    assert names(tmp_path) == {"iteration_000002", "iteration_000005", "iteration_000006", "last", "best"}
    assert load(tmp_path / "checkpoints" / "best") == {"i": 2}
    assert load(tmp_path / "checkpoints" / "last") == {"i": 6}


def test_a_future_the_run_went_back_from_is_forgotten(tmp_path):
    for iteration in (10, 20, 30):
        save(tmp_path, iteration, {"i": iteration}, policy=None)
    save(tmp_path, 25, {"i": 25}, policy=None)
    assert names(tmp_path) == {"iteration_000020", "iteration_000025", "last"}


def test_the_same_iteration_is_replaced(tmp_path):
    save(tmp_path, 10, {"i": "old"}, policy=None)
    save(tmp_path, 10, {"i": "new"}, policy=None)
    assert names(tmp_path) == {"iteration_000010", "last"}
    assert load(tmp_path / "checkpoints" / "last") == {"i": "new"}


def test_links_that_a_copy_turned_into_directories(tmp_path):
    for iteration in (10, 20):
        save(tmp_path / "run", iteration, {"i": iteration}, policy=None)
    shutil.copytree(tmp_path / "run", tmp_path / "copy", symlinks=False)
    found = load_last(tmp_path / "copy")
    assert found is not None
    assert found.state == {"i": 20}
    save(tmp_path / "copy", 30, {"i": 30}, policy=None)
    assert names(tmp_path / "copy") == {"iteration_000020", "iteration_000030", "last"}


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="keep=0"):
        save(tmp_path, 1, {}, keep=0)


def test_a_full_disk_is_a_sentence_and_leaves_the_old_ones(tmp_path, monkeypatch):
    save(tmp_path, 10, make_state(10))

    def full(path, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "write", full)
        with pytest.raises(DtuneError, match=r"No space left on device.*intact"):
            save(tmp_path, 20, make_state(20))
    found = load_last(tmp_path)
    assert found is not None
    assert (found.iteration, found.warning) == (10, None)


class Killed(BaseException):
    """Stands for SIGKILL: no `except Exception` or OSError catches it."""


CALLS = ("mkdir", "fsync", "rename", "replace", "symlink", "unlink", "rmdir")


def kill_at(patch: pytest.MonkeyPatch, moment: int, *, before: bool) -> list[str]:
    """Dies at the `moment`-th change of the disk, before or after it; returns the changes reached."""
    reached: list[str] = []

    def watched(name: str, function):
        def call(*arguments, **options):
            reached.append(name)
            fatal = len(reached) == moment
            if fatal and before:
                raise Killed
            try:
                return function(*arguments, **options)
            finally:
                if fatal:
                    raise Killed

        return call

    def torn_write(path, data):
        reached.append("write")
        if len(reached) == moment:
            path.write_bytes(data[: len(data) // 2] if before else data)
            raise Killed
        whole_write(path, data)

    whole_write = disk.write
    for name in CALLS:
        patch.setattr(os, name, watched(name, getattr(os, name)))
    patch.setattr(disk, "write", torn_write)
    return reached


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("present", [(10, 20), (10, 20, 30)], ids=["a new one", "replacing"])
def test_killed_at_any_moment_a_whole_checkpoint_is_found(tmp_path, present, before):
    for iteration in present:
        save(tmp_path / "before", iteration, {"algorithm": {"policy": {"w": torch.full((2,), iteration)}}})
    new = {"algorithm": {"policy": {"w": torch.full((2,), 31)}}}
    moments = 0
    for moment in range(1, 200):
        run = tmp_path / f"run{moment}"
        shutil.copytree(tmp_path / "before", run, symlinks=True)
        with pytest.MonkeyPatch.context() as patch:
            reached = kill_at(patch, moment, before=before)
            with contextlib.suppress(Killed):
                save(run, 30, new, best=True)
        found = load_last(run)
        assert found is not None, reached
        value = int(found.state["algorithm"]["policy"]["w"][0])
        assert value in {max(present), 31}, reached
        if 30 not in present:  # while one is replaced, `last` may lead nowhere for a moment
            assert found.warning is None, reached
        save(run, 30, new, best=True)
        assert same(load(run / "checkpoints" / "last"), new)
        assert same(load(run / "checkpoints" / "best"), new)
        assert names(run) == {"iteration_000020", "iteration_000030", "last", "best"}, reached
        if len(reached) < moment:
            break
        moments += 1
    assert moments > 20  # it did die, in many places


def test_sigkill_while_saving(tmp_path):
    """A real process, killed for real, again and again."""
    script = """
import sys, torch
from pathlib import Path
from dtune.experiments.checkpoint import load_last, save
run = Path(sys.argv[1])
found = load_last(run)
i = found.iteration if found else 0
print("ready", flush=True)
while True:
    i += 1
    save(run, i, {"w": torch.full((20000,), i)}, policy=None)
"""
    chance, reached = random.Random(0), 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1 + 0.2 * chance.random())
        process.kill()
        process.wait()
        process.stdout.close()
        found = load_last(tmp_path)
        assert found is not None
        assert found.warning is None
        assert found.iteration > reached
        assert found.state["w"].eq(found.iteration).all()
        reached = found.iteration


def test_every_file_and_directory_is_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def note_sync(handle):
        events.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def note_rename(source, target):
        events.append(f"rename {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "rename", note_rename)
    path = save(tmp_path, 1, make_state())
    named = events.index("rename iteration_000001")
    assert {file.name for file in path.iterdir()} <= set(events[:named])
    assert ".tmp-iteration_000001" in events[:named]
    assert "checkpoints" in events[named:]


def test_the_format_is_the_one_of_this_release():
    assert checkpoint.VERSION == 1  # raise it only with a reader for the version before
