"""Sweeps: what is run, skipped, tried again and said; with an engine of the test's own, and with real runs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tiny import GRPO, PPO, environment, finish, outcome

from dtune import cli
from dtune.errors import ConfigError, DataError, DtuneError
from dtune.experiments.folder import locked
from dtune.experiments.signals import Stopped
from dtune.experiments.sweeps import plans
from dtune.experiments.sweeps.jobs import Change, Job, LocalEngine
from dtune.experiments.sweeps.plans import Run
from dtune.experiments.sweeps.sweep import run_sweep

ROW = "iteration,eval/normalized_score\n0,1.5\n7,42.25\n"


def planned(method: str, seed: int = 0, *, after: str | None = None, arguments: tuple[str, ...] = ()) -> Run:
    key = f"{method}/hopper-random-v2/small/seed{seed}"
    return Run(
        key=key, arguments=arguments or ("finetune", key), after=after, method=method, dataset="hopper-random-v2",
        scale="small", iterations=7,
    )  # fmt: skip


BEFORE = planned("pretrain")
RUNS = [BEFORE, planned("iql"), planned("grpo", after=BEFORE.key), planned("ppo", after=BEFORE.key)]


class Pretending:
    """An engine that pretends: one job a poll, ended with what is prepared for it."""

    def __init__(self, out: Path, ends: dict[str, Change] | None = None, signal_at: str | None = None):
        self.out, self.ends, self.signal_at = out, ends or {}, signal_at
        self.queue: list[Job] = []
        self.began: list[str] = []
        self.stopped: int | None = None

    def submit(self, job: Job) -> None:
        self.queue.append(job)

    def poll(self, patience: float) -> list[Change]:
        if not self.queue:
            return []
        job = self.queue.pop(0)
        self.began.append(job.key.split("/")[0])
        job.log.parent.mkdir(exist_ok=True)
        job.log.write_text("some\nlast words\n")
        if self.signal_at == self.began[-1]:
            os.kill(os.getpid(), signal.SIGTERM)
            self.queue.insert(0, job)
            return [Change(key=job.key, state="running", starts=1)]
        change = self.ends.get(self.began[-1], Change(key=job.key, state="done", starts=1, seconds=14.0))
        if change.state == "done":
            finish_folder(self.out / job.key)
        return [Change(key=job.key, state="running", starts=1), change]

    def stop(self, number: int) -> list[Change]:
        self.stopped = number
        return [Change(key=job.key, state="pending", starts=1, code=75) for job in self.queue[:1]]

    def close(self) -> None:
        self.queue.clear()


def finish_folder(folder: Path) -> None:
    (folder / "checkpoints" / "last").mkdir(parents=True, exist_ok=True)
    (folder / "metrics.csv").write_text(ROW)
    (folder / "checkpoints" / "last" / "weights").write_bytes(b"0" * 1_000_000)


class Swept(NamedTuple):
    began: list[str]
    said: list[str]
    error: DtuneError | None


@pytest.fixture
def sweep(tmp_path) -> Callable[..., Swept]:
    """A sweep with a pretending engine."""

    def call(runs: list[Run] = RUNS, ends: dict[str, Change] | None = None, signal_at: str | None = None) -> Swept:
        engines, said, error = [], [], None

        def make() -> Pretending:
            engines.append(Pretending(tmp_path, ends, signal_at))
            return engines[-1]

        try:
            run_sweep(runs, tmp_path, make, say=said.append)
        except DtuneError as caught:
            error = caught
        return Swept(engines[0].began if engines else [], said, error)

    return call


def ledger_of(out: Path) -> dict[str, dict]:
    entries = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    return {entry["key"]: entry for entry in entries}


def log_of(out: Path, key: str) -> Path:
    return out / "logs" / f"{key.replace('/', '.')}.log"


def ledger(out: Path) -> dict[str, dict]:
    """By the method alone."""
    return {key.split("/")[0]: entry for key, entry in ledger_of(out).items()}


def failed(name: str, code: int = 1, starts: int = 4) -> dict[str, Change]:
    key = f"{name}/hopper-random-v2/small/seed0"
    return {name: Change(key=key, state="failed", starts=starts, seconds=3.0, code=code)}


def test_pretraining_comes_first_and_everything_is_written_down(sweep, tmp_path):
    swept = sweep()
    assert swept.error is None
    assert swept.began == ["pretrain", "iql", "grpo", "ppo"]
    entry = ledger(tmp_path)["grpo"]
    assert (entry["state"], entry["attempts"], entry["seconds"], entry["iterations"]) == ("done", 1, 14.0, 7)
    assert 1.0 < entry["megabytes"] < 1.01
    assert swept.said[0] == "runs: 3, pretrainings before them: 1; done: 0 of 4"
    assert "stated estimates: nothing is measured yet" in swept.said[1]
    assert swept.said[-1] == "4/4 done ppo/hopper-random-v2/small/seed0 (14 s, score 42.2)"


def test_what_a_pretraining_is_for_waits_for_it(sweep, tmp_path):
    seen = []

    class Watching(Pretending):
        def submit(self, job: Job) -> None:
            seen.append((job.key.split("/")[0], (self.out / BEFORE.key).exists()))
            super().submit(job)

    run_sweep(RUNS, tmp_path, lambda: Watching(tmp_path), say=lambda line: None)
    assert seen == [("pretrain", False), ("iql", False), ("grpo", True), ("ppo", True)]


def test_what_is_done_is_skipped(sweep, tmp_path):
    sweep(RUNS[:3])
    swept = sweep()
    assert swept.began == ["ppo"]
    assert swept.said[0] == "runs: 3, pretrainings before them: 1; done: 3 of 4"
    assert "measured for" not in swept.said[1]
    swept = sweep([*RUNS, planned("grpo", 1, after=BEFORE.key)])
    assert swept.began == ["grpo"]
    assert "(measured for 1 of them)" in swept.said[1]
    swept = sweep()
    assert (swept.began, len(swept.said)) == ([], 1)


def test_what_is_gone_or_asked_for_otherwise_is_run_again(sweep, tmp_path):
    sweep()
    (tmp_path / RUNS[1].key / "checkpoints" / "last" / "weights").unlink()
    (tmp_path / RUNS[1].key / "checkpoints" / "last").rmdir()
    longer = planned("ppo", after=BEFORE.key, arguments=("finetune", "--iterations", "9"))
    assert sweep([*RUNS[:3], longer]).began == ["iql", "ppo"]


def test_a_failed_run_is_told_and_tried_again_by_the_next_call(sweep, tmp_path):
    swept = sweep(ends=failed("grpo"))
    assert swept.began == ["pretrain", "iql", "grpo", "ppo"]  # the others go on
    assert swept.error.exit_code == 1
    assert "1 of 4 failed (grpo/hopper-random-v2/small/seed0)" in str(swept.error)
    assert any(line == "3/4 failed grpo/hopper-random-v2/small/seed0 (last words)" for line in swept.said) or any(
        "failed grpo/hopper-random-v2/small/seed0 (last words)" in line for line in swept.said
    )
    assert (ledger(tmp_path)["grpo"]["state"], ledger(tmp_path)["grpo"]["attempts"]) == ("failed", 4)
    swept = sweep()
    assert (swept.began, swept.error) == (["grpo"], None)
    assert (ledger(tmp_path)["grpo"]["state"], ledger(tmp_path)["grpo"]["attempts"]) == ("done", 5)


def test_without_its_pretraining_a_run_fails_unbegun(sweep, tmp_path):
    swept = sweep(ends=failed("pretrain", code=3, starts=1))
    assert swept.began == ["pretrain", "iql"]
    assert "3 of 4 failed" in str(swept.error)
    assert any(line.endswith("ppo/hopper-random-v2/small/seed0 (the pretraining it begins with failed)")
               for line in swept.said)  # fmt: skip


def test_a_signal_stops_it_and_the_next_call_goes_on(sweep, tmp_path):
    swept = sweep(signal_at="iql")
    assert isinstance(swept.error, Stopped)
    assert swept.error.exit_code == 75
    assert "stopped by SIGTERM with 1 of 4 done: the same command goes on" in str(swept.error)
    states = {name: entry["state"] for name, entry in ledger(tmp_path).items()}
    assert states == {"pretrain": "done", "iql": "pending", "grpo": "pending", "ppo": "pending"}
    assert sweep().began == ["iql", "grpo", "ppo"]


def test_what_a_killed_sweep_left_running_is_run_again(sweep, tmp_path):
    sweep(RUNS[:2])
    text = (tmp_path / "ledger.jsonl").read_text().replace('"done"', '"running"', 1)
    (tmp_path / "ledger.jsonl").write_text(text)
    assert sweep(RUNS[:2]).began == ["pretrain"]


def test_entries_of_other_sweeps_in_the_folder_stay(sweep, tmp_path):
    sweep(RUNS[:2])
    sweep([planned("dt")])
    assert ledger(tmp_path).keys() == {"pretrain", "iql", "dt"}
    assert ledger(tmp_path)["iql"]["state"] == "done"


def test_one_sweep_at_a_time(sweep, tmp_path):
    with locked(tmp_path):
        assert "is being written by another process" in str(sweep().error)


def test_a_damaged_ledger_is_refused(sweep, tmp_path):
    (tmp_path / "ledger.jsonl").write_text('{"key": "x"}\n')
    swept = sweep()
    assert isinstance(swept.error, DataError)
    assert "is no ledger of a sweep" in str(swept.error)


def test_too_little_room_is_told(sweep, monkeypatch):
    free = type("Usage", (), {"free": 1e6})()
    monkeypatch.setattr("dtune.experiments.sweeps.sweep.shutil.disk_usage", lambda path: free)
    assert "there are only 0.0 GB free" in sweep().said[2]


# Real runs


def tiny_runs(out: Path, policy: Path, *, seeds: int = 1) -> list[Run]:
    """GRPO-DT and PPO-DT, as small as they get."""
    return [
        planned(method, seed, arguments=(*command, "--seed", str(seed), "--policy", str(policy), "--out",
                                         str(out / f"{method}/hopper-random-v2/small/seed{seed}")))
        for method, command in (("grpo", GRPO), ("ppo", PPO))
        for seed in range(seeds)
    ]  # fmt: skip


def outcomes(out: Path, runs: list[Run]) -> dict[str, dict[str, bytes]]:
    return {run.key: outcome(out / run.key) for run in runs}


@pytest.fixture(scope="module")
def undisturbed(pretrained, tmp_path_factory) -> dict[str, dict[str, bytes]]:
    out = tmp_path_factory.mktemp("undisturbed")
    runs = tiny_runs(out, pretrained)
    run_sweep(runs, out, lambda: LocalEngine(2), say=lambda line: None)
    return outcomes(out, runs)


SWEEPING = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import dtune.experiments.sweeps.plans as plans
from test_sweep import tiny_runs
plans.plan = lambda *_, out, **__: tiny_runs(out, Path({policy!r}), seeds={seeds})
from dtune.cli import main
main(sys.argv[1:])
"""


def start_sweep(folder: Path, policy: Path, *options: str, seeds: int = 1) -> subprocess.Popen[str]:
    """`dtune sweep` of tiny runs, in a process of its own."""
    script = SWEEPING.format(tests=str(Path(__file__).parent), policy=str(policy), seeds=seeds)
    tests = str(Path(__file__).parents[2])
    variables = environment(folder)
    variables["PYTHONPATH"] = os.pathsep.join([tests, variables.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", script, "sweep", "--datasets", "hopper-random-v2", "--scale", "small"]
    return subprocess.Popen(
        [*command, "--out", "out", "--data", str(folder), *options], cwd=folder, env=variables,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def rows(run: Path) -> int:
    path = run / "metrics.csv"
    return path.read_bytes().count(b"\n") - 1 if path.exists() else 0


def test_a_sweep_stopped_midway_saves_and_goes_on_as_if_never_stopped(pretrained, undisturbed, tmp_path):
    (tmp_path / "hopper-random-v2.hdf5").touch()
    runs = tiny_runs(tmp_path / "out", pretrained)
    process = start_sweep(tmp_path, pretrained, "--jobs", "2")
    began = time.monotonic()
    while not any(rows(tmp_path / "out" / run.key) > 2 for run in runs):
        assert process.poll() is None, finish(process)
        assert time.monotonic() - began < 100
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    assert "stopped by Ctrl-C" in err
    code, out, err = finish(start_sweep(tmp_path, pretrained, "--jobs", "2"))
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].startswith("2/2 done")
    assert outcomes(tmp_path / "out", runs) == undisturbed


# The command


@pytest.fixture
def dtune(capsys, monkeypatch, tmp_path) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DTUNE_DATA", str(tmp_path / "datasets"))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))

    def call(*arguments: str) -> tuple[int, str, str]:
        code = 0
        try:
            cli.main(["sweep", *arguments])
        except SystemExit as end:
            code = end.code
        return (code, *capsys.readouterr())

    return call


def test_a_dry_run_of_table_1_prints_306_commands_and_writes_nothing(dtune, tmp_path):
    code, out, err = dtune("--table", "1", "--dry-run")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert sum(line.startswith("dtune finetune ") for line in lines) == 306
    assert sum(line.startswith("dtune pretrain ") for line in lines) == 51
    assert lines[-3 if "GB free" in lines[-1] else -2] == "runs: 306, pretrainings before them: 51; done: 0 of 357"
    assert "the others take about" in out
    assert os.listdir(tmp_path) == []


def test_datasets_and_methods_of_ones_own(dtune):
    code, out, _ = dtune("--datasets", "hopper-random-v2", "ant-random-v2", "--methods", "ppo", "dt", "--seeds", "2",
                         "--scale", "small", "--dry-run", "--out", "there")  # fmt: skip
    assert code == 0
    assert sum(line.startswith("dtune finetune ") for line in out.splitlines()) == 8
    assert "--out there/ppo/ant-random-v2/small/seed1" in out


def test_a_dry_run_begins_with_the_data_that_are_not_here(dtune, tmp_path, monkeypatch):
    monkeypatch.setenv("DTUNE_DATA", str(tmp_path / "home"))
    command = ["--datasets", "hopper-random-v2", "hopper-medium-v2", "--methods", "dt", "--scale", "small", "--dry-run"]
    code, out, _ = dtune(*command)
    assert code == 0
    assert out.splitlines()[:2] == [
        "dtune data make hopper-random-v2 --episodes 1000", "dtune data download hopper-medium-v2",
    ]  # fmt: skip
    (tmp_path / "hopper-medium-v2.hdf5").touch()
    assert "dtune data download" not in dtune(*command, "--data", str(tmp_path))[1]


def test_every_command_is_given_the_threads_and_the_device(dtune):
    code, out, _ = dtune("--datasets", "hopper-medium-v2", "--methods", "ppo", "odt", "--seeds", "1", "--threads", "4",
                         "--device", "cuda", "--dry-run")  # fmt: skip
    commands = [line for line in out.splitlines() if line.startswith(("dtune pretrain", "dtune finetune"))]
    assert code == 0
    assert len(commands) == 3
    assert all("--threads 4 --device cuda" in line for line in commands)


def test_a_device_that_is_not_here_is_refused_before_anything_begins(dtune, tmp_path, monkeypatch):
    monkeypatch.setenv("DTUNE_DATA", str(tmp_path / "home"))
    code, out, err = dtune("--datasets", "hopper-random-v2", "--scale", "small", "--device", "cuda:99")
    assert (code, out) == (2, "")
    assert "--device cuda:99 is GPU 99" in err
    assert os.listdir(tmp_path) == []  # nothing was recorded
    for where, device in (("--dry-run", "banana"), ("--ray=local:2", "cuda:1")):
        assert device in dtune("--datasets", "hopper-random-v2", "--device", device, where)[2]


def test_a_figure_with_other_datasets(dtune):
    code, out, _ = dtune("--figure", "2b", "--datasets", "hopper-random-v2", "--seeds", "1", "--dry-run")
    assert code == 0
    assert sum(line.startswith("dtune finetune grpo/hopper-random-v2 ") for line in out.splitlines()) == 2
    assert "--algorithm.shared-start False" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "say what to run"),
        (("--table", "2"), "--table 1"),
        (("--table", "1", "--figure", "1"), "two sweeps"),
        (("--figure", "5"), "--figure is one of 1, 2a"),
        (("--figure", "1", "--methods", "ppo"), "leave out --methods"),
        (("--table", "1", "--seeds", "0"), "--seeds must be at least 1"),
        (("--table", "1", "--jobs", "0"), "--jobs must be at least 1"),
        (("--table", "1", "--scale", "huge"), "--scale is paper or small"),
        (("--table", "1", "--minutes", "0"), "--minutes must be a finite number above 0"),
        (("--table", "1", "--minutes", "inf"), "--minutes must be a finite number above 0"),
        (("--table", "1", "--pretrainings", "0"), "--pretrainings must be at least 1"),
        (("--datasets", "hopper-random-v2", "--methods", "trpo", "--dry-run"), "there is no method 'trpo'"),
        (("--datasets", "hopper-random-v9", "--dry-run"), "hopper-random-v9"),
        (("--table", "1", "--data", "nowhere"), "nowhere is no folder"),
    ],
)
def test_what_cannot_be_is_refused(dtune, arguments, said):
    code, out, err = dtune(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_all_missing_data_are_told_before_anything_begins(dtune, tmp_path):
    code, out, err = dtune("--datasets", "hopper-medium-v2", "pen-human-v1")
    assert (code, out) == (3, "")
    assert "there are no files of hopper-medium-v2, pen-human-v1" in err


def test_data_are_found_in_a_folder_under_their_name_or_one_that_goes_on(dtune, tmp_path):
    for name in ("deep/hopper-medium-v2.standin.hdf5", "hopper-medium-replay-v2.hdf5"):
        (tmp_path / "stock" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "stock" / name).touch()
    code, out, _ = dtune("--datasets", "hopper-medium-v2", "hopper-medium-replay-v2", "--methods", "iql", "--data",
                         "stock", "--dry-run")  # fmt: skip
    assert code == 0
    assert (
        "iql/hopper-medium-v2 --scale paper --out runs/sweep/iql/hopper-medium-v2/paper/seed0 --data stock/deep/" in out
    )
    assert "--data stock/hopper-medium-replay-v2.hdf5" in out


def test_the_engine_is_ray_where_asked_for(dtune, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)  # not installed
    (tmp_path / "hopper-random-v2.hdf5").touch()
    monkeypatch.setattr(plans, "plan", lambda *_, **__: [planned("iql")])
    code, _, err = dtune("--datasets", "hopper-random-v2", "--data", ".", "--ray", "local:2")
    assert (code, err) == (2, "dtune: --ray needs the package ray: pip install 'dtune[ray]'\n")
    assert ConfigError.exit_code == 2
