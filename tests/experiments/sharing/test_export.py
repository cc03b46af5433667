"""An exported policy acts as the policy does, and one that would not is never written."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from tiny import environment

from dtune.data.steps import Steps
from dtune.errors import ConfigError, DtuneError
from dtune.experiments import checkpoint
from dtune.experiments.policies import describe, load_policy
from dtune.experiments.sharing import export
from dtune.models.portable import INPUTS, OUTPUTS
from dtune.models.reinformer import Reinformer, ReinformerConfig

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

EXAMPLE = Path(__file__).parents[3] / "examples" / "act_with_onnx.py"


@pytest.fixture(scope="module")
def reinformer(tmp_path_factory) -> Path:
    """A checkpoint that names no world."""
    shape = ReinformerConfig(observation_dim=4, action_dim=2, context_length=3, layers=1, heads=2, width=16)
    policy = Reinformer(shape, torch.Generator().manual_seed(0))
    state = {"algorithm": {"policy": policy.state_dict()}}
    return checkpoint.save(tmp_path_factory.mktemp("reinformer"), 0, state, documents=describe(policy))


def export_elsewhere(path: Path, folder: Path) -> export.Exported:
    """Exports in a process of its own: tracing under pytest takes long."""
    script = """import json, sys
from dtune.experiments.sharing.export import export_policy
print(json.dumps(vars(export_policy(sys.argv[1], "policy.onnx")), default=str))"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=folder, env=environment(folder), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # torch's remarks on packages that are not needed are not passed on
    facts = json.loads(done.stdout.splitlines()[-1])
    return export.Exported(**{**facts, "path": folder / facts["path"]})


@pytest.fixture(scope="module")
def exported(pretrained, tmp_path_factory) -> export.Exported:
    return export_elsewhere(pretrained, tmp_path_factory.mktemp("exported"))


def windows(policy, count: int) -> Steps:
    drawn = export._drawn(policy, 5000.0, torch.Generator().manual_seed(1))
    return drawn.map(lambda x: x[:count])


def test_it_is_compared_with_the_policy_on_its_walks(exported):
    assert exported.compared_on == "its walks in hopper-random-v2"
    assert set(exported.differences) == set(OUTPUTS)
    assert all(0 <= value <= 1e-5 for value in exported.differences.values())
    assert exported.differences["mean"] > 0  # something was compared: two ways of computing do not agree to the bit
    assert exported.inputs["observations"] == ["batch", 20, 11]
    assert exported.inputs["mask"] == ["batch", 20]


@pytest.mark.parametrize("count", [1, 7])
def test_any_number_of_rows_in_environment_units(exported, pretrained, count):
    policy = load_policy(pretrained)
    assert not policy.observation_mean.eq(0).all()  # normalisation is inside
    session = onnxruntime.InferenceSession(exported.path)
    context = windows(policy, count)
    got = session.run(list(OUTPUTS), {name: getattr(context, name).numpy() for name in INPUTS})
    with torch.no_grad():
        now = policy(context)[:, -1]
    wanted = (now.mode, now.mean, now.std, context.returns_to_go[:, -1])
    for name, value, want in zip(OUTPUTS, got, wanted):
        np.testing.assert_allclose(value, want.numpy(), rtol=1e-5, atol=1e-5, err_msg=name)


def test_the_file_says_what_it_is_of(exported):
    told = onnxruntime.InferenceSession(exported.path).get_modelmeta().custom_metadata_map
    assert told["kind"] == "DecisionTransformer"
    assert (told["context_length"], told["dataset"]) == ("20", "hopper-random-v2")
    assert float(told["return_to_go"]) == 7200


def test_a_network_that_acts_otherwise_is_not_written(pretrained, tmp_path, monkeypatch, exported):
    """Exported from other weights by 1e-3 in one bias."""
    network = exported.path.read_bytes()
    monkeypatch.setattr(export, "to_onnx", lambda *_: network)
    shifted = load_policy(pretrained)
    with torch.no_grad():
        shifted.head_mean.bias[0] += 1e-3
    monkeypatch.setattr(export, "load_policy", lambda _: shifted)
    with pytest.raises(DtuneError, match=r"differs from .* \(action by .*, mean by .*; at most 1e-05"):
        export.export_policy(pretrained, tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())


def test_nan_is_no_agreement(pretrained, tmp_path, monkeypatch, exported):
    monkeypatch.setattr(export, "to_onnx", lambda *_: exported.path.read_bytes())
    monkeypatch.setattr(export, "compare", lambda *_: dict.fromkeys(OUTPUTS, float("nan")))
    with pytest.raises(DtuneError, match="nothing was written"):
        export.export_policy(pretrained, tmp_path / "policy.onnx")


@pytest.mark.slow
def test_a_reinformer_predicts_what_it_acts_on(reinformer, tmp_path):
    policy, done = load_policy(reinformer), export_elsewhere(reinformer, tmp_path)
    assert done.compared_on == "numbers drawn at random"
    context = windows(policy, 5)
    feed = {name: getattr(context, name).numpy() for name in INPUTS}
    feed["returns_to_go"][:, -1] = 1e6  # what is asked for now does not matter
    session = onnxruntime.InferenceSession(done.path)
    action, _, _, asked = session.run(list(OUTPUTS), feed)
    with torch.no_grad():
        predicted = policy.predict_return_to_go(context)[:, -1]
        context.returns_to_go[:, -1] = predicted
        wanted = policy(context)[:, -1].mode
    np.testing.assert_allclose(asked, predicted.numpy(), rtol=1e-5, atol=1e-2)
    np.testing.assert_allclose(action, wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize("out", ["policy.pt", "nowhere/policy.onnx"])
def test_where_it_cannot_be_written(pretrained, tmp_path, out):
    with pytest.raises(ConfigError, match=r"must be a file whose name ends in \.onnx"):
        export.export_policy(pretrained, tmp_path / out)


def test_without_its_packages(pretrained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"needs onnxscript, which is not here: pip install 'dtune\[onnx\]'"):
        export.export_policy(pretrained, tmp_path / "policy.onnx")


def test_the_command_tells_the_differences(pretrained, exported, tmp_path, monkeypatch, capsys):
    from dtune.cli import main

    monkeypatch.setattr(export, "to_onnx", lambda *_: exported.path.read_bytes())
    main(["export", str(pretrained), "--out", str(tmp_path / "policy.onnx")])
    said = capsys.readouterr().out
    assert "on 1,000 windows of its walks in hopper-random-v2; at most 1e-05 is allowed" in said
    assert re.search(r"output action +differs by \d\.\de-0\d", said)
    assert (tmp_path / "policy.onnx").read_bytes() == exported.path.read_bytes()


def test_the_example_acts_as_the_policy_does(exported, pretrained, tmp_path):
    """Without dtune and torch; the same episode as the policy's own, walked here."""
    script = f"""import sys
sys.modules |= dict.fromkeys(["torch", "dtune", "jaxtyping"])
sys.argv[1:] = [{str(exported.path)!r}]
exec(compile(open({str(EXAMPLE)!r}).read(), "example", "exec"))"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment(tmp_path), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    said = re.fullmatch(r"return ([\d.-]+) in (\d+) steps\n", done.stdout)
    earned, steps = walk(load_policy(pretrained))
    assert (float(said[1]), int(said[2])) == (pytest.approx(earned, abs=1e-2), steps)


@torch.no_grad()
def walk(policy) -> tuple[float, int]:
    """An episode of Gymnasium's Hopper with mean actions, the window built from the whole history at each step."""
    env, seen, acted, asked, earned = gymnasium.make("Hopper-v5"), [], [], [7200.0], 0.0
    observation, _ = env.reset(seed=0)
    while True:
        seen.append(torch.tensor(observation, dtype=torch.float32))
        acted.append(torch.zeros(3))
        time = min(len(seen), policy.context_length)
        rows, flat = slice(-time, None), torch.zeros(1, time)
        actions = torch.stack(acted[rows])[None]
        context = Steps(
            observations=torch.stack(seen[rows])[None],
            raw_actions=actions,
            actions=actions,
            rewards=flat,
            returns_to_go=torch.tensor(asked[rows], dtype=torch.float32)[None],
            log_probs=flat,
            timesteps=torch.arange(len(seen) - time, len(seen))[None],
            mask=torch.ones(1, time, dtype=torch.bool),
        )
        acted[-1] = policy(context)[0, -1].mode
        observation, reward, terminated, truncated, _ = env.step(acted[-1].numpy())
        asked.append(asked[-1] - reward)
        earned += reward
        if terminated or truncated:
            return earned, len(seen)


def test_the_example_has_twenty_lines():
    code = EXAMPLE.read_text().split('"""')[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    assert json.dumps(sorted(re.findall(r"^import (\w+)", code, re.MULTILINE))) == json.dumps(
        ["gymnasium", "numpy", "onnxruntime", "sys"]
    )
    assert os.access(EXAMPLE, os.R_OK)
