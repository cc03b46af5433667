"""The command line as its users meet it, mistakes included."""

import contextlib
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest
import torch
from tiny import COMMANDS, GRPO, PPO, PRETRAIN, environment, finish, start

from dtune import cli
from dtune.data.hdf5 import write_hdf5
from dtune.errors import DataError, NumericError, SimulatorError
from dtune.experiments import presets, run
from dtune.experiments.folder import locked, settle_config, write_meta

pytestmark = pytest.mark.usefixtures("one_thread")


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def dtune(capsys, monkeypatch, tmp_path) -> Callable[..., Said]:
    """Runs `dtune …` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DTUNE_DATA", str(tmp_path / "datasets"))

    def call(*arguments: str | Path) -> Said:
        capsys.readouterr()
        code = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        return Said(code, *capsys.readouterr())

    return call


def refused(said: Said, code: int, *parts: str) -> str:
    """One sentence on standard error, with `parts`, and nothing of Python's."""
    assert said.code == code, said
    assert re.fullmatch(r"dtune: [^\n]+\n", said.err), said.err
    assert "Traceback" not in said.err
    assert "internal error" not in said.err
    for part in parts:
        assert part in said.err, (part, said.err)
    return said.err


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


# Help


def test_help_is_quick_and_needs_no_torch(tmp_path):
    script = (
        "import sys; from dtune.cli import main\ntry: main(['--help'])\nfinally: print(*sys.modules, file=sys.stderr)"
    )
    best = float("inf")
    for _ in range(10):  # the best of ten, until it is quick: other work on the machine is not ours
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if best < 0.5:
            break
    loaded = set(done.stderr.split())
    assert not loaded & {"torch", "numpy", "mujoco", "h5py", "gymnasium", "matplotlib"}
    assert best < 0.5
    assert all(command in done.stdout for command in cli.COMMANDS)
    assert "75" in done.stdout  # the exit codes are told


@pytest.mark.parametrize("arguments", [["-h"], ["--help"], *([name, "--help"] for name in cli.COMMANDS)])
def test_help(dtune, arguments):
    said = dtune(*arguments)
    assert (said.code, said.err) == (0, "")
    assert len(said.out.splitlines()) > 5


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_help_of_a_preset_lists_its_options_by_their_part(dtune, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")  # one column of options
    listed = dtune(command, "--help").out
    names = re.findall(r"^  (\S+)$", listed, re.MULTILINE)
    assert len(names) == len(presets.TABLE_6) * (1 if command == "pretrain" else len(presets.METHODS))
    said = dtune(command, names[0], "--scale", "small", "--help")
    assert said.code == 0
    options = set(re.findall(r"--[\w.-]+", said.out))
    shared = {"--scale", "--out", "--data", "--seed", "--iterations", "--threads", "--algorithm.batch-size"}
    parts = {"pretrain": {"--model.width"}, "finetune": {"--algorithm.group-size", "--algorithm.update.clip-range"}}
    assert options >= shared | parts[command]
    assert "--dataset" not in options  # it was said
    defaults = re.findall(r"--algorithm\.batch-size INT\b.*?default: (\d+)", said.out, re.DOTALL)
    small = presets.pretraining if command == "pretrain" else partial(presets.finetuning, names[0].split("/")[0])
    assert defaults[0] == str(small("hopper-medium-v2", "small").algorithm.batch_size)  # of the scale asked for


# Each command


def test_pretrain_finetune_evaluate(dtune, pretrained, tmp_path):
    """From nothing to a judged policy."""
    said = dtune(*PRETRAIN, "--out", "before")
    assert (said.code, said.err) == (0, "")
    assert "recording 6 random episodes" in said.out
    lines = said.out.splitlines()
    assert re.fullmatch(r"before +return +-?[\d.]+ ± [\d.]+ +score +-?[\d.]+ +length +[\d.]+", lines[-3])
    assert lines[-2].startswith("after ")
    assert lines[-1] == "run folder: before"
    for method, command in COMMANDS.items():
        said = dtune(*command, "--policy", "before", "--out", method)
        assert (said.code, said.err) == (0, "")
        assert said.out.splitlines()[-1] == f"run folder: {method}"
        begun = json.loads((tmp_path / method / "meta.json").read_text())["begun"]
        assert begun["dataset"] == "before/checkpoints/best"
        said = dtune("evaluate", method, "--episodes", "2")
        assert (said.code, said.err) == (0, "")
        shown = dict(line.split(maxsplit=1) for line in said.out.splitlines())
        assert {"checkpoint", "dataset", "return_to_go", "eval/return", "eval/normalized_score"} <= shown.keys()
        assert shown["return_to_go"] == "7200.00"
        assert Path(shown["checkpoint"]).parent == tmp_path / method / "checkpoints"
        said = dtune(*command, "--policy", "before", "--out", method)  # done: nothing is done again
        assert (said.code, said.err) == (0, "")
    assert set(os.listdir(tmp_path)) == {"before", "datasets", "grpo", "ppo"}


@pytest.fixture
def asked(monkeypatch) -> list[tuple]:
    """What pretraining and finetuning are asked to do, instead of doing it."""
    calls: list[tuple] = []

    def note(*arguments, mirror=None, wait=False):
        calls.append(arguments)
        judged = {"eval/return": 1.0, "eval/return_std": 0.0, "eval/normalized_score": 1.0, "eval/length": 1.0}
        return [{"iteration": 0, **judged}]

    monkeypatch.setattr(run, "pretrain_preset", note)
    monkeypatch.setattr(run, "finetune_preset", note)
    return calls


def test_without_options_the_preset_is_run_in_its_folder(dtune, asked):
    dtune("pretrain", "ant-medium-v2")
    dtune("pretrain", "ant-medium-v2", "--scale", "small", "--seed", "3")
    dtune("finetune", "grpo/hopper-medium-v2", "--policy", "some/where")
    dtune("finetune", "ppo/walker2d-random-v2", "--policy", "p", "--scale=small", "--seed", "2")
    runs = Path("runs")
    assert asked == [
        (presets.pretraining("ant-medium-v2", "paper"), runs / "pretrain/ant-medium-v2/paper/seed0", None),
        (asked[1][0], runs / "pretrain/ant-medium-v2/small/seed3", None),
        (
            presets.finetuning("grpo", "hopper-medium-v2", "paper"),
            runs / "grpo/hopper-medium-v2/paper/seed0",
            Path("some/where"),
            None,
        ),
        (asked[3][0], runs / "ppo/walker2d-random-v2/small/seed2", Path("p"), None),
    ]
    small = presets.pretraining("ant-medium-v2", "small")
    assert asked[1][0] == type(small)(**{**vars(small), "seed": 3})
    small = presets.finetuning("ppo", "walker2d-random-v2", "small")
    assert asked[3][0] == type(small)(**{**vars(small), "seed": 2})


def test_options_reach_the_config(dtune, asked):
    said = dtune(
        "finetune", "grpo/hopper-medium-v2", "--policy", "p", "--out", "o", "--seed", "3", "--iterations", "7",
        "--threads", "2", "--evaluate-every", "4", "--algorithm.group-size", "16", "--algorithm.return-to-go", "500",
        "--algorithm.shared-start", "False", "--algorithm.reset-selection", "uniform",
        "--algorithm.update.clip-range", "0.4", "--algorithm.update.ratio", "geometric",
        "--algorithm.update.target-entropy", "-2.5",
    )  # fmt: skip
    assert said.code == 0, said
    config, folder, policy, data = asked[0]
    assert (folder, policy, data) == (Path("o"), Path("p"), None)
    assert (config.seed, config.iterations, config.threads, config.evaluate_every) == (3, 7, 2, 4)
    algorithm = config.algorithm
    assert (algorithm.group_size, algorithm.return_to_go, algorithm.shared_start) == (16, 500.0, False)
    assert algorithm.reset_selection == "uniform"
    update = algorithm.update
    assert (update.clip_range, update.ratio, update.target_entropy) == (0.4, "geometric", -2.5)
    assert (algorithm.lookahead_length, update.learning_rate) == (400, 5e-5)  # the others are the preset's
    dtune(
        "pretrain", "hopper-medium-v2", "--data", "d.hdf5", "--model.width=32", "--algorithm.learning_rate", "0.01",
        "--algorithm.optimizer", "adamw", "--debug",
    )  # fmt: skip
    config, folder, data = asked[1]
    assert data == Path("d.hdf5")
    assert (config.model.width, config.model.layers) == (32, 4)
    assert (config.algorithm.learning_rate, config.algorithm.optimizer) == (0.01, "adamw")


def test_methods_that_go_on_with_the_data_are_given_them(dtune, asked):
    assert dtune("finetune", "odt/hopper-medium-v2", "--policy", "p", "--data", "d.hdf5").code == 0
    assert dtune("finetune", "iql/hopper-medium-v2", "--data", "d.hdf5", "--algorithm.expectile", "0.8").code == 0
    odt, iql = asked  # nothing is pretrained for either
    assert odt[1:] == (Path("runs/odt/hopper-medium-v2/paper/seed0"), Path("p"), Path("d.hdf5"))
    assert iql[1:] == (Path("runs/iql/hopper-medium-v2/paper/seed0"), None, Path("d.hdf5"))
    assert iql[0].algorithm.expectile == 0.8
    refused(dtune("finetune", "grpo/hopper-medium-v2", "--policy", "p", "--data", "d.hdf5"), 2, "leave out one of them")
    refused(dtune("finetune", "iql/hopper-medium-v2"), 3, "hopper-medium-v2.hdf5", "--data")
    assert len(asked) == 2


def test_the_same_number_typed_is_no_other_setting(dtune, pretrained):
    """The preset's 7200 and the 7200 of the command line are one."""
    arguments = [*GRPO, "--policy", pretrained, "--out", "run"]
    arguments[arguments.index("--iterations") + 1] = "0"
    assert dtune(*arguments).code == 0
    algorithm = presets.finetuning("grpo", "hopper-random-v2", "small").algorithm
    same = ["--algorithm.return-to-go", "7200", "--algorithm.gamma", f"{algorithm.gamma:g}"]
    rate = f"{algorithm.update.learning_rate:e}"
    assert dtune(*arguments, *same, "--algorithm.update.learning-rate", rate) == dtune(*arguments)


def test_finetunings_begun_together_wait_for_their_pretraining(dtune, asked, monkeypatch):
    note, waits = run.pretrain_preset, []

    def pretrain(*arguments, wait=False):
        waits.append(wait)
        return note(*arguments)

    monkeypatch.setattr(run, "pretrain_preset", pretrain)
    dtune("finetune", "grpo/hopper-medium-v2", "--scale", "small")
    assert waits == [True]
    assert len(asked) == 2


def test_without_a_policy_pretraining_comes_first(dtune, asked):
    assert dtune("finetune", "grpo/hopper-medium-v2", "--scale", "small", "--data", "d", "--threads", "2").code == 0
    (config, folder, data), (_, _, start, offline) = asked
    assert config == type(config)(**{**vars(presets.pretraining("hopper-medium-v2", "small")), "threads": 2})
    assert (folder, data) == (Path("runs/pretrain/hopper-medium-v2/small/seed0"), Path("d"))
    assert (start, offline) == (folder / "checkpoints" / "last", None)


def test_what_is_refused_anyway_is_refused_before_a_pretraining(dtune, asked, monkeypatch):
    command = ["finetune", "ppo/hopper-medium-v2", "--scale", "small", "--out", "run"]
    monkeypatch.setitem(sys.modules, "trackio", None)  # not installed
    refused(dtune(*command, "--mirror", "trackio"), 2, "trackio is not installed")
    settle_config(Path("run"), presets.finetuning("ppo", "hopper-medium-v2", "small"))
    said = dtune(*command, "--seed", "5")
    assert (said.code, "run was begun with other settings:\n  seed: 0 -> 5" in said.err) == (2, True)
    assert not asked
    assert dtune(*command).code == 0
    assert len(asked) == 2


def test_another_start_than_the_runs_is_refused_before_a_pretraining(dtune, asked):
    command = ["finetune", "ppo/hopper-medium-v2", "--scale", "small", "--out", "run"]
    settle_config(Path("run"), presets.finetuning("ppo", "hopper-medium-v2", "small"))
    write_meta(Path("run"), source=Path("theirs/checkpoints/best"), digest="ab")
    refused(dtune(*command), 2, "run was begun from theirs/checkpoints/best: say --policy theirs/checkpoints/best")
    assert not asked
    settle_config(Path("odt"), presets.finetuning("odt", "hopper-medium-v2", "small"))
    write_meta(Path("odt"), source=Path("data.hdf5"), digest="ab")
    odt = ["finetune", "odt/hopper-medium-v2", "--scale", "small", "--out", "odt", "--data", "data.hdf5"]
    assert dtune(*odt).code == 0  # its record names the data
    assert len(asked) == 2


def test_an_architecture_that_the_policy_has_not_is_refused(dtune, pretrained, asked):
    command = ["finetune", "grpo/hopper-random-v2", "--scale", "small", "--policy", str(pretrained)]
    refused(dtune(*command, "--architecture", "reinformer"), 2, "holds a DecisionTransformer, and no Reinformer")
    assert not asked
    assert dtune(*command, "--architecture", "dt").code == 0


def test_a_refused_pretraining_points_at_policy(dtune, pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / "runs/pretrain/hopper-random-v2/small/seed0", symlinks=True)
    data = next((pretrained.parent / "data").iterdir())
    said = dtune(*GRPO, "--data", data)
    assert said.code == 2
    assert "model.width: 16 -> 64" in said.err
    assert "--policy PATH" in said.err
    assert "Traceback" not in said.err


# Wrong usage


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["fine"], ["'fine'", "demo, pretrain, finetune, evaluate"]),
        (["--quiet"], ["'--quiet'", "choose one of"]),
        (["pretrain"], ["which dataset", "dtune pretrain --help"]),
        (["finetune"], ["which method", "grpo/hopper-medium-v2", "dtune finetune --help"]),
        (["finetune", "--seed", "3"], ["which method"]),
        (["pretrain", "hopper-expert-v2"], ["'hopper-expert-v2'", "hopper-medium-v2"]),
        (["finetune", "trpo/hopper-medium-v2"], ["'trpo'", "grpo, ppo"]),
        (["finetune", "grpo/kitchen-mixed-v0"], ["'kitchen-mixed-v0'"]),
        (["pretrain", "hopper-medium-v2", "--scale", "medium"], ["--scale is paper or small", "'medium'"]),
        (["pretrain", "hopper-medium-v2", "--scale"], ["--scale"]),
        (["pretrain", "hopper-medium-v2", "--architecture", "gpt"], ["--architecture is dt or reinformer", "'gpt'"]),
        (["pretrain", "hopper-medium-v2", "--dataset", "ant-medium-v2"], ["--dataset"]),
        (["finetune", "grpo/ant-medium-v2", "--group-size", "8"], ["perhaps you meant --algorithm.group-size"]),
        (["finetune", "grpo/ant-medium-v2", "--seed", "x"], ["--seed", "'x'", "grpo/ant-medium-v2 --help"]),
        (["finetune", "grpo/ant-medium-v2", "--seed"], ["--seed"]),
        (["finetune", "grpo/ant-medium-v2", "--seed", "-1"], ["seed must be in [0, 2^63), got -1"]),
        (["finetune", "grpo/ant-medium-v2", "extra"], ["extra"]),
        (["finetune", "grpo/ant-medium-v2", "--algorithm.group-size", "1"], ["group_size must be at least 2, got 1"]),
        (["finetune", "grpo/ant-medium-v2", "--algorithm.lookahead-length", "-5"], ["lookahead_length", "-5"]),
        (["finetune", "grpo/ant-medium-v2", "--algorithm.gamma", "1.5"], ["gamma", "1.5"]),
        (["finetune", "grpo/ant-medium-v2", "--algorithm.reset-selection", "x"], ["'active', 'uniform'"]),
        (["finetune", "grpo/ant-medium-v2", "--algorithm.update.clip-range", "0"], ["clip_range", "between 0 and 1"]),
        (["finetune", "grpo/ant-medium-v2", "--algorithm.return-to-go", "nan"], ["return_to_go must be a finite"]),
        (["finetune", "iql/ant-medium-v2", "--architecture", "reinformer"], ["IQL", "leave out --architecture"]),
        (["finetune", "grpo/ant-medium-v2", "--threads", "0"], ["threads must be at least 1"]),
        (["finetune", "grpo/ant-medium-v2", "--iterations", "-1"], ["iterations must be at least 0"]),
        (["finetune", "grpo"], ["'grpo' is not METHOD/DATASET, as grpo/hopper-random-v2"]),
        (["finetune", "hopper-random-v2"], ["'hopper-random-v2' is not METHOD/DATASET"]),
        (["finetune", "grpo/ant-medium-v2", "--checkpoint-every", "0"], ["checkpoint_every must be at least 1"]),
        (["finetune", "grpo/ant-medium-v2", "--policy", "p", "--data", "d"], ["leave out one"]),
        (["finetune", "grpo/ant-medium-v2", "--policy", "nowhere"], ["nowhere is not there", "run folder"]),
        (["evaluate"], ["PATH"]),
        (["evaluate", "nowhere"], ["nowhere is not there"]),
        (["evaluate", "nowhere", "--device", "cuda:99"], ["--device cuda:99 is GPU 99"]),
        (["evaluate", "a", "b"], ["b"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_usage_is_one_sentence_and_2(dtune, tmp_path, arguments, parts):
    refused(dtune(*arguments), 2, *parts)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left <= {".lock"}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])  # boxes are drawn otherwise
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--group-size", "3"], "Unrecognized options: --group-size, 3 (perhaps you meant --algorithm.group-size)"),
        (["--seed", "x"], "Error parsing --seed: invalid literal for int() with base 10: 'x'"),
        (["--algorithm.passes", "0"], "passes must be at least 1, got 0"),
        (["--algorithm.relabel", "x"], "invalid choice 'x' for argument '--algorithm.relabel'. Expected one of"),
    ],
)
def test_tyros_boxes_become_sentences(dtune, monkeypatch, encoding, arguments, sentence):
    with io.TextIOWrapper(io.BytesIO(), encoding=encoding) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        said = dtune("finetune", "grpo/ant-medium-v2", *arguments)
    refused(said, 2)
    assert said.err.startswith(f"dtune: {sentence}")
    assert said.err.endswith("; `dtune finetune grpo/ant-medium-v2 --help` lists the options\n")


def test_a_wrong_network_is_refused(dtune, pretrained):
    data = next((pretrained.parent / "data").iterdir())
    said = dtune("pretrain", "hopper-random-v2", "--data", data, "--model.width", "6", "--out", "o")
    refused(said, 2, "width must be a multiple of heads, got 6 and 4")
    assert everything(Path("o")) == {}


def test_nothing_said_is_wrong_usage(dtune):
    said = dtune()
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("usage: dtune COMMAND")


def test_debug_shows_where(dtune):
    for arguments in (["--debug", "evaluate", "nowhere"], ["evaluate", "nowhere", "--debug"]):
        said = dtune(*arguments)
        assert said.code == 2
        assert "Traceback" in said.err
        assert said.err.splitlines()[-1] == dtune("evaluate", "nowhere").err.strip()


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (DataError("d"), 3, "dtune: d\n"),
        (SimulatorError("s"), 4, "dtune: s\n"),
        (NumericError("n"), 5, "dtune: n\n"),
        (KeyboardInterrupt(), 130, "dtune: interrupted before it could save; .*last checkpoint\n"),
        (OSError(28, "No space left on device", "x.csv"), 1, r"dtune: the system refuses \(x.csv\): No space left.*\n"),
        (KeyError("x\ny"), 1, r"dtune: internal error, KeyError: '.*'; .* --debug shows where\n"),
        (MemoryError(), 1, "dtune: internal error, MemoryError.*\n"),
    ],
)
def test_every_error_is_a_sentence_and_a_code(dtune, monkeypatch, error, code, sentence):
    def fail(*arguments):
        raise error

    monkeypatch.setitem(cli.COMMANDS, "evaluate", fail)
    said = dtune("evaluate", "x")
    assert said.code == code
    assert re.fullmatch(sentence, said.err)


@pytest.mark.parametrize("buffering", ["", "1"])
def test_the_reader_of_the_output_may_leave(tmp_path, buffering):
    """`dtune … | head` ends without a word."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from dtune.cli import main\nmain(['--help'])"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(tmp_path) | {"PYTHONUNBUFFERED": buffering},
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


# Bad data


def columns() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    last = torch.arange(12) % 4 == 3
    return {
        "observations": torch.randn(12, 11, generator=generator),
        "actions": torch.rand(12, 3, generator=generator) * 2 - 1,
        "rewards": torch.randn(12, generator=generator),
        "terminals": last,
        "timeouts": torch.zeros(12, dtype=torch.bool),
    }


def put(path: Path, key: str, value: np.ndarray) -> None:
    with h5py.File(path, "r+") as file:
        del file[key]
        file[key] = value


def drop(path: Path, key: str) -> None:
    with h5py.File(path, "r+") as file:
        del file[key]


def with_nan(key: str, value: float = np.nan) -> np.ndarray:
    content = columns()[key].numpy().copy()
    content[5] = value
    return content


BAD_DATA = {
    "missing": (lambda path: path.unlink(), ["is not there", "give the path"]),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), ["is not there, or is no file"]),
    "empty": (lambda path: path.write_bytes(b""), ["not a readable HDF5 file", "download it again"]),
    "foreign": (lambda path: path.write_bytes(b"<html>404</html>"), ["not a readable HDF5 file"]),
    "pickle": (lambda path: path.write_bytes(b"\x80\x04cposix\nsystem\n."), ["is a pickle", "numpy.savez"]),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-300]), ["download it again"]),
    "no rewards": (lambda path: drop(path, "rewards"), ["lacks ['rewards']"]),
    "unequal lengths": (lambda path: put(path, "rewards", np.zeros(11, "f4")), ["unequal length"]),
    "NaN observation": (lambda path: put(path, "observations", with_nan("observations")), ["nan", "row 5"]),
    "infinite reward": (lambda path: put(path, "rewards", with_nan("rewards", np.inf)), ["'rewards'", "inf", "row 5"]),
    "NaN reward": (lambda path: put(path, "rewards", with_nan("rewards")), ["'rewards'", "row 5"]),
    "NaN action": (lambda path: put(path, "actions", with_nan("actions")), ["'actions'", "row 5"]),
    "wide action": (lambda path: put(path, "actions", with_nan("actions", 2.0)), ["[-1, 1]", "row 5"]),
    "no end": (lambda path: put(path, "terminals", np.zeros(12, bool)), ["no finished episode"]),
    "another task": (lambda path: put(path, "observations", np.zeros((12, 17), "f4")), ["17", "11 and 3 are needed"]),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_data_are_one_sentence_and_3(dtune, tmp_path, kind):
    damage, parts = BAD_DATA[kind]
    path = tmp_path / "data.hdf5"
    write_hdf5(path, columns())
    damage(path)
    said = dtune(*PRETRAIN, "--data", path, "--out", "run")
    refused(said, 3, "data.hdf5", *parts)
    assert everything(tmp_path / "run") == {}


def test_bad_data_later_lose_nothing(dtune, tmp_path):
    path = tmp_path / "data.hdf5"
    write_hdf5(path, columns())
    arguments = [*PRETRAIN, "--data", path, "--out", "run"]
    assert dtune(*arguments).code == 0
    before, whole = everything(tmp_path / "run"), path.read_bytes()
    put(path, "rewards", with_nan("rewards"))
    refused(dtune(*arguments, "--iterations", "2"), 3, "'rewards'")
    assert everything(tmp_path / "run") == before
    path.write_bytes(whole)
    assert dtune(*arguments, "--iterations", "2").code == 0


def test_data_that_have_to_be_fetched_say_where_to_put_them(dtune, tmp_path):
    said = dtune("pretrain", "hopper-medium-v2", "--scale", "small")
    refused(said, 3, f"{tmp_path}/datasets/hopper-medium-v2.hdf5 is not there", "another file (--data PATH")


# Bad folders


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_in_a_policy_is_refused_and_3(dtune, pretrained, tmp_path):
    policy = shutil.copytree((pretrained / "checkpoints" / "best").resolve(), tmp_path / "policy")
    flip(Path(policy) / "policy.safetensors")
    refused(dtune(*GRPO, "--policy", policy, "--out", "run"), 3, "policy.safetensors", "hash", "another checkpoint")
    assert everything(tmp_path / "run") == {}
    refused(dtune("evaluate", policy), 3, "policy.safetensors")


def test_a_policy_of_another_task_is_refused_and_2(dtune, pretrained, tmp_path):
    said = dtune("finetune", "ppo/ant-medium-v2", "--scale", "small", "--policy", pretrained, "--out", "run")
    refused(said, 2, "observes 11 numbers and acts with 3, but ant has 27 and 8", "pretrained for ant")
    assert everything(tmp_path / "run") == {}


@pytest.fixture(scope="module")
def once_finished(pretrained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    cli.main([*PPO, "--policy", str(pretrained), "--out", str(folder)])
    return folder


@pytest.fixture
def finished(once_finished, pretrained, tmp_path) -> list[str]:
    """A command, and its finished run in `run`."""
    shutil.copytree(once_finished, tmp_path / "run", symlinks=True)
    return [*PPO, "--policy", str(pretrained), "--out", "run"]


def test_another_configuration_is_refused_with_the_difference_and_2(dtune, finished, tmp_path):
    before = everything(tmp_path / "run")
    said = dtune(*finished, "--algorithm.value-width", "64", "--seed", "5")
    assert said.code == 2
    first, *lines, last = said.err.splitlines()
    assert first == "dtune: run was begun with other settings:"
    assert lines == ["  seed: 0 -> 5", "  algorithm.value_width: 256 -> 64"]
    assert "another --out" in last
    assert everything(tmp_path / "run") == before
    said = dtune(*GRPO, *finished[-4:])  # another method
    assert said.code == 2
    assert "algorithm.group_size: (absent) -> 4" in said.err
    assert everything(tmp_path / "run") == before


def test_a_damaged_last_checkpoint_is_gone_back_from(dtune, finished, tmp_path):
    whole = {name: content for name, content in everything(tmp_path / "run").items() if "metrics" in name}
    last = tmp_path / "run" / "checkpoints" / "last"
    flip(last / "tensors.safetensors")
    said = dtune(*finished)
    assert (said.code, said.err) == (0, "")
    assert "tensors.safetensors does not have the hash" in said.out
    assert "Continuing from iteration_00000" in said.out
    assert {name: content for name, content in everything(tmp_path / "run").items() if "metrics" in name} == whole


def test_no_good_checkpoint_is_3(dtune, finished, tmp_path):
    for path in (tmp_path / "run" / "checkpoints").glob("iteration_*/state.json"):
        flip(path)
    refused(dtune(*finished), 3, "No checkpoint in run/checkpoints can be used", "state.json", "Delete that folder")


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_config_is_2(dtune, finished, tmp_path, content):
    (tmp_path / "run" / "config.json").write_text(content)
    refused(dtune(*finished), 2, "run/config.json", "delete")


def test_a_damaged_record_is_3(dtune, finished, tmp_path):
    (tmp_path / "run" / "metrics.csv").unlink()
    refused(dtune(*finished), 3, "metrics.csv cannot be read")


def test_a_folder_that_cannot_be_written_is_2(dtune, pretrained, tmp_path):
    (tmp_path / "file").write_text("mine")
    for arguments in ([*GRPO, "--policy", pretrained], [*PRETRAIN]):
        refused(dtune(*arguments, "--out", "file"), 2, "file cannot be written", "another --out")
        refused(dtune(*arguments, "--out", "/proc/run"), 2, "/proc/run cannot be written", "another --out")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_2(dtune, pretrained, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    refused(dtune(*GRPO, "--policy", pretrained, "--out", "locked/run"), 2, "Permission denied", "permissions")


def test_two_commands_in_one_folder(dtune, pretrained, tmp_path):
    with locked(tmp_path / "run"):
        said = dtune(*GRPO, "--policy", pretrained, "--out", "run")
    refused(said, 2, "run is being written by another process", f"pid {os.getpid()}", "wait for it")


FULL = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes}, {bytes}))
"""


@pytest.mark.parametrize("size", [30_000, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_full_disk_is_one_sentence_and_1(pretrained, tmp_path, size):
    """No file may grow above a size, which the system tells as it tells of a full disk."""
    arguments = [*GRPO, "--policy", str(pretrained), "--out", "run"]
    said = Said(*finish(start(arguments, tmp_path, before=FULL.format(bytes=size))))
    refused(said, 1, "File too large", "intact", "run the same command again")
    code, _, err = finish(start(arguments, tmp_path))
    assert (code, err) == (0, "")


# Exit codes of what happens on the way


def test_broken_numbers_are_5_and_the_last_checkpoint_stays(dtune, pretrained, tmp_path):
    arguments = [*GRPO, "--policy", pretrained, "--out", "run"]
    said = dtune(*arguments, "--algorithm.update.learning-rate", "1e30")
    refused(said, 5, "finite", "learning rate")
    from dtune.experiments.checkpoint import load_last

    found = load_last(tmp_path / "run")
    assert found is not None
    assert all(tensor.isfinite().all() for tensor in found.state["algorithm"]["policy"].values())


def test_ctrl_c_before_there_is_anything_to_save(pretrained, tmp_path):
    """While data are recorded, say."""
    interrupt = "import dtune.experiments.run as run\ndef stop(*a, **k): raise KeyboardInterrupt\nrun.find = stop"
    said = Said(*finish(start([*PRETRAIN, "--out", "run"], tmp_path, before=interrupt)))
    refused(said, 130, "interrupted before it could save")


def test_the_module_is_the_command(tmp_path):
    done = subprocess.run([sys.executable, "-m", "dtune", "evaluate", "nowhere"], capture_output=True, text=True)
    refused(Said(done.returncode, done.stdout, done.stderr), 2, "nowhere is not there")
    with contextlib.suppress(FileNotFoundError):
        script = Path(sys.executable).with_name("dtune")
        done = subprocess.run([script, "--help"], capture_output=True, text=True)
        assert done.returncode == 0
        assert "usage: dtune" in done.stdout
