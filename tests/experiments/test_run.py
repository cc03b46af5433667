import json
import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tiny
import torch
from pointmass import PointMass, TinyPolicy

from dtune.algorithms.grpo import GRPO, GRPOConfig
from dtune.algorithms.ppo import PPO, PPOConfig
from dtune.cli import main
from dtune.data.hdf5 import read_hdf5, write_hdf5
from dtune.envs.sources import SOURCES
from dtune.envs.tasks import make_simulator
from dtune.errors import ConfigError, DataError
from dtune.experiments import checkpoint, run
from dtune.experiments.folder import locked
from dtune.experiments.policies import describe, find_checkpoint, load_policy, load_weights, read_about
from dtune.experiments.presets import ModelConfig, finetuning, pretraining
from dtune.experiments.record import read_rows
from dtune.experiments.reports.collect import collect
from dtune.models.decision_transformer import DecisionTransformer, DecisionTransformerConfig
from dtune.models.reinformer import Reinformer

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny_grpo(**changes: Any) -> GRPOConfig:
    small = {
        "replay_capacity": 2, "reset_trajectories": 2, "reset_points": 1, "group_size": 3, "subtrajectory_length": 3,
        "lookahead_length": 2, "return_margin": 0.0, "subtrajectory_capacity": 12, "batch_size": 6,
    }  # fmt: skip
    return GRPOConfig(**{"return_to_go": 7200.0, **small, **changes})


def tiny_finetuning(dataset: str = "hopper-random-v2", **changes: Any):
    preset = finetuning("grpo", dataset, "small")
    small = {"algorithm": tiny_grpo(), "iterations": 2, "evaluation_episodes": 2, "evaluate_every": 1}
    return replace(preset, **{**small, **changes})


def tiny_pretraining(dataset: str = "hopper-random-v2", **changes: Any):
    preset = pretraining(dataset, "small")
    algorithm = replace(preset.algorithm, updates_per_iteration=2, batch_size=4)
    small = {"model": ModelConfig(layers=1, heads=1, width=8), "algorithm": algorithm, "iterations": 1}
    return replace(preset, **{**small, "evaluation_episodes": 2, "random_episodes": 3, **changes})


def columns(observation_dim: int = 11, action_dim: int = 3) -> dict[str, torch.Tensor]:
    """Three episodes of 4 steps."""
    generator = torch.Generator().manual_seed(0)
    last = torch.arange(12) % 4 == 3
    return {
        "observations": torch.randn(12, observation_dim, generator=generator),
        "actions": torch.rand(12, action_dim, generator=generator) * 2 - 1,
        "rewards": torch.randn(12, generator=generator),
        "terminals": last,
        "timeouts": torch.zeros(12, dtype=torch.bool),
    }


@pytest.fixture
def data(tmp_path) -> Path:
    write_hdf5(tmp_path / "data.hdf5", columns())
    return tmp_path / "data.hdf5"


# Finding a policy


@pytest.mark.parametrize(
    "place", ["", "checkpoints", "checkpoints/best", "checkpoints/last", "checkpoints/iteration_*"]
)
def test_a_policy_is_found_in_a_run_a_checkpoint_and_behind_a_link(pretrained, place):
    path = next(pretrained.glob(place)) if place else pretrained
    policy = load_policy(path)
    assert isinstance(policy, DecisionTransformer)
    assert (policy.config.observation_dim, policy.config.width, policy.context_length) == (11, 16, 20)
    assert not policy.training
    saved = safetensors.torch.load_file(find_checkpoint(path) / "policy.safetensors")
    assert saved.keys() == policy.state_dict().keys()
    assert all(torch.equal(saved[name], value) for name, value in policy.state_dict().items())
    assert policy.observation_std.min() > 0
    assert not policy.observation_mean.eq(0).all()
    assert read_about(path) == {"dataset": "hopper-random-v2", "return_to_go": 7200.0, "seed": 0}


def test_a_run_folder_means_its_best_and_its_last_where_nothing_was_judged(pretrained, tmp_path):
    assert find_checkpoint(pretrained) == pretrained / "checkpoints" / "best"
    shutil.copytree(pretrained, tmp_path / "run", symlinks=True)
    (tmp_path / "run" / "checkpoints" / "best").unlink()
    assert find_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoints" / "last"


@pytest.mark.parametrize("place", ["nowhere", "empty", "file"])
def test_where_no_policy_is(tmp_path, place):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=rf"{place} (is not there: give|holds no .*`dtune import`)"):
        load_policy(tmp_path / place)


def test_a_policy_copied_out_of_its_run_is_whole(pretrained, tmp_path):
    shutil.copytree(pretrained / "checkpoints" / "best", tmp_path / "mine")
    same = zip(load_policy(tmp_path / "mine").parameters(), load_policy(pretrained).parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in same)


def rewrite(directory: Path, name: str, content: bytes) -> None:
    """Changes a file of a checkpoint and the manifest with it, as a stranger would."""
    (directory / name).write_bytes(content)
    files = {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "MANIFEST.sha256"}
    (directory / "MANIFEST.sha256").write_bytes(checkpoint._manifest(files))


@pytest.fixture
def copy(pretrained, tmp_path) -> Path:
    return Path(shutil.copytree((pretrained / "checkpoints" / "best").resolve(), tmp_path / "copy"))


@pytest.mark.parametrize("name", ["policy.safetensors", "policy.json", "state.json", "tensors.safetensors"])
def test_a_flipped_bit_is_refused(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(checkpoint.CheckpointError, match=f"{name} does not have the hash.*use another checkpoint"):
        load_policy(copy)


def test_a_cut_or_missing_file_is_refused(copy):
    whole = (copy / "policy.safetensors").read_bytes()
    (copy / "policy.safetensors").write_bytes(whole[:-8])
    with pytest.raises(checkpoint.CheckpointError, match=r"policy\.safetensors"):
        load_policy(copy)
    (copy / "policy.safetensors").unlink()
    with pytest.raises(checkpoint.CheckpointError, match=r"policy\.safetensors.*missing"):
        load_policy(copy)
    (copy / "MANIFEST.sha256").unlink()
    with pytest.raises(checkpoint.CheckpointError, match="not a whole checkpoint"):
        load_policy(copy)


SHAPE = {"observation_dim": 11, "action_dim": 3, "layers": 1, "heads": 2, "width": 16}


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"kind": "DecisionTransformer"},
        {"kind": "DecisionTransformer", "config": []},
        {"kind": "DecisionTransformer", "config": {**SHAPE, "width": "16"}},
        {"kind": "DecisionTransformer", "config": {**SHAPE, "unknown": 1}},
        {"kind": "DecisionTransformer", "config": {**SHAPE, "width": 32}},
        {"kind": "DecisionTransformer", "config": {**SHAPE, "layers": 2}},
        {"kind": "DecisionTransformer", "config": {**SHAPE, "heads": 0}},
        {"kind": "Reinformer", "config": SHAPE},
    ],
)
def test_a_document_that_does_not_describe_the_weights_is_refused(copy, document):
    rewrite(copy, "policy.json", json.dumps(document).encode())
    with pytest.raises((ConfigError, DataError), match=r"copy.*policy\.json|heads must be at least 1") as caught:
        load_policy(copy)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"\xff" * 64])
def test_weights_that_are_not_safetensors_are_refused(copy, content):
    rewrite(copy, "policy.safetensors", content)
    with pytest.raises(checkpoint.CheckpointError, match="does not hold the policy"):
        load_policy(copy)


# Judging


def test_evaluating_the_best_gives_what_the_record_says_of_it(pretrained):
    rows = read_rows(pretrained / "metrics.csv")
    best = max(row["eval/return"] for row in rows)
    found = run.evaluate(pretrained, episodes=2)
    assert found["eval/return"] == best
    assert (found["dataset"], found["return_to_go"], found["context_length"]) == ("hopper-random-v2", 7200.0, 20)
    assert found["checkpoint"] == str((pretrained / "checkpoints" / "best").resolve())
    last = run.evaluate(pretrained / "checkpoints" / "last", episodes=2)
    assert last["eval/return"] == rows[-1]["eval/return"]


def test_what_is_asked_for_is_a_choice(pretrained, monkeypatch):
    asked: list[tuple[float, int]] = []
    call = run.Evaluation.__call__

    def note(self, policy):
        asked.append((self.return_to_go, self.episodes))
        return call(self, policy)

    monkeypatch.setattr(run.Evaluation, "__call__", note)
    assert run.evaluate(pretrained, episodes=1, return_to_go=12.5)["return_to_go"] == 12.5
    run.evaluate(pretrained, episodes=3)
    assert asked == [(12.5, 1), (7200.0, 3)]


@pytest.mark.parametrize(("count", "said"), [("episodes", "at least 1 episode"), ("threads", "threads must be")])
def test_none_of_something_is_refused(pretrained, count, said):
    with pytest.raises(ConfigError, match=f"{said}.*got 0"):
        run.evaluate(pretrained, **{count: 0})


def test_a_policy_for_no_known_task_is_not_evaluated_here(copy):
    document = json.loads((copy / "policy.json").read_text())
    goal = document.pop("return_to_go")
    rewrite(copy, "policy.json", json.dumps(document).encode())
    with pytest.raises(ConfigError, match="--return-to-go"):
        run.evaluate(copy, episodes=1)
    assert run.evaluate(copy, episodes=1, return_to_go=goal)["eval/length"] > 0
    document["dataset"] = "nowhere-v0"
    rewrite(copy, "policy.json", json.dumps(document).encode())
    with pytest.raises(ConfigError, match="'nowhere-v0' is neither a task"):
        run.evaluate(copy, episodes=1, return_to_go=goal)
    del document["dataset"]
    rewrite(copy, "policy.json", json.dumps(document).encode())
    with pytest.raises(ConfigError, match="does not say which task"):
        run.evaluate(copy, episodes=1, return_to_go=goal)


# Pretraining and finetuning in a folder


def test_pretraining_makes_a_run(tmp_path, data):
    rows = run.pretrain_preset(tiny_pretraining(), tmp_path / "run", data)
    assert [row["iteration"] for row in rows] == [0, 1]
    assert all("eval/normalized_score" in row for row in rows)
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"config.json", "meta.json", "metrics.csv"}
    meta = json.loads((tmp_path / "run" / "meta.json").read_text())
    assert meta["begun"]["dataset"] == str(data)
    policy, dataset = load_policy(tmp_path / "run"), read_hdf5(data)
    mean, std = dataset.observation_statistics()
    assert torch.equal(policy.observation_mean, mean)
    assert torch.equal(policy.observation_std, std)
    assert policy.config.return_scale == 0.001


def test_products_are_rounded_as_a_run_asks_for_and_no_longer(tmp_path, data, monkeypatch):
    seen, train = [], run.train
    settings = torch.get_num_threads, torch.get_float32_matmul_precision

    def watched(*args, **kwargs):
        seen.append([setting() for setting in settings])
        return train(*args, **kwargs)

    monkeypatch.setattr(run, "train", watched)
    before = [setting() for setting in settings]
    begin = replace(tiny_pretraining(), matmul_precision="high", network_threads=2)
    run.pretrain_preset(begin, tmp_path / "high", data)
    config = replace(tiny_finetuning(), iterations=1)
    run.finetune_preset(replace(config, matmul_precision="medium"), tmp_path / "medium", tmp_path / "high")
    run.finetune_preset(config, tmp_path / "highest", tmp_path / "high")
    assert seen == [[2, "high"], [1, "medium"], [1, "highest"]]
    with pytest.raises(ConfigError):
        run.finetune_preset(replace(config, matmul_precision="high"), tmp_path / "none", None)
    assert [setting() for setting in settings] == before


def test_pretraining_cuts_the_file_by_the_rule_of_its_dataset(tmp_path, data, monkeypatch):
    monkeypatch.setitem(SOURCES, "hopper-random-v2", replace(SOURCES["hopper-random-v2"], splitting="adroit"))
    run.pretrain_preset(tiny_pretraining(), tmp_path / "run", data)
    mean, _ = read_hdf5(data, splitting="adroit").observation_statistics()
    assert not torch.equal(mean, read_hdf5(data).observation_statistics()[0])
    assert torch.equal(load_policy(tmp_path / "run").observation_mean, mean)


def test_pretraining_that_helps_nobody_still_gives_what_it_learned(tmp_path, data, monkeypatch):
    """In a maze nobody finds the way at first: the untrained network is as good as the pretrained one."""
    monkeypatch.setattr(run.Evaluation, "__call__", lambda *_: {"eval/return": 0.0, "eval/normalized_score": 0.0})
    run.pretrain_preset(tiny_pretraining(), tmp_path / "run", data)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert find_checkpoint(tmp_path / "run").resolve() == (checkpoints / "last").resolve()
    (checkpoints / "best").unlink()  # as if it had been stopped before it was judged
    assert find_checkpoint(tmp_path / "run").resolve() == (checkpoints / "iteration_000001").resolve()


def test_more_pretraining_continues(tmp_path, data):
    run.pretrain_preset(tiny_pretraining(iterations=1), tmp_path / "run", data)
    rows = run.pretrain_preset(tiny_pretraining(iterations=3), tmp_path / "run", data)
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
    run.pretrain_preset(tiny_pretraining(iterations=3), tmp_path / "at once", data)
    one, other = (
        (tmp_path / name / "checkpoints" / "last" / "policy.safetensors").read_bytes() for name in ("run", "at once")
    )
    assert one == other


@pytest.mark.parametrize("sizes", [(17, 3), (11, 6)])
def test_data_that_do_not_fit_the_task_leave_no_run_behind(tmp_path, sizes):
    path = tmp_path / "data.hdf5"
    write_hdf5(path, columns(*sizes))
    with pytest.raises(DataError, match=r"data\.hdf5 has observations of.*11 and 3 are needed"):
        run.pretrain_preset(tiny_pretraining(), tmp_path / "run", path)
    assert os.listdir(tmp_path / "run") == [".lock"]


def test_finetuning_makes_a_run_that_can_be_evaluated(pretrained, tmp_path):
    config = tiny_finetuning()
    rows = run.finetune_preset(config, tmp_path / "run", pretrained)
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    best = run.evaluate(tmp_path / "run", episodes=2)
    assert best["eval/return"] == max(row["eval/return"] for row in rows)
    about = run.evaluate(tmp_path / "run" / "checkpoints" / "last", episodes=2)
    assert about["context_length"] == 1  # of finetuning, not of pretraining
    assert about["eval/return"] == rows[-1]["eval/return"]
    before = load_policy(pretrained).state_dict()
    after = load_policy(tmp_path / "run" / "checkpoints" / "last").state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(before[name], after[name]) for name in ("observation_mean", "observation_std"))


def test_a_reinformer_is_pretrained_finetuned_and_read_again(tmp_path, monkeypatch, one_thread):
    monkeypatch.setenv("DTUNE_DATA", str(tmp_path / "data"))
    main([*tiny.PRETRAIN, "--architecture", "reinformer", "--out", str(tmp_path / "before")])
    start = load_policy(tmp_path / "before")
    assert isinstance(start, Reinformer)
    assert (start.context_length, start.config.width, start.config.return_scale) == (5, 16, 0.001)
    assert not start.observation_mean.eq(0).all()
    few = ["--architecture=reinformer", "--policy", str(tmp_path / "before"), "--iterations", "1"]
    few += ["--algorithm.mirrored", "False"]
    main([*tiny.GRPO, *few, "--out", str(tmp_path / "run")])
    last = load_policy(tmp_path / "run" / "checkpoints" / "last")
    assert isinstance(last, Reinformer)
    assert last.context_length == 5
    changed = {name for name, value in last.state_dict().items() if not value.equal(start.state_dict()[name])}
    assert "head_mean.weight" in changed
    assert not changed & {"head_return.weight", "head_return.bias", "observation_mean"}
    found = run.evaluate(tmp_path / "run" / "checkpoints" / "last", episodes=2, return_to_go=0.0)
    other = run.evaluate(tmp_path / "run" / "checkpoints" / "last", episodes=2, return_to_go=9e3)
    assert found["eval/return"] == other["eval/return"]  # it asks itself


def test_another_config_is_refused_and_nothing_lost(pretrained, tmp_path):
    run.finetune_preset(tiny_finetuning(), tmp_path / "run", pretrained)
    before = everything(tmp_path / "run")
    other = tiny_finetuning(algorithm=tiny_grpo(group_size=4))
    with pytest.raises(ConfigError, match=r"other settings:\n  algorithm\.group_size: 3 -> 4\n"):
        run.finetune_preset(other, tmp_path / "run", pretrained)
    assert everything(tmp_path / "run") == before


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_policy_that_does_not_fit_the_task_leaves_no_run_behind(pretrained, tmp_path):
    with pytest.raises(ConfigError, match=r"observes 11 numbers and acts with 3, but walker2d has 17 and 6: give"):
        run.finetune_preset(tiny_finetuning("walker2d-medium-v2"), tmp_path / "run", pretrained)
    assert os.listdir(tmp_path / "run") == [".lock"]
    run.finetune_preset(tiny_finetuning(iterations=0), tmp_path / "run", pretrained)  # the folder is still free


def test_a_run_goes_on_with_its_own_policy(pretrained, tmp_path, data):
    run.finetune_preset(tiny_finetuning(), tmp_path / "run", pretrained)
    run.pretrain_preset(tiny_pretraining(), tmp_path / "other", data)
    before = everything(tmp_path / "run" / "checkpoints")
    with pytest.raises(
        ConfigError, match=r"run was begun with .*pretrained.* of hash .* and .*other.* has .*another --out"
    ):
        run.finetune_preset(tiny_finetuning(iterations=3), tmp_path / "run", tmp_path / "other")
    assert everything(tmp_path / "run" / "checkpoints") == before
    run.finetune_preset(tiny_finetuning(iterations=3), tmp_path / "run", pretrained)


def test_a_run_goes_on_with_its_data_wherever_they_lie_and_with_no_others(pretrained, tmp_path, data, capsys):
    run.pretrain_preset(tiny_pretraining(), tmp_path / "run", data)
    moved = data.rename(tmp_path / "moved.hdf5")
    run.pretrain_preset(tiny_pretraining(iterations=2), tmp_path / "run", moved)
    assert "other conditions" not in capsys.readouterr().out
    write_hdf5(data, columns() | {"rewards": torch.zeros(12)})
    before = everything(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"run was begun with .* of hash .*another --out"):
        run.pretrain_preset(tiny_pretraining(iterations=3), tmp_path / "run", data)
    assert everything(tmp_path / "run") == before


def test_a_folder_in_use_is_refused(pretrained, tmp_path):
    with locked(tmp_path / "run"):
        with pytest.raises(ConfigError, match=r"run is being written by another process .*another --out"):
            run.finetune_preset(tiny_finetuning(), tmp_path / "run", pretrained)
        with pytest.raises(ConfigError, match="is being written"):
            run.pretrain_preset(tiny_pretraining(), tmp_path / "run")
        with pytest.raises(ConfigError, match="is being written"):
            run.finetune(make_grpo(), PointMass(), iterations=1, directory=tmp_path / "run", quiet=True)


@pytest.mark.parametrize("goal", [math.nan, math.inf, 1e300])
def test_an_impossible_return_is_refused_and_leaves_no_run_behind(pretrained, tmp_path, goal):
    with pytest.raises(ConfigError, match=f"finite number.*got {re.escape(str(goal))}"):
        run.finetune_preset(tiny_finetuning(algorithm=tiny_grpo(return_to_go=goal)), tmp_path / "run", pretrained)
    assert {path.name for path in tmp_path.glob("run/*")} <= {".lock"}
    with pytest.raises(ConfigError, match="finite number"):
        run.evaluate(pretrained, return_to_go=goal)


# The public function


def make_grpo(seed: int = 0) -> GRPO:
    return GRPO(TinyPolicy(width=8), tiny_grpo(return_to_go=-3.0), torch.Generator().manual_seed(seed))


def test_finetune_without_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    algorithm = make_grpo()
    before = [parameter.clone() for parameter in algorithm.policy.parameters()]
    rows = run.finetune(algorithm, PointMass(), iterations=3, evaluate_every=2, evaluation_episodes=2)
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
    assert [row["iteration"] for row in rows if "eval/return" in row] == [0, 2, 3]
    assert any(not torch.equal(*pair) for pair in zip(before, algorithm.policy.parameters(), strict=True))
    assert os.listdir(tmp_path) == []
    assert "3/3" in capsys.readouterr().out
    run.finetune(make_grpo(), PointMass(), iterations=1, quiet=True)
    assert capsys.readouterr().out == ""


def test_finetune_with_a_folder_continues(tmp_path):
    run.finetune(make_grpo(), PointMass(), iterations=2, directory=tmp_path / "a", evaluate_every=2, quiet=True)
    run.finetune(make_grpo(), PointMass(), iterations=4, directory=str(tmp_path / "a"), evaluate_every=2, quiet=True)
    run.finetune(make_grpo(), PointMass(), iterations=4, directory=tmp_path / "b", evaluate_every=2, quiet=True)
    one, other = ((tmp_path / name / "metrics.csv").read_bytes() for name in "ab")
    assert one == other


def test_finetune_with_other_settings_in_the_same_folder_is_refused(tmp_path):
    run.finetune(make_grpo(), PointMass(), iterations=1, directory=tmp_path, quiet=True)
    assert json.loads((tmp_path / "config.json").read_text())["algorithm"]["return_to_go"] == -3.0
    assert (tmp_path / "meta.json").exists()
    before = (tmp_path / "metrics.csv").read_bytes()
    other = GRPO(TinyPolicy(width=8), tiny_grpo(return_to_go=-2.0), torch.Generator())
    with pytest.raises(ConfigError, match=r"algorithm\.return_to_go: -3\.0 -> -2\.0"):
        run.finetune(other, PointMass(), iterations=2, directory=tmp_path, quiet=True)
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_finetune_judges_by_what_the_algorithm_asks_for_or_is_told(monkeypatch):
    asked: list[Any] = []
    monkeypatch.setattr(
        run.Evaluation,
        "__call__",
        lambda self, policy: asked.append((self.return_to_go, self.episodes, self.task)) or {"eval/return": 0.0},
    )
    run.finetune(make_grpo(), PointMass(), iterations=0, quiet=True)
    run.finetune(
        make_grpo(), PointMass(), iterations=0, return_to_go=-1, evaluation_episodes=7, task="hopper", quiet=True
    )
    assert asked == [(-3.0, 20, None), (-1, 7, "hopper")]


@pytest.fixture
def network() -> DecisionTransformer:
    return DecisionTransformer(
        DecisionTransformerConfig(observation_dim=11, action_dim=3, layers=1, heads=1, width=8),
        torch.Generator().manual_seed(0),
    )


def test_what_finetune_saves_can_be_loaded_alone(tmp_path, network):
    simulator = make_simulator("hopper")
    config = PPOConfig(
        return_to_go=900.0, episodes_per_iteration=1, batch_size=4, updates_per_iteration=1, context_length=2
    )
    rows = run.finetune(
        PPO(network, config),
        simulator,
        iterations=1,
        directory=tmp_path,
        evaluation_episodes=1,
        task="hopper",
        quiet=True,
    )
    assert "eval/normalized_score" in rows[0]
    policy = load_policy(tmp_path / "checkpoints" / "last")
    assert policy.context_length == 2
    same = zip(policy.parameters(), network.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in same)
    assert read_about(tmp_path)["return_to_go"] == 900.0


def test_a_run_from_python_is_judged_and_collected_by_its_task_and_folder(tmp_path, network):
    folder = tmp_path / "hopper-random-v2_ppo_seed3"
    config = PPOConfig(return_to_go=900.0, episodes_per_iteration=1, batch_size=4, updates_per_iteration=1)
    simulator = make_simulator("hopper")
    rows = run.finetune(
        PPO(network, config), simulator, iterations=1, directory=folder, task="hopper-random-v2", quiet=True
    )
    found = run.evaluate(folder / "checkpoints" / "last")
    assert found["eval/return"] == rows[-1]["eval/return"]
    (curve,) = collect(tmp_path)[0].values()
    assert (curve.dataset, curve.method, curve.seed) == ("hopper-random-v2", "ppo", 3)


class Bare:
    """An algorithm of the four members that it needs, and no others."""

    def __init__(self, inner: GRPO):
        self.policy, self.iterate = inner.policy, inner.iterate
        self.state_dict, self.load_state_dict = inner.state_dict, inner.load_state_dict


def test_an_algorithm_without_a_config_is_told_what_to_ask_for(tmp_path):
    with pytest.raises(ConfigError, match=r"no config.return_to_go: say which return .* with return_to_go="):
        run.finetune(Bare(make_grpo()), PointMass(), iterations=1, directory=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    rows = run.finetune(Bare(make_grpo()), PointMass(), iterations=1, return_to_go=-3.0, quiet=True)
    assert rows[-1]["iteration"] == 1


def test_weights_are_put_into_a_policy_of_ones_own(tmp_path):
    improved = make_grpo()
    run.finetune(improved, PointMass(), iterations=1, directory=tmp_path, quiet=True)
    fresh = TinyPolicy(width=improved.policy.now.out_features, seed=9)
    load_weights(fresh, tmp_path / "checkpoints" / "last")
    other = TinyPolicy(width=5)
    untouched = other.head.bias.clone()
    pairs = zip(fresh.parameters(), improved.policy.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    with pytest.raises(ConfigError, match=r"weights of another network \(now.weight is .*, here \(5, 3\)"):
        load_weights(other, tmp_path)
    assert torch.equal(other.head.bias, untouched)
    with pytest.raises(ConfigError, match="is not there"):
        load_weights(fresh, tmp_path / "nowhere")


def test_a_document_has_the_context_length_of_now(network):
    network.context_length = 3
    document = describe(network, dataset="hopper-medium-v2")["policy.json"]
    assert document["config"]["context_length"] == 3
    assert (document["kind"], document["dataset"]) == ("DecisionTransformer", "hopper-medium-v2")


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"GPU 0.*sees 0 here"):
        run.pretrain_preset(replace(pretraining("hopper-random-v2", "small"), device="cuda"), Path("run"))
    assert not (tmp_path / "run" / "config.json").exists()
