"""From run folders to records: what ran, on what, and its evaluations."""

import json
import shutil

import numpy as np
import pytest
from invented import curve

from dtune.errors import DataError
from dtune.experiments import methods, presets
from dtune.experiments.record import Record
from dtune.experiments.reports.collect import (
    Identity,
    collect,
    find_runs,
    identify,
    load,
    make_curve,
    trained_on,
    unlike_seeds,
    write_results,
)
from dtune.experiments.reports.report import report
from dtune.experiments.reports.results import LABELS, read_curve, write_curve

ROWS = {
    0: {"eval/return": 5.0, "eval/normalized_score": 0.5},
    1: {"train/ratio_max": 9.0, "count/env_steps": 10, "time/seconds": 1.0},
    2: {
        "train/ratio_max": 2.0, "eval/return": 7.0, "eval/normalized_score": 0.7, "count/env_steps": 20,
        "count/env_steps_lookahead": 15, "time/seconds": 2.5,
    },
    3: {"train/ratio_max": 3.0},
}  # fmt: skip


def make(folder, *, dataset="hopper-random-v2", method="grpo", seed=0, data="/data/x.hdf5", rows=ROWS, **config):
    """A run folder as training leaves it."""
    with Record(folder, tensorboard=False) as record:
        for iteration, row in rows.items():
            record.append(iteration, row)
    document = {"dataset": dataset, "seed": seed, "evaluate_every": 2, **config}
    (folder / "config.json").write_text(json.dumps(document))
    command = ["dtune", "finetune", f"{method}/{dataset}", "--scale", "small"]
    (folder / "meta.json").write_text(json.dumps({"begun": {"command": command, "dataset": data}}))
    return folder


def test_evaluations_become_a_record(tmp_path):
    make(tmp_path / "runs/grpo/hopper-random-v2/small/seed3", seed=3)
    (written,), left_out = write_results(tmp_path / "runs", tmp_path / "out")
    assert written.name == "hopper-random-v2_grpo_seed3.csv"
    assert not left_out
    found = read_curve(written)
    assert found.data == "x.hdf5"
    expected = {
        "iteration": [0, 2], "env_steps": [0, 20], "env_steps_lookahead": [0, 15], "seconds": [0, 2.5],
        "return": [5, 7], "normalized_score": [0.5, 0.7], "ratio_max": [np.nan, 2], "ratio_peak": [np.nan, 9],
    }  # fmt: skip
    for name, values in expected.items():
        np.testing.assert_array_equal(found.column(name), np.array(values, float), err_msg=name)
    assert found.columns.keys() == expected.keys()  # what was never counted is no column of zeros


@pytest.mark.parametrize(
    ("place", "method", "expected"),
    [
        ("grpo/hopper-random-v2/small/seed0", "grpo", "grpo"),
        ("grpo+relabel/hopper-random-v2/small/seed0", "grpo", "grpo+relabel"),
        ("wide", "ppo", "ppo"),  # --out of one's own: the command says the method
        ("grpo/notes/wide", "ppo", "ppo"),
        ("demo/hopper-random-v2/seed0/odt_td3", "odt_td3", "odt_td3"),
        ("hopper-random-v2_iql+wide_seed0", "ppo", "iql+wide"),
        ("q_guided+slow/x", "", "q_guided+slow"),
        ("nothing", "", None),
    ],
)
def test_the_method_is_told_by_folder_and_command(tmp_path, place, method, expected):
    who = identify(make(tmp_path / place, method=method))
    assert (who and who.method) == expected


def test_a_reinformer_is_a_variant(tmp_path):
    folder = make(tmp_path / "grpo/hopper-random-v2/small-reinformer/seed0")
    (folder / "checkpoints/last").mkdir(parents=True)
    (folder / "checkpoints/last/policy.json").write_text('{"kind": "Reinformer"}')
    who = identify(folder)
    assert who
    assert who.method == "grpo+reinformer"


def test_pretrainings_and_runs_not_judged_are_left_out(tmp_path):
    whole = make(tmp_path / "grpo/a")
    begun = make(tmp_path / "ppo/a", method="ppo", rows={1: {"train/kl": 1.0}})
    pretraining = make(tmp_path / "pretrain/a", method="grpo")
    (pretraining / "config.json").write_text('{"dataset": "hopper-random-v2", "seed": 0, "random_episodes": 5}')
    found, left_out = collect(tmp_path)
    assert list(found) == [whole]
    assert left_out == [begun, pretraining] or left_out == [pretraining, begun]
    with pytest.raises(DataError, match="no finetuning run"):
        write_results(pretraining, tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "whole"),
    [
        ({"iterations": 3}, True),
        ({"iterations": 4}, False),
        ({"iterations": 4, "time_limit": 2.5}, True),
        ({"iterations": 4, "time_limit": 2.6}, False),
        ({"iterations": 4, "time_limit": None}, False),
    ],
)
def test_runs_not_finished_are_no_records_and_named_in_a_report(tmp_path, settings, whole):
    folder = make(tmp_path / "grpo/a", **settings)
    make(tmp_path / "ppo/a", method="ppo")
    assert collect(tmp_path)[0][folder].finished == whole
    written, left_out = write_results(tmp_path, tmp_path / "out")
    assert len(written) == 1 + whole
    assert left_out == ([] if whole else [folder])
    (scores, *_) = report(load(tmp_path / "grpo")[""], ["grpo"])
    assert ("Not finished: GRPO-DT on hopper-random-v2 (seed 0)." in scores.notes) != whole


def test_seeds_with_other_settings_are_pointed_out(tmp_path):
    folders = [make(tmp_path / f"grpo/{seed}", seed=seed, threads=seed, iterations=3) for seed in range(2)]
    folders.append(make(tmp_path / "ppo/2", method="ppo", iterations=2))
    assert list(unlike_seeds(collect(tmp_path)[0])) == []
    other = make(tmp_path / "grpo/2", seed=2, iterations=2)
    for tell in (lambda say: write_results(tmp_path, tmp_path / "out", say=say), lambda say: load(tmp_path, say=say)):
        said = []
        tell(said.append)
        assert said == [f"{other} has not the settings of {folders[0]}: iterations: 3 -> 2"]
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


def test_two_runs_of_one_name_are_refused_unless_one_scale_is_taken(tmp_path):
    for scale, seed in (("small", 0), ("paper", 0), ("small-reinformer", 1)):
        make(tmp_path / "grpo/hopper-random-v2" / scale / f"seed{seed}", seed=seed)
    with pytest.raises(DataError, match=r"METHOD\+VARIANT"):
        collect(tmp_path)
    assert sorted(one.seed for one in collect(tmp_path, only="small")[0].values()) == [0, 1]


def test_the_data_of_a_policy_are_those_it_was_pretrained_on(tmp_path):
    before = make(tmp_path / "pretrain", data="/far/hopper_random-v2.hdf5")
    (before / "checkpoints/last").mkdir(parents=True)
    after = make(tmp_path / "grpo", data=str(before / "checkpoints/last"))
    assert trained_on(after) == "hopper_random-v2.hdf5"
    assert trained_on(make(tmp_path / "lost", data="/nowhere/checkpoints/last")) == ""


def test_records_come_before_run_folders(tmp_path):
    make(tmp_path / "grpo/a")
    assert [one.seed for one in load(tmp_path)[""]] == [0]
    write_curve(curve(seed=5), tmp_path)
    assert [one.seed for one in load(tmp_path)[""]] == [5]
    for nothing in (tmp_path / "empty", tmp_path / "nowhere"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match="no records"):
            load(nothing)


def test_folders_are_found_in_order(tmp_path):
    for name in ("b", "a"):
        make(tmp_path / name)
    assert [folder.name for folder in find_runs(tmp_path)] == ["a", "b"]


def test_a_run_that_does_not_learn_begins_at_zero():
    one = make_curve(Identity("pen-human-v1", "dt", 0), [{"iteration": 0, "eval/return": 1.0}], "")
    assert one.column("env_steps").tolist() == [0.0]
    assert one.column("seconds").tolist() == [0.0]


def test_every_method_there_is_has_its_label():
    assert set(LABELS.values()) == {method.name for method in methods.ALGORITHMS.values()}
    assert set(LABELS) == set(presets.METHODS)


def test_the_largest_ratio_is_that_since_the_evaluation_before():
    ratios = {1: 9.0, 2: 2.0, 3: 3.0, 4: 1.5}
    rows = [{"iteration": 0, "eval/return": 1.0}]
    rows += [
        {"iteration": i, "train/ratio_max": r} | ({} if i % 2 else {"eval/return": 1.0}) for i, r in ratios.items()
    ]
    one = make_curve(Identity("pen-human-v1", "grpo", 0), rows, "")
    np.testing.assert_array_equal(one.column("ratio_peak"), [np.nan, 9, 3])
    np.testing.assert_array_equal(one.column("ratio_max"), [np.nan, 2, 1.5])
