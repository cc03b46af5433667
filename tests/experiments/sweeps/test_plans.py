"""Which runs a table or a figure is made of, and that each run's command says what its plan means."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dtune import cli
from dtune.envs.tasks import DATASETS
from dtune.errors import ConfigError
from dtune.experiments import run as runs
from dtune.experiments.presets import METHODS, finetuning, pretraining
from dtune.experiments.reports import results
from dtune.experiments.sweeps.estimates import MEGABYTES, SECONDS, Measured, estimate, paces
from dtune.experiments.sweeps.plans import FIGURES, HORIZON, TABLE_1, UNLIMITED, Budget, Curve, plan, settle

OUT = Path("out")


def made(datasets, curves, *, seeds=1, scale="small", **options):
    files = {name: Path(f"data/{name}.hdf5") for name in datasets}
    return plan(datasets, curves, seeds=seeds, scale=scale, out=OUT, files=files, **options)


TABLE = [Curve(method=method) for method in TABLE_1]


def test_table_1_is_306_runs_and_51_pretrainings():
    planned = made(list(DATASETS), TABLE, seeds=3, scale="paper")
    count = Counter(run.method for run in planned)
    assert count == {"pretrain": 51, **dict.fromkeys(TABLE_1, 51)}
    assert sum(count.values()) - 51 == 306
    assert len({run.key for run in planned}) == len(planned)
    assert {run.dataset for run in planned} == DATASETS.keys()
    assert [run.method for run in planned[:51]] == ["pretrain"] * 51  # before all that need them


def test_one_pretrained_policy_for_all_methods_of_a_seed():
    planned = {run.key: run for run in made(["hopper-random-v2"], TABLE, seeds=2)}
    assert len(planned) == 2 + 12
    for run in planned.values():
        seed = run.key.rpartition("seed")[2]
        before = f"pretrain/hopper-random-v2/small/seed{seed}"
        assert run.after == (None if run.method in ("pretrain", "iql") else before)
        if run.after:
            policy = run.arguments[run.arguments.index("--policy") + 1]
            assert policy == f"out/{before}/checkpoints/last"
        assert ("--data" in run.arguments) == (run.method in ("pretrain", "iql", "odt", "odt_td3"))


@pytest.fixture
def asked(monkeypatch):
    """What a command asks for, instead of doing it."""
    calls = []
    judged = {"eval/return": 1.0, "eval/return_std": 0.0, "eval/normalized_score": 1.0, "eval/length": 1.0}

    def note(*arguments, mirror=None):
        calls.append(arguments)
        return [judged]

    monkeypatch.setattr(runs, "pretrain_preset", note)
    monkeypatch.setattr(runs, "finetune_preset", note)
    return calls


BUDGET = Budget(minutes=3.0)


@pytest.mark.parametrize(
    ("curves", "scale", "budget"),
    [
        (TABLE, "paper", Budget()),
        ((Curve(method="q_guided"), *TABLE[3:]), "small", BUDGET),
        *((FIGURES[name].curves, "small", Budget()) for name in ("1", "2a", "2b", "2c", "2d", "2e", "4a", "4c", "4d")),
    ],
)
def test_a_command_says_what_is_meant(asked, capsys, curves, scale, budget):
    dataset = "door-human-v1"
    meant = dict(settle(curve, dataset, scale, budget) for curve in curves)
    planned = made([dataset], curves, seeds=2, scale=scale, budget=budget)
    for run in planned[1::2]:  # each once, of one seed or the other
        cli.main(run.arguments)
        config, folder, *given = asked.pop()
        seed = int(run.key[-1])
        assert folder == OUT / run.key
        if run.method == "pretrain":
            architecture = "reinformer" if "reinformer" in run.key else "dt"
            assert config == pretraining(dataset, scale, seed, architecture)
            assert given == [Path(f"data/{dataset}.hdf5")]
            continue
        assert config == replace(meant[run.key.split("/")[0]], seed=seed, threads=1)
        assert given[1] is None or given[1] == Path(f"data/{dataset}.hdf5")
        assert asked == []
    capsys.readouterr()


def names(figure: str, dataset: str, scale: str) -> list[str]:
    return [settle(curve, dataset, scale)[0] for curve in FIGURES[figure].curves]


def test_the_figures_of_the_paper():
    assert list(FIGURES) == ["1", "2a", "2b", "2c", "2d", "2e", "3", "4a", "4b", "4c", "4d"]
    ant = "ant-medium-v2"
    assert names("1", ant, "paper") == ["grpo", "grpo+relabel", "ppo", "ppo+relabel"]
    assert names("2b", ant, "paper") == ["grpo", "grpo+mixed"]
    assert names("2d", ant, "paper") == ["grpo", "grpo+uniform"]
    assert names("3", ant, "paper") == list(TABLE_1[1:])
    assert names("4a", ant, "paper") == ["grpo", "grpo+reinformer"]
    assert names("4b", ant, "paper") == ["grpo", "q_guided"]
    assert FIGURES["2a"].datasets == ("ant-medium-v2",)
    assert FIGURES["4b"].datasets == ("ant-medium-replay-v2",)


def test_the_fields_that_differ():
    ant = "ant-medium-v2"

    def changed(figure: str, index: int, scale: str = "paper") -> dict:
        _, config = settle(FIGURES[figure].curves[index], ant, scale)
        base = vars(finetuning("grpo", ant, scale).algorithm)
        return {name: value for name, value in vars(config.algorithm).items() if base[name] != value}

    assert changed("1", 1) == {"relabel": True}
    assert changed("2a", 1) == {"subtrajectory_length": 1000, "lookahead_length": 0, "reset_selection": "start"}
    assert changed("2b", 1) == {"shared_start": False}
    assert changed("2d", 1) == {"reset_selection": "uniform"}
    assert changed("2c", 0) == {}  # the page's own ratio
    assert changed("2c", 1)["update"].ratio == "token"
    assert changed("2e", 1)["update"].ratio == "geometric"
    assert [changed("4c", index) for index in range(1, 4)] == [{"subtrajectory_length": n} for n in (3, 50, 100)]
    assert [changed("4d", index) for index in range(1, 4)] == [{"lookahead_length": n} for n in (0, 30, 100)]


def test_a_variant_that_changes_nothing_is_the_preset():
    """At scale small GRPO-DT has a ratio an action already."""
    assert names("2c", "hopper-random-v2", "paper") == ["grpo", "grpo+token"]
    assert names("2c", "hopper-random-v2", "small") == ["grpo+sequence", "grpo"]
    assert names("2e", "hopper-random-v2", "small") == ["grpo+sequence", "grpo+geometric"]


def test_a_whole_episode_has_the_steps_of_its_task():
    curve = Curve(variant="full", changes={"algorithm.subtrajectory_length": HORIZON})
    for dataset, steps in (("door-human-v1", 200), ("pen-human-v1", 100), ("antmaze-umaze-v2", 700)):
        assert settle(curve, dataset, "paper")[1].algorithm.subtrajectory_length == steps


def test_a_field_that_a_method_lacks_is_refused():
    with pytest.raises(ConfigError, match="PPOConfig has no reset_selection"):
        settle(Curve(method="ppo", changes={"algorithm.reset_selection": "uniform"}), "ant-medium-v2", "paper")


def test_time_is_the_same_for_every_method_and_learning_rates_fit_it():
    for method in METHODS:
        _, config = settle(Curve(method=method), "hopper-random-v2", "small", Budget(minutes=10.0))
        if method == "dt":
            assert (config.iterations, config.time_limit) == (0, None)
            continue
        assert (config.iterations, config.time_limit) == (UNLIMITED, 600.0)
        assert config.evaluate_seconds == 60.0
    updates = settle(Curve(), "hopper-random-v2", "small", Budget(minutes=10.0))[1].algorithm.update.decay_updates
    assert updates == 16 * round(600 / SECONDS["small"]["grpo"])


def test_learning_rates_fall_over_the_iterations_that_a_measured_pace_leaves_time_for():
    pace = {("grpo", "hopper-random-v2"): 5.0, ("grpo+mixed", "hopper-random-v2"): 10.0}
    budget = Budget(minutes=10.0, pace=pace)
    plain, mixed = Curve(), Curve(variant="mixed", changes={"algorithm.shared_start": False})
    other = Curve(variant="uniform", changes={"algorithm.reset_selection": "uniform"})  # has no pace: the method's
    updates = [
        settle(curve, "hopper-random-v2", "small", budget)[1].algorithm.update.decay_updates
        for curve in (plain, mixed, other)
    ]
    assert updates == [16 * iterations for iterations in (120, 60, 120)]
    assert settle(Curve(method="dt"), "hopper-random-v2", "small", budget)[1].iterations == 0


def test_what_was_not_measured_is_not_guessed():
    budget = Budget(minutes=10.0, pace={("grpo", "hopper-random-v2"): 5.0})
    for method, dataset in (("ppo", "hopper-random-v2"), ("grpo", "ant-medium-v2")):
        with pytest.raises(ConfigError, match=f"no measured run of {method} on {dataset}: .* --iterations 10"):
            settle(Curve(method=method), dataset, "small", budget)


def test_pace_is_of_all_seeds_together():
    def record(method, seed, iterations, seconds):
        columns = {"iteration": np.array(iterations, float), "seconds": np.array(seconds, float)}
        return results.Curve(dataset="ant-medium-v2", method=method, seed=seed, columns=columns)

    records = [
        record("grpo", 0, [0, 2, 10], [0, 9, 20]),
        record("grpo", 1, [0, 5], [0, 25]),
        record("grpo+full", 0, [0, 4], [0, 60]),
        record("dt", 0, [0], [0]),  # judged only
        record("ppo", 0, [0, 4], [0, np.nan]),  # nothing measured
    ]
    assert paces(records) == {("grpo", "ant-medium-v2"): 3.0, ("grpo+full", "ant-medium-v2"): 15.0}


def test_like_takes_the_pace_of_a_folder_of_runs(capsys):
    folder = Path(__file__).parents[3] / "results" / "hopper-random"
    command = ["sweep", "--datasets", "hopper-random-v2", "--methods", "ppo", "--scale", "small", "--dry-run"]

    def decay(*options):
        cli.main([*command, *options])
        said = capsys.readouterr().out.split()
        return int(said[said.index("--algorithm.update.decay-updates") + 1])

    pace = paces(results.read_results(folder)[""])["ppo", "hopper-random-v2"]
    assert decay("--minutes", "2", "--like", str(folder)) == 20 * round(120 / pace)
    with pytest.raises(SystemExit, match="2"):
        cli.main([*command, "--like", str(folder)])
    assert "give --minutes" in capsys.readouterr().err


def test_a_clock_is_the_same_for_every_run():
    runs = plan(
        ["hopper-random-v2"], [Curve(), Curve(method="ppo")], seeds=1, scale="small", out=Path("runs"),
        files={"hopper-random-v2": Path("data.hdf5")}, budget=Budget(minutes=1.0, clock="processor"),
    )  # fmt: skip
    assert ["--clock processor" in run.command for run in runs] == [run.method != "pretrain" for run in runs]
    assert settle(Curve(), "hopper-random-v2", "small")[1].clock == "wall"


@pytest.mark.parametrize(("pretrainings", "firsts"), [(None, [0, 1, 2]), (1, [0, 0, 0]), (2, [0, 1, 0])])
def test_seeds_take_pretrained_policies_in_turn(pretrainings, firsts):
    runs = plan(
        ["hopper-random-v2"], [Curve()], seeds=3, scale="small", out=Path("runs"),
        files={"hopper-random-v2": Path("data.hdf5")}, pretrainings=pretrainings,
    )  # fmt: skip
    begun = [run for run in runs if run.method == "grpo"]
    assert [run.after for run in begun] == [f"pretrain/hopper-random-v2/small/seed{first}" for first in firsts]
    assert ["--seed 1" in run.command for run in begun] == [False, True, False]
    assert {run.key for run in runs if run.method == "pretrain"} == {run.after for run in begun}


def test_iterations_instead_of_the_presets():
    for method in METHODS:
        config = settle(Curve(method=method), "hopper-random-v2", "small", Budget(iterations=7))[1]
        assert (config.iterations, config.time_limit) == (0 if method == "dt" else 7, None)
    config = settle(Curve(), "hopper-random-v2", "small", Budget(iterations=7, minutes=1.0))[1]
    assert (config.iterations, config.time_limit, config.algorithm.update.decay_updates) == (
        7,
        60.0,
        7 * 16,
    )


# Estimates

RUN = ("grpo", "hopper-random-v2", "small", 100, None)


def test_what_was_measured_counts_before_what_is_stated():
    stated = estimate([RUN], [])
    assert stated.hours == pytest.approx(100 * SECONDS["small"]["grpo"] / 3600)
    assert stated.gigabytes == pytest.approx(MEGABYTES["small"]["grpo"] / 1000)
    assert stated.measured == 0
    others = [Measured("grpo", "ant-medium-v2", "small", 10, 50.0, 8.0)]
    assert estimate([RUN], others) == (pytest.approx(500 / 3600), pytest.approx(0.008), 1)
    own = Measured("grpo", "hopper-random-v2", "small", 30, 60.0, 4.0)
    assert estimate([RUN], [*others, own]) == (pytest.approx(200 / 3600), pytest.approx(0.004), 1)
    unlike = [Measured("ppo", "hopper-random-v2", "small", 1, 9e9, 9e9), own._replace(scale="paper", seconds=9e9)]
    assert estimate([RUN], unlike) == stated


def test_a_time_limit_bounds_the_estimate():
    assert estimate([(*RUN[:3], UNLIMITED, 60.0)] * 2, []).hours == pytest.approx(120 / 3600)
    assert estimate([(*RUN[:3], 0, None)], []).hours > 0  # judging takes its time, too


def test_there_is_an_estimate_for_everything():
    for scale in ("small", "paper"):
        assert SECONDS[scale].keys() == MEGABYTES[scale].keys() == METHODS.keys() | {"pretrain"}
