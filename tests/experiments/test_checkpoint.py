import hashlib
import json
import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import torch
from states import make_state, names, plain, same
from torch import nn

from dtune.errors import ConfigError, DataError, DtuneError
from dtune.experiments import checkpoint, disk
from dtune.experiments.checkpoint import CheckpointError, load, load_last, save


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


def test_saving_twice_gives_the_same_bytes(tmp_path):
    state = make_state()
    first, second = save(tmp_path / "a", 1, state), save(tmp_path / "b", 1, state)
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()


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
    subprocess.run(["sha256sum", "--check", "--strict", "MANIFEST.sha256"], cwd=path, check=True, capture_output=True)


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
    with pytest.raises(CheckpointError, match=r"format 99 and this dtune reads 1.*version of dtune that wrote it"):
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


def damage(path: Path, chance: random.Random) -> None:
    """Cuts a file of a checkpoint, or flips a bit of it."""
    file = chance.choice(sorted(path.iterdir()))
    content = bytearray(file.read_bytes())
    if chance.random() < 0.5:
        file.write_bytes(content[: chance.randrange(len(content))])
        return
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def test_no_damage_is_loaded_silently_and_each_falls_back_to_the_checkpoint_before(tmp_path):
    state = make_state(10)
    save(tmp_path, 10, state)
    save(tmp_path, 20, make_state(20))
    last, good = tmp_path / "checkpoints" / "iteration_000020", plain(state)
    whole = {file: file.read_bytes() for file in last.iterdir()}
    chance = random.Random(1)
    for _ in range(200):
        damage(last, chance)
        found = load_last(tmp_path)
        assert found is not None
        assert found.iteration == 10
        assert "Continuing from iteration_000010" in (found.warning or "")
        assert same(found.state, good)
        for file, content in whole.items():
            file.write_bytes(content)
    found = load_last(tmp_path)
    assert found is not None
    assert (found.iteration, found.warning) == (20, None)


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


def test_the_newest_and_the_best_are_kept(tmp_path):
    for iteration in range(1, 7):
        save(tmp_path, iteration, {"i": iteration}, policy=None, keep=2, best=min(iteration, 2))
    assert names(tmp_path) == {"iteration_000002", "iteration_000005", "iteration_000006", "last", "best"}
    assert load(tmp_path / "checkpoints" / "best") == {"i": 2}
    assert load(tmp_path / "checkpoints" / "last") == {"i": 6}


def test_a_run_that_went_back_has_the_best_of_what_it_went_back_to(tmp_path):
    """Killed when `best` led to the new checkpoint and `last` not yet; next time that iteration is no better."""
    save(tmp_path, 20, {"i": 20}, policy=None, best=20)
    save(tmp_path, 30, {"i": 30}, policy=None, best=20)
    save(tmp_path, 40, {"i": "a better one"}, policy=None, best=40, keep=3)
    save(tmp_path, 40, {"i": "no better"}, policy=None, best=20)
    assert load(tmp_path / "checkpoints" / "best") == {"i": 20}
    assert "iteration_000020" in names(tmp_path)


def test_a_best_that_is_gone_is_not_said_to_be_another(tmp_path):
    save(tmp_path, 30, {"i": 30}, policy=None)
    save(tmp_path, 40, {"i": 40}, policy=None, best=40)
    save(tmp_path, 45, {"i": 45}, policy=None, best=20)  # gone back to 30, which knew a better one of 20
    assert not (tmp_path / "checkpoints" / "best").is_symlink()
    save(tmp_path, 50, {"i": 50}, policy=None, best=50)
    assert load(tmp_path / "checkpoints" / "best") == {"i": 50}


def test_a_shape_that_no_tensor_can_have_is_damage(tmp_path):
    save(tmp_path, 10, make_state())
    path = save(tmp_path, 20, make_state())
    shape = json.dumps({"x": {"dtype": "F32", "shape": [0, 2**40, 2**40], "data_offsets": [0, 0]}}).encode()
    (path / "tensors.safetensors").write_bytes(struct.pack("<Q", len(shape)) + shape)
    files = {file.name: file.read_bytes() for file in path.iterdir() if file.name != "MANIFEST.sha256"}
    (path / "MANIFEST.sha256").write_bytes(checkpoint._manifest(files))
    found = load_last(tmp_path)
    assert found.iteration == 10
    assert "iteration_000020" in found.warning


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


def test_the_format_is_the_one_of_this_release():
    assert checkpoint.VERSION == 1  # raise it only with a reader for the version before
