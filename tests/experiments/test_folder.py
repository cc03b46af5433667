import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

import dtune
from dtune.errors import ConfigError, DataError
from dtune.experiments import folder
from dtune.experiments.folder import (
    differences,
    git_commit,
    locked,
    plain,
    read_config,
    settle_config,
    settle_source,
    sha256,
    write_meta,
)


@dataclass(frozen=True, kw_only=True)
class Inner:
    group_size: int = 8
    betas: tuple[float, ...] = (0.9, 0.999)
    bound: float = float("inf")


@dataclass(frozen=True, kw_only=True)
class Outer:
    data: Path | None = Path("some/where")
    iterations: int = 100
    algorithm: Inner = field(default_factory=Inner)


def test_the_config_is_written_once(tmp_path):
    settle_config(tmp_path / "run", Outer())
    path = tmp_path / "run" / "config.json"
    written = path.read_bytes(), path.stat().st_ino
    assert json.loads(written[0]) == {
        "data": "some/where",
        "iterations": 100,
        "algorithm": {"group_size": 8, "betas": [0.9, 0.999], "bound": "inf"},
    }
    settle_config(tmp_path / "run", Outer())
    assert (path.read_bytes(), path.stat().st_ino) == written
    assert read_config(tmp_path / "run")["iterations"] == 100


def test_a_setting_that_there_was_none_of_has_its_default(tmp_path):
    """A run of an older version goes on, unless a newer setting is set."""
    path = tmp_path / "config.json"
    for config in (Outer(), {"outer": Outer()}):
        whole = json.loads(settle(tmp_path, config))
        old = whole.get("outer", whole)
        del old["iterations"], old["algorithm"]["group_size"]
        path.write_text(json.dumps(whole))
        settle_config(tmp_path, config)
        assert json.loads(path.read_text()) == whole
        changed = replace(Outer(), algorithm=Inner(group_size=9))
        with pytest.raises(ConfigError, match=r"algorithm.group_size: \(absent\) -> 9\n"):
            settle_config(tmp_path, changed if config == Outer() else {"outer": changed})
        path.unlink()


def settle(directory, config):
    settle_config(directory, config)
    return (directory / "config.json").read_text()


def test_another_config_is_refused_with_the_difference(tmp_path):
    settle_config(tmp_path, Outer())
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ConfigError) as caught:
        settle_config(tmp_path, Outer(data=None, algorithm=Inner(group_size=16)))
    message = str(caught.value)
    assert '\n  data: "some/where" -> null\n  algorithm.group_size: 8 -> 16\n' in message
    assert "iterations" not in message
    assert "another --out" in message
    assert "delete" in message
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_field_that_may_change_is_rewritten(tmp_path):
    settle_config(tmp_path, Outer())
    settle_config(tmp_path, Outer(iterations=200), may_change={"iterations"})
    assert read_config(tmp_path)["iterations"] == 200
    with pytest.raises(ConfigError, match="group_size"):
        settle_config(tmp_path, Outer(iterations=300, algorithm=Inner(group_size=1)), may_change={"iterations"})
    assert read_config(tmp_path)["iterations"] == 200


def test_a_difference_in_kind_counts():
    assert list(differences({"a": 1, "b": 0, "c": {"d": 1}}, {"a": 1.0, "b": False, "c": None})) == [
        "a",
        "b",
        "c.d",
        "c",
    ]
    assert differences({"old": 1}, {"new": {}}) == {"old": "old: 1 -> (absent)", "new": "new: (absent) -> {}"}
    assert differences(plain(Outer()), plain(Outer())) == {}


@pytest.mark.parametrize("text", ["", "[1]", '{"a":'])
def test_a_damaged_config_says_so(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json.*delete"):
        settle_config(tmp_path, Outer())
    with pytest.raises(ConfigError, match="run folder"):
        read_config(tmp_path / "nowhere")


def test_plain_is_json():
    value = plain({"set": {3, 1, 2}, "nan": float("nan"), "x": [None, True, "é"], 4: (1,)})
    assert value == {"set": [1, 2, 3], "nan": "nan", "x": [None, True, "é"], "4": [1]}


HOLD = """
import sys, time
from pathlib import Path
from dtune.experiments.folder import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_never_write_one_folder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"held\n"
        with (
            pytest.raises(ConfigError, match=f"another process .pid {process.pid}.*--out"),
            locked(tmp_path / "run"),
        ):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    with locked(tmp_path / "run"):  # gone with the process
        assert (tmp_path / "run" / ".lock").read_text() == f"pid {os.getpid()}\n"


def test_the_lock_goes_with_its_block(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    with locked(tmp_path), pytest.raises(ConfigError), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_lock_can_be_waited_for(tmp_path, capsys):
    order = []

    def second():
        with locked(tmp_path, wait=True):
            order.append("second")

    waiting = threading.Thread(target=second)
    with locked(tmp_path):
        waiting.start()
        waiting.join(0.2)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]
    assert f"by another process (pid {os.getpid()}): waiting for it" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="another --out"), locked(tmp_path / "file" / "run"):
        pass


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(folder.fcntl, "flock", refuse)
    with pytest.raises(ConfigError, match=r"No locks available.*another file system"), locked(tmp_path):
        pass


def test_meta_says_with_what_and_from_what(tmp_path):
    dataset = tmp_path / "data.hdf5"
    dataset.write_bytes(b"abc")
    assert (
        write_meta(tmp_path, source=dataset, digest=settle_source(tmp_path, dataset), command=["dtune", "finetune"])
        is None
    )
    begun = json.loads((tmp_path / "meta.json").read_text())["begun"]
    assert begun["dataset_sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert begun["command"] == ["dtune", "finetune"]
    assert begun["python"] == ".".join(map(str, sys.version_info[:3]))
    assert begun["versions"].keys() == {"dtune", "torch", "mujoco", "gymnasium", "numpy"}
    assert all(begun["versions"].values())
    assert begun["versions"]["dtune"] == dtune_version()
    assert begun["threads"] >= 1
    assert begun.keys() >= {"date", "platform", "commit"}


def dtune_version() -> str:
    from importlib.metadata import version

    return version("dtune")


def test_continuing_under_other_conditions_is_told(tmp_path, monkeypatch):
    dataset = tmp_path / "data.hdf5"
    dataset.write_bytes(b"abc")
    write_meta(tmp_path, source=dataset, digest=settle_source(tmp_path, dataset))
    dataset.rename(tmp_path / "moved.hdf5")
    dataset = tmp_path / "moved.hdf5"
    assert write_meta(tmp_path, source=dataset, digest=settle_source(tmp_path, dataset), command=["other"]) is None
    monkeypatch.setattr(folder, "_version", lambda _: "9.9")
    warning = write_meta(tmp_path, source=dataset, digest=settle_source(tmp_path, dataset))
    assert warning is not None
    assert 'torch: "' in warning
    assert '-> "9.9"' in warning
    assert "command" not in warning
    dataset.write_bytes(b"abcd")
    with pytest.raises(
        ConfigError, match=r"begun with .*data.hdf5 of hash ba7816bf8f01, and .*moved.hdf5 has 88d4266fd4e6"
    ):
        settle_source(tmp_path, dataset)
    assert settle_source(tmp_path, None) is None
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert len(meta["continued"]) == 2
    assert meta["begun"]["versions"]["torch"] != "9.9"


def test_a_damaged_meta_is_begun_anew(tmp_path):
    for text in ("", "[]", "{}"):
        (tmp_path / "meta.json").write_text(text)
        assert write_meta(tmp_path) is None
        assert json.loads((tmp_path / "meta.json").read_text())["continued"] == []


def test_an_absent_package_has_no_version():
    assert folder._version("no-such-package-here") is None


def test_the_hash_of_a_folder_sees_names_and_contents(tmp_path):
    (tmp_path / "a" / "sub").mkdir(parents=True)
    (tmp_path / "a" / "sub" / "x").write_bytes(b"1")
    (tmp_path / "a" / "y").write_bytes(b"2")
    first = sha256(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert sha256(tmp_path / "b") == first
    (tmp_path / "b" / "y").write_bytes(b"3")
    assert sha256(tmp_path / "b") != first
    (tmp_path / "a" / "y").rename(tmp_path / "a" / "z")
    assert sha256(tmp_path / "a") != first
    with pytest.raises(DataError, match="nowhere cannot be read"):
        sha256(tmp_path / "nowhere")


@pytest.fixture
def checkout(tmp_path):
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=n", "-c", "user.email=e@x", "-C", str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("1\n")
    (tmp_path / "venv").mkdir()
    git("add", "src/a.py")
    git("commit", "-qm", "one")
    return tmp_path, git("rev-parse", "HEAD")


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_the_files(checkout):
    root, commit = checkout
    assert git_commit(root / "src") == commit
    assert git_commit(root / "venv") is None  # not of that checkout
    (root / "src" / "a.py").write_text("2\n")
    assert git_commit(root / "src") == f"{commit}+changes"


def test_no_checkout_and_no_git(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert git_commit(Path(dtune.__file__).parent) is None
