import contextlib
import math
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pointmass import PointMass, TinyPolicy

from dtune.algorithms.grpo import GRPO, GRPOConfig
from dtune.algorithms.ppo import PPO, PPOConfig
from dtune.errors import ConfigError, NumericError
from dtune.experiments import checkpoint, disk
from dtune.experiments.evaluation import Evaluation
from dtune.experiments.loop import Schedule, train
from dtune.experiments.record import read_rows
from dtune.experiments.signals import Stopped

GRPO_CONFIG = GRPOConfig(
    return_to_go=-3.0,
    replay_capacity=2,
    reset_trajectories=2,
    reset_points=1,
    group_size=3,
    subtrajectory_length=3,
    lookahead_length=2,
    return_margin=0.0,
    subtrajectory_capacity=12,
    batch_size=6,
)
PPO_CONFIG = PPOConfig(
    return_to_go=-3.0, episodes_per_iteration=2, replay_capacity=4, batch_size=8, updates_per_iteration=2
)


def make(kind: str, *, seed: int = 0) -> GRPO | PPO:
    generator = torch.Generator().manual_seed(seed)
    if kind == "grpo":
        return GRPO(TinyPolicy(width=8), GRPO_CONFIG, generator)
    return PPO(TinyPolicy(width=8), PPO_CONFIG, generator)


def run(
    directory: Path | None = None,
    kind: str = "grpo",
    *,
    iterations: int = 6,
    evaluate_every: int = 3,
    checkpoint_every: int = 2,
    algorithm: Any = None,
    evaluation: Evaluation | None = None,
    **options: Any,
) -> list[dict[str, float]]:
    return train(
        make(kind) if algorithm is None else algorithm,
        PointMass(),
        Schedule(iterations=iterations, evaluate_every=evaluate_every, checkpoint_every=checkpoint_every),
        evaluation=evaluation or Evaluation(simulator=PointMass(), return_to_go=-3.0, episodes=3),
        directory=directory,
        **{"quiet": True, **options},
    )


def contents(directory: Path) -> dict[str, bytes]:
    """The record and the state at the end, byte for byte."""
    files = [directory / "metrics.csv", *sorted((directory / "checkpoints" / "last").iterdir())]
    best = directory / "checkpoints" / "best" / "policy.safetensors"
    return {path.name: path.read_bytes() for path in files} | {"best": best.read_bytes()}


def link(directory: Path, name: str) -> str:
    return os.readlink(directory / "checkpoints" / name)


class Interrupting:
    """An algorithm to whose iterations something happens."""

    def __init__(self, happens: Callable[[int, Any], None], kind: str = "grpo"):
        self.inner, self.happens = make(kind), happens
        self.policy = self.inner.policy

    def iterate(self, simulator: Any) -> dict[str, float]:
        metrics = self.inner.iterate(simulator)
        self.happens(self.inner.iteration, self)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self.inner.load_state_dict(state)


# Rows


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_a_row_an_iteration_judged_first_last_and_in_between(tmp_path, kind):
    rows = run(tmp_path, kind, iterations=5, evaluate_every=2)
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert [row["iteration"] for row in rows if "eval/return" in row] == [0, 2, 4, 5]
    assert {key for key in rows[0] if not key.startswith("eval/")} == {"iteration"}  # nothing was learned yet
    assert {"train/surrogate", "count/env_steps", "count/gradient_steps"} <= rows[1].keys()
    assert rows == read_rows(tmp_path / "metrics.csv")
    timing = read_rows(tmp_path / "timing.csv")
    assert [row["iteration"] for row in timing] == [0, 1, 2, 3, 4, 5]
    timing = timing[1:]
    seconds = [row["time/seconds"] for row in timing]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    assert all(row["time/env_steps_per_second"] > 0 for row in timing)


def test_without_a_folder_the_same_rows_and_nothing_on_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = run(tmp_path / "run")
    exact = [{key: value for key, value in row.items() if not key.startswith("time/")} for row in run()]
    assert exact == kept
    assert os.listdir(tmp_path) == ["run"]


def test_an_evaluation_is_of_mean_actions_from_the_same_starts():
    policy = TinyPolicy()
    judge = Evaluation(simulator=PointMass(), return_to_go=-3.0, episodes=4)
    torch.manual_seed(1)
    first = judge(policy)
    torch.manual_seed(2)
    assert judge(policy) == first
    with torch.no_grad():
        policy.head.bias[2:] += 0.5  # of the deviations
    assert judge(policy) == first
    assert first["eval/length"] == 20
    assert first["eval/return_std"] > 0  # four different starts
    assert judge(TinyPolicy(seed=1)) != first
    assert "eval/normalized_score" not in first
    scored = replace(judge, task="hopper-medium-v2")(policy)
    expected = 100 * (first["eval/return"] + 20.272305) / (3234.3 + 20.272305)
    assert scored["eval/normalized_score"] == pytest.approx(expected)
    expected = 100 * first["eval/return_std"] / (3234.3 + 20.272305)
    assert scored["eval/normalized_score_std"] == pytest.approx(expected)
    assert "eval/success" not in scored  # a Hopper is never done
    assert replace(judge, task="antmaze-umaze")(policy)["eval/success"] == 0.0  # never more than half a reward a step


def test_an_evaluation_with_broken_numbers_stops_the_run(tmp_path):
    broken = Evaluation(simulator=PointMass(faults={1: 4}), return_to_go=-3.0, episodes=3)
    with pytest.raises(NumericError, match="1 of 3 evaluation episodes"):
        run(tmp_path, evaluation=broken)


def test_an_evaluation_changes_nothing_but_its_columns(tmp_path):
    often = run(tmp_path / "often", evaluate_every=1)
    seldom = run(tmp_path / "seldom", evaluate_every=100)
    assert [{k: v for k, v in row.items() if not k.startswith("eval/")} for row in often[1:]] == [
        {k: v for k, v in row.items() if not k.startswith("eval/")} for row in seldom[1:]
    ]


@pytest.mark.parametrize(
    ("field", "value"), [("iterations", -1), ("evaluate_every", 0), ("checkpoint_every", 0), ("checkpoint_every", -2)]
)
def test_an_impossible_schedule_is_refused(field, value):
    with pytest.raises(ConfigError, match=rf"{field}.*got {value}"):
        Schedule(**{"iterations": 1, field: value})


def test_no_iterations_only_judge(tmp_path):
    rows = run(tmp_path, iterations=0)
    assert len(rows) == 1
    assert "eval/return" in rows[0]
    assert link(tmp_path, "last") == "iteration_000000"


# Checkpoints


def judged(returns: dict[int, float], monkeypatch) -> None:
    """Evaluations say what the test wants: the n-th call `returns[n]`."""
    calls = iter(returns.values())
    monkeypatch.setattr(Evaluation, "__call__", lambda self, policy: {"eval/return": next(calls)})


def test_best_is_the_best_judged_and_last_the_last(tmp_path, monkeypatch):
    judged({0: 1.0, 3: 5.0, 6: 2.0, 7: 5.0}, monkeypatch)
    run(tmp_path, iterations=7)
    assert (link(tmp_path, "best"), link(tmp_path, "last")) == ("iteration_000003", "iteration_000007")
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"best", "last", "iteration_000003", "iteration_000006", "iteration_000007"}
    state = checkpoint.load(tmp_path / "checkpoints" / "last")
    assert state["progress"] == {"iteration": 7, "best": 5.0, "best_iteration": 3}


def test_best_may_be_the_start_or_the_end(tmp_path, monkeypatch):
    judged({0: 9.0, 3: 5.0, 6: 2.0}, monkeypatch)
    run(tmp_path / "start")
    assert link(tmp_path / "start", "best") == "iteration_000000"
    judged({0: 0.0, 3: 5.0, 6: 6.0}, monkeypatch)
    run(tmp_path / "end")
    assert link(tmp_path / "end", "best") == "iteration_000006"


def test_a_start_that_does_not_count_is_judged_and_never_the_best(tmp_path, monkeypatch):
    schedule = Schedule(iterations=2, evaluate_every=2, start_counts=False)
    evaluation = Evaluation(simulator=PointMass(), return_to_go=-3.0, episodes=3)
    judged({0: 9.0, 2: 5.0}, monkeypatch)
    rows = train(make("grpo"), PointMass(), schedule, evaluation=evaluation, directory=tmp_path, quiet=True)
    assert [row.get("eval/return") for row in rows] == [9.0, None, 5.0]
    assert link(tmp_path, "best") == "iteration_000002"


def test_best_is_remembered_by_a_run_that_continues(tmp_path, monkeypatch):
    judged({0: 1.0, 3: 5.0}, monkeypatch)
    run(tmp_path, iterations=3)
    judged({6: 4.0}, monkeypatch)
    run(tmp_path, iterations=6)
    assert link(tmp_path, "best") == "iteration_000003"
    assert read_rows(tmp_path / "metrics.csv")[3]["eval/return"] == 5.0


def test_what_was_never_judged_has_no_best(tmp_path):
    schedule = Schedule(iterations=3, checkpoint_every=1)
    train(make("grpo"), PointMass(), schedule, directory=tmp_path, quiet=True)
    assert not (tmp_path / "checkpoints" / "best").exists()
    assert link(tmp_path, "last") == "iteration_000003"


def test_checkpoints_hold_the_documents_and_the_policy_alone(tmp_path):
    algorithm = make("grpo")
    run(tmp_path, algorithm=algorithm, documents={"policy.json": {"kind": "Tiny"}})
    last = tmp_path / "checkpoints" / "last"
    assert (last / "policy.json").read_text().split() == ["{", '"kind":', '"Tiny"', "}"]
    saved = checkpoint.load(last)["algorithm"]["policy"]
    assert all(torch.equal(saved[name], value) for name, value in algorithm.policy.state_dict().items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_parameter_that_is_not_finite_stops_the_run_and_is_not_saved(tmp_path, value):
    def poison(iteration: int, algorithm: Interrupting) -> None:
        if iteration == 4:
            with torch.no_grad():
                algorithm.policy.head.bias[1] = value

    with pytest.raises(NumericError, match=r"head\.bias.*iteration 4.*last checkpoint is intact"):
        run(tmp_path, algorithm=Interrupting(poison), checkpoint_every=1)
    found = checkpoint.load_last(tmp_path)
    assert found is not None
    assert (found.iteration, found.warning) == (3, None)
    assert all(tensor.isfinite().all() for tensor in found.state["algorithm"]["policy"].values())
    assert [row["iteration"] for row in read_rows(tmp_path / "metrics.csv")] == [0, 1, 2, 3]
    run(tmp_path, checkpoint_every=1)  # and goes on without the poison
    run(tmp_path.with_name("undisturbed"), checkpoint_every=1)
    assert contents(tmp_path) == contents(tmp_path.with_name("undisturbed"))


# Resuming is never having been interrupted


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    found = {}
    for kind in ("grpo", "ppo"):
        directory = tmp_path_factory.mktemp(kind)
        run(directory, kind)
        found[kind] = contents(directory)
    return found


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_the_same_seed_gives_the_same_bytes(tmp_path, undisturbed, kind):
    run(tmp_path / "again", kind)
    assert contents(tmp_path / "again") == undisturbed[kind]
    run(tmp_path / "other", kind, algorithm=make(kind, seed=1))
    assert contents(tmp_path / "other")["metrics.csv"] != undisturbed[kind]["metrics.csv"]


class Killed(BaseException):
    """Stands for SIGKILL: no `except Exception` catches it."""


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_killed_while_iterating(tmp_path, undisturbed, kind):
    for moment in (1, 4, 5):

        def kill(iteration: int, algorithm: Interrupting, moment: int = moment) -> None:
            if iteration == moment:
                raise Killed

        directory = tmp_path / str(moment)
        with pytest.raises(Killed):
            run(directory, kind, algorithm=Interrupting(kill, kind))
        run(directory, kind)
        assert contents(directory) == undisturbed[kind], moment


@pytest.mark.parametrize(
    ("kind", "stride"),
    [("grpo", 13), pytest.param("grpo", 1, marks=pytest.mark.slow), pytest.param("ppo", 2, marks=pytest.mark.slow)],
)
def test_killed_at_any_change_of_the_disk(tmp_path, undisturbed, kind, stride, monkeypatch):
    reached = 0
    for moment in range(1, 1000, stride):
        directory, left = tmp_path / str(moment), [moment]
        with monkeypatch.context() as patch:
            for name in ("fsync", "rename", "replace", "symlink", "mkdir"):
                patch.setattr(os, name, dying(getattr(os, name), left))
            patch.setattr(disk, "write", dying(disk.write, left))
            with contextlib.suppress(Killed):
                run(directory, kind, quiet=True)
        run(directory, kind)
        assert contents(directory) == undisturbed[kind], moment
        if left[0] > 0:
            break
        reached += 1
    assert reached * stride > 100  # it did die, in many places


def dying(function: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise Killed
        return function(*arguments, **options)

    return call


def test_more_iterations_continue(tmp_path, undisturbed):
    run(tmp_path, iterations=3)
    rows = run(tmp_path, iterations=6)
    assert contents(tmp_path) == undisturbed["grpo"]
    assert len(rows) == 7


def test_a_finished_run_does_nothing_again(tmp_path, undisturbed):
    run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    algorithm = make("grpo")
    rows = run(tmp_path, algorithm=algorithm)
    assert len(rows) == 7
    assert algorithm.iteration == 6  # the policy is the finished one
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before
    assert contents(tmp_path) == undisturbed["grpo"]


def test_a_damaged_last_checkpoint_is_told_and_gone_back_from(tmp_path, undisturbed, capsys):
    run(tmp_path)
    path = tmp_path / "checkpoints" / "last" / "tensors.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    run(tmp_path, quiet=False)
    said = capsys.readouterr().out
    assert "tensors.safetensors does not have the hash" in said
    assert "Continuing from iteration_000004 instead" in said
    assert contents(tmp_path) == undisturbed["grpo"]
    run(tmp_path, quiet=False)
    assert "hash" not in capsys.readouterr().out


def test_continuing_is_told(tmp_path, capsys):
    run(tmp_path, iterations=4)
    run(tmp_path, quiet=False)
    assert "continuing after iteration 4 of 6" in capsys.readouterr().out


def test_another_algorithm_or_policy_does_not_continue(tmp_path):
    run(tmp_path, "grpo")
    before = contents(tmp_path)
    for stranger in (make("ppo"), GRPO(TinyPolicy(width=16), GRPO_CONFIG)):
        with pytest.raises(ConfigError, match=r"iteration_000006.*another algorithm or policy.*another folder"):
            run(tmp_path, algorithm=stranger)
    assert contents(tmp_path) == before


# Signals


@pytest.mark.parametrize(
    ("number", "name", "code"),
    [(signal.SIGTERM, "SIGTERM", 75), (signal.SIGUSR1, "SIGUSR1", 75), (signal.SIGINT, "Ctrl-C", 130)],
)
@pytest.mark.parametrize("moment", [1, 3, 6])
def test_a_signal_stops_after_the_iteration_with_the_state_saved(tmp_path, undisturbed, number, name, code, moment):
    def strike(iteration: int, algorithm: Interrupting) -> None:
        if iteration == moment:
            os.kill(os.getpid(), number)

    with pytest.raises(Stopped, match=rf"{name} after iteration {moment}: saved; the same command") as caught:
        run(tmp_path, algorithm=Interrupting(strike))
    assert caught.value.exit_code == code
    assert link(tmp_path, "last") == f"iteration_{moment:06d}"
    run(tmp_path)
    assert contents(tmp_path) == undisturbed["grpo"]


def test_a_signal_before_the_first_iteration_is_heard(tmp_path, monkeypatch):
    evaluate = Evaluation.__call__

    def strike(self, policy):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, policy)

    monkeypatch.setattr(Evaluation, "__call__", strike)
    with pytest.raises(Stopped, match="after iteration 0"):
        run(tmp_path)
    assert len(read_rows(tmp_path / "metrics.csv")) == 1


def test_the_second_ctrl_c_does_not_wait(tmp_path):
    def strike(iteration: int, algorithm: Interrupting) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, algorithm=Interrupting(strike))
    found = checkpoint.load_last(tmp_path)
    assert found is not None
    assert found.iteration == 0


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run(iterations=1)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_it_runs_in_another_thread():
    rows: list[Any] = []
    thread = threading.Thread(target=lambda: rows.extend(run(iterations=1)))
    thread.start()
    thread.join()
    assert len(rows) == 2
