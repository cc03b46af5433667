"""Mirrors: what they are told, and that a run never depends on them."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
from tiny import GRPO

from dtune.cli import main
from dtune.errors import ConfigError
from dtune.experiments.mirrors import MIRRORS, prepare


class Service(ModuleType):
    """A stand-in for a package: remembers what it is told, and fails when it is told to."""

    def __init__(self, name: str, fails_in: str = ""):
        super().__init__(name)
        self.told, self._fails_in = [], fails_in

    def init(self, **options):
        self._tell("init", options)
        log = lambda metrics, step: self._tell("log", (step, metrics))  # noqa: E731
        return SimpleNamespace(log=log, finish=lambda: self._tell("finish", None))

    def _tell(self, what, value):
        self.told.append((what, value))
        if what == self._fails_in:
            raise RuntimeError("no network\nat all")


@pytest.fixture
def service(monkeypatch):
    def install(name="wandb", fails_in="") -> Service:
        stand_in = Service(name, fails_in)
        monkeypatch.setitem(sys.modules, name, stand_in)
        return stand_in

    monkeypatch.delenv("WANDB_MODE", raising=False)
    return install


@pytest.mark.parametrize("name", MIRRORS)
def test_rows_arrive_in_order(service, tmp_path, name):
    stand_in = service(name)
    with prepare(name, "GRPO-DT hopper", {"seed": 3}, tmp_path)(print) as mirror:
        mirror.log(0, {"eval/return": 1.5})
        mirror.log(1, {"train/kl": 0.1})
    (_, options), *rest = stand_in.told
    assert (options["project"], options["name"], options["config"]) == ("dtune", "GRPO-DT hopper", {"seed": 3})
    assert rest == [("log", (0, {"eval/return": 1.5})), ("log", (1, {"train/kl": 0.1})), ("finish", None)]


def test_wandb_stays_on_this_machine_unless_told_otherwise(service, tmp_path, monkeypatch):
    stand_in = service()
    prepare("wandb", "x", {}, tmp_path)(print)
    monkeypatch.setenv("WANDB_MODE", "online")
    prepare("wandb", "x", {}, tmp_path)(print)
    assert [options["mode"] for _, options in stand_in.told] == ["offline", "online"]
    assert stand_in.told[0][1]["dir"] == str(tmp_path)


@pytest.mark.parametrize("fails_in", ["init", "log", "finish"])
def test_a_mirror_that_raises_is_off_with_one_sentence(service, tmp_path, fails_in):
    stand_in, said = service(fails_in=fails_in), []
    with prepare("wandb", "x", {}, tmp_path)(said.append) as mirror:
        for iteration in range(3):
            mirror.log(iteration, {"a": 1.0})
    assert said == ["wandb failed (no network at all): the mirror is off, the run goes on and its record is complete"]
    assert [what for what, _ in stand_in.told][-1] == fails_in
    assert [what for what, _ in stand_in.told].count(fails_in) == 1


def test_what_is_not_there_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ConfigError, match=r"pip install 'dtune\[trackio\]'"):
        prepare("trackio", "x", {}, tmp_path)
    with pytest.raises(ConfigError, match="choose one of wandb, trackio"):
        prepare("mlflow", "x", {}, tmp_path)


def test_the_record_is_the_same_with_and_without_a_mirror(service, pretrained, tmp_path, capsys, one_thread):
    stand_in = service(fails_in="log")
    short = [*GRPO, "--iterations", "2", "--evaluate-every", "2", "--policy", str(pretrained)]
    main([*short, "--out", str(tmp_path / "plain")])
    main([*short, "--out", str(tmp_path / "mirrored"), "--mirror", "wandb"])
    plain, mirrored = ((tmp_path / name / "metrics.csv").read_bytes() for name in ("plain", "mirrored"))
    assert plain == mirrored
    assert "the mirror is off" in capsys.readouterr().out
    (_, options), (_, (first, row)) = stand_in.told
    assert options["config"]["algorithm"]["group_size"] == 4
    assert first == 0
    assert "eval/return" in row


@pytest.mark.parametrize("name", MIRRORS)
def test_the_real_package_takes_rows_offline(tmp_path, monkeypatch, name):
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    said = []
    with prepare(name, "x", {"a": 1}, tmp_path)(said.append) as mirror:
        mirror.log(0, {"eval/return": 1.0})
    assert not said
    assert any(path.is_file() for path in tmp_path.rglob("*"))
