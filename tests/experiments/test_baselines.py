"""The methods the paper compares with: their published numbers, typed a second time, and their presets run."""

import os
from dataclasses import replace

import pytest
import torch

from dtune.data.hdf5 import write_hdf5
from dtune.envs.tasks import DATASETS
from dtune.errors import ConfigError, DataError
from dtune.experiments import baselines, run
from dtune.experiments.policies import load_policy, read_about
from dtune.experiments.presets import FinetuneConfig, finetuning, pretraining
from dtune.experiments.record import read_rows
from dtune.models.perceptron_policy import PerceptronPolicy

pytestmark = pytest.mark.usefixtures("one_thread")

TABLE_9 = {  # T_train, T_eval, RTG of evaluations and online, learning rate, weight decay, pretraining steps, buffer
    "hopper": (20, 5, 3600, 7200, 1e-4, 5e-4, 5000, 1000),
    "walker2d": (20, 5, 5000, 10000, 1e-3, 1e-3, 10_000, 1000),
    "ant": (20, 1, 6000, 12000, 1e-3, 1e-4, 5000, 1000),
    "pen": (5, 1, 12000, 12000, 1e-4, 1e-4, 40_000, 5000),
    "hammer": (5, 5, 16000, 16000, 1e-4, 1e-4, 40_000, 5000),
    "door": (5, 1, 4000, 4000, 1e-4, 1e-4, 40_000, 5000),
    "antmaze-umaze": (5, 1, 1, 2, 1e-4, 1e-4, 40_000, 2000),
    "antmaze-umaze-diverse": (5, 1, 1, 2, 1e-4, 1e-4, 40_000, 2000),
}


@pytest.mark.parametrize("dataset", DATASETS)
def test_odt_as_yan_et_al_ran_it(dataset):
    config, task = baselines.odt(dataset), DATASETS[dataset]
    update = config.update
    assert TABLE_9[task] == (
        update.context_length, config.context_length, config.return_to_go, config.online_return_to_go,
        update.learning_rate, update.weight_decay, config.pretraining_updates, config.replay_capacity,
    )  # fmt: skip
    assert (update.updates_per_iteration, update.batch_size, update.grad_norm_clip) == (300, 256, 0.25)
    quick = "random" in dataset or task not in ("hopper", "walker2d", "ant")
    assert config.min_steps == (1000 if quick else 0)
    judged = baselines.pretrained(dataset)
    assert (judged.return_to_go, judged.context_length) == (config.return_to_go, config.context_length)


@pytest.mark.parametrize("dataset", DATASETS)
def test_iql_as_its_authors_ran_it(dataset):
    config, task = baselines.iql(dataset), DATASETS[dataset]
    locomotion, maze = task in ("hopper", "walker2d", "ant"), task.startswith("antmaze")
    assert config.expectile == (0.9 if maze else 0.7)
    assert config.inverse_temperature == (3.0 if locomotion else 10.0 if maze else 0.5)
    assert config.dropout == (0.0 if locomotion or maze else 0.1)
    assert config.reward_scaling == ("both" if task in ("hopper", "walker2d") else "none")
    assert config.reward_shift == (-1.0 if maze else 0.0)
    assert config.pretraining_updates == TABLE_9[task][6]


def test_the_small_odt_goes_on_from_the_small_pretraining():
    before, config = pretraining("hopper-random-v2", "small"), finetuning("odt", "hopper-random-v2", "small").algorithm
    assert config.pretraining_updates == before.algorithm.warmup_updates  # no second warm-up
    assert before.iterations * before.algorithm.updates_per_iteration > before.algorithm.warmup_updates
    assert config.update.optimizer == before.algorithm.optimizer
    assert config.update.learning_rate == before.algorithm.learning_rate


def tiny(method: str, **changes) -> FinetuneConfig:
    preset = finetuning(method, "hopper-random-v2", "small")
    small = {
        "odt": lambda c: replace(
            c, min_steps=30, replay_capacity=3, update=replace(c.update, updates_per_iteration=2, batch_size=4)
        ),
        "iql": lambda c: replace(c, width=8, batch_size=4, min_steps=5, pretraining_updates=3, replay_capacity=10_000),
        "dt": lambda c: c,
    }[method]
    own = {"algorithm": small(preset.algorithm), "iterations": 2, "evaluation_episodes": 2, "evaluate_every": 1}
    return replace(preset, **{**own, **changes})


@pytest.fixture
def data(tmp_path):
    """Three episodes of 4 steps."""
    generator, last = torch.Generator().manual_seed(0), torch.arange(12) % 4 == 3
    columns = {
        "observations": torch.randn(12, 11, generator=generator),
        "actions": torch.rand(12, 3, generator=generator) * 2 - 1,
        "rewards": torch.randn(12, generator=generator),
        "terminals": last,
        "timeouts": torch.zeros(12, dtype=torch.bool),
    }
    write_hdf5(tmp_path / "data.hdf5", columns)
    return tmp_path / "data.hdf5"


@pytest.mark.parametrize(("method", "own"), [("odt", False), ("iql", True)])
def test_a_baseline_makes_a_run_that_goes_on_and_can_be_evaluated(method, own, pretrained, data, tmp_path):
    start = None if own else pretrained
    run.finetune_preset(tiny(method, iterations=1), tmp_path / "run", start, data)
    rows = run.finetune_preset(tiny(method), tmp_path / "run", start, data)
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    at_once = run.finetune_preset(tiny(method), tmp_path / "at once", start, data)
    assert read_rows(tmp_path / "at once" / "metrics.csv") == read_rows(tmp_path / "run" / "metrics.csv")
    assert rows[-1]["eval/return"] == at_once[-1]["eval/return"]
    judged = run.evaluate(tmp_path / "run" / "checkpoints" / "last", episodes=2)
    assert judged["eval/return"] == rows[-1]["eval/return"]
    assert read_about(tmp_path / "run")["return_to_go"] == tiny(method).algorithm.return_to_go
    assert isinstance(load_policy(tmp_path / "run"), PerceptronPolicy) == own


def test_dt_is_the_pretrained_policy_judged(pretrained, tmp_path):
    preset = replace(finetuning("dt", "hopper-random-v2", "paper"), evaluation_episodes=2)
    rows = run.finetune_preset(preset, tmp_path / "run", pretrained)
    assert [row["iteration"] for row in rows] == [0]
    judged = run.evaluate(tmp_path / "run", episodes=2)
    assert (judged["return_to_go"], judged["context_length"]) == (3600.0, 5)
    assert judged["eval/return"] == rows[0]["eval/return"]
    before, after = load_policy(pretrained).state_dict(), load_policy(tmp_path / "run").state_dict()
    assert all(before[name].equal(after[name]) for name in before)
    assert "eval/return" in run.finetune_preset(replace(preset, iterations=2), tmp_path / "on", pretrained)[-1]


@pytest.mark.parametrize(
    ("method", "with_policy", "with_data", "error", "said"),
    [
        ("odt", True, False, ConfigError, "ODT goes on learning from the offline data: say where they are"),
        ("odt", False, True, ConfigError, "ODT improves a pretrained policy: say where it is"),
        ("iql", True, True, ConfigError, "IQL begins with a policy of its own: leave out the one at"),
        ("iql", False, False, ConfigError, "IQL goes on learning from the offline data"),
    ],
)
def test_what_a_method_needs_or_cannot_use(method, with_policy, with_data, error, said, pretrained, data, tmp_path):
    given = (pretrained if with_policy else None, data if with_data else None)
    with pytest.raises(error, match=said):
        run.finetune_preset(tiny(method), tmp_path / "run", *given)
    assert os.listdir(tmp_path / "run") == [".lock"]


def test_data_of_another_task_leave_no_run_behind(data, tmp_path):
    config = replace(tiny("iql"), dataset="walker2d-random-v2")
    with pytest.raises(DataError, match=r"data\.hdf5 has observations of 11"):
        run.finetune_preset(config, tmp_path / "run", None, data)
    assert os.listdir(tmp_path / "run") == [".lock"]
