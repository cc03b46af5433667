"""Others' decision transformers: equal outputs, by a forward pass of theirs written down here a second time."""

import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from draws import draw_steps, seeded

from dtune.cli import main
from dtune.data.hdf5 import write_hdf5
from dtune.errors import ConfigError, DataError
from dtune.experiments.policies import load_policy, read_about
from dtune.models.check import check_policy
from dtune.models.foreign import Foreign, read_foreign

OBS, ACT, WIDTH, HEADS, LAYERS, TIMES = 11, 3, 16, 2, 2, 60


def weights(encoder, *, stochastic=True, ordering=False):
    """A `state_dict` of random numbers under the names online-dt ("transformer") or Hugging Face ("encoder") uses."""
    generator, found = seeded(7), {}

    def add(name, *shape, bias=None):
        found[f"{name}.weight"] = 0.3 * torch.randn(*shape, generator=generator)
        if bias is not None:
            found[f"{name}.bias"] = 0.3 * torch.randn(bias, generator=generator)

    for name, inputs in (("embed_return", 1), ("embed_state", OBS), ("embed_action", ACT)):
        add(name, WIDTH, inputs, bias=WIDTH)
    for name in ("embed_ln", f"{encoder}.ln_f"):
        add(name, WIDTH, bias=WIDTH)
    for layer in range(LAYERS):
        block = f"{encoder}.h.{layer}"
        for norm in ("ln_1", "ln_2"):
            add(f"{block}.{norm}", WIDTH, bias=WIDTH)
        for name, inputs, outputs in (
            ("attn.c_attn", WIDTH, 3 * WIDTH), ("attn.c_proj", WIDTH, WIDTH),
            ("mlp.c_fc", WIDTH, 4 * WIDTH), ("mlp.c_proj", 4 * WIDTH, WIDTH),
        ):  # fmt: skip
            add(f"{block}.{name}", inputs, outputs, bias=outputs)  # transposed, as GPT-2 has them
        found[f"{block}.attn.bias"] = torch.ones(1, 1, 8, 8).tril().bool()
        found[f"{block}.attn.masked_bias"] = torch.tensor(-1e4)
    for name in ("embed_timestep", *(["embed_ordering"] if ordering else [])):
        add(name, TIMES, WIDTH)
    add(f"{encoder}.wte", 1, WIDTH)
    if encoder == "encoder":
        add("encoder.wpe", 64, WIDTH)
    add("predict_state", OBS, WIDTH, bias=OBS)
    add("predict_return", 1, WIDTH, bias=1)
    for head in ("mu", "log_std") if stochastic else ("0",):
        add(f"predict_action.{head}", ACT, WIDTH, bias=ACT)
    return found


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def theirs(state, encoder, context, row, *, activation, clock=None, scale=0.001):
    """Head inputs at each step of one row, in numpy: GPT-2 over (return, state, action), one token after another."""
    w = {name: value.double().numpy() for name, value in state.items()}

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def conv(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    field = {name: value[row].double().numpy() for name, value in vars(context).items()}
    real = field["mask"].astype(bool)
    time = w[clock][field["timesteps"].astype(int)] if clock else 0.0
    tokens = np.stack(
        [
            linear(field["returns_to_go"][:, None] * scale, "embed_return") + time,
            linear(field["observations"], "embed_state") + time,
            linear(field["actions"], "embed_action") + time,
        ],
        1,
    )
    x = norm(tokens.reshape(-1, WIDTH), "embed_ln")
    if encoder == "encoder":
        x = x + w["encoder.wpe.weight"][0]
    count, size = len(x), WIDTH // HEADS
    seen = np.tril(np.ones((count, count), bool)) & np.repeat(real, 3)[None]
    for layer in range(LAYERS):
        block = f"{encoder}.h.{layer}"
        fused = conv(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn")
        query, key, value = (part.reshape(count, HEADS, size) for part in np.split(fused, 3, 1))
        scores = np.einsum("qhd,khd->hqk", query, key) / math.sqrt(size) + np.where(seen, 0.0, -1e4)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        x = x + conv(np.einsum("hqk,khd->qhd", shares, value).reshape(count, WIDTH), f"{block}.attn.c_proj")
        hidden = ACTIVATIONS[activation](conv(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc"))
        x = x + conv(hidden, f"{block}.mlp.c_proj")
    states = norm(x, f"{encoder}.ln_f")[1::3]
    return {name: linear(states, f"predict_action.{name}") for name in ("0", "mu", "log_std") if
            f"predict_action.{name}.weight" in w}  # fmt: skip


def context(time=4):
    steps = draw_steps(3, time, OBS, ACT, seed=2)
    steps.timesteps.remainder_(TIMES)
    steps.mask[1, : time - 2] = False
    return steps


def assert_equal_outputs(policy, state, encoder, **options):
    for time in (1, 2, 4):
        steps = context(max(time, 2)).slice_time(max(time, 2) - time)
        with torch.no_grad():
            ours = policy(steps)
        for row in range(3):
            heads, real = theirs(state, encoder, steps, row, **options), steps.mask[row].numpy()
            mean = heads.get("mu", heads.get("0"))
            np.testing.assert_allclose(ours.mean[row].numpy()[real], mean[real], atol=1e-5, rtol=1e-5)
            np.testing.assert_allclose(ours.mode[row].numpy()[real], np.tanh(mean)[real], atol=1e-5)
            if "log_std" in heads:
                std = np.exp(-5 + 3.5 * (np.tanh(heads["log_std"]) + 1))
                np.testing.assert_allclose(ours.std[row].numpy()[real], std[real], atol=1e-5, rtol=1e-5)


def save_online_dt(path, state, **args):
    """As its trainer does, with the states of three random generators and of an optimiser."""
    torch.save(
        {
            "model_state_dict": state, "optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 1e-4}]},
            "pretrain_iter": 1, "online_iter": 7, "args": {"n_head": HEADS, "K": 20, "env": "hopper-medium-v2", **args},
            "total_transitions_sampled": 1000, "np": np.random.get_state(), "python": random.getstate(),
            "pytorch": torch.get_rng_state(),
        },
        path,
    )  # fmt: skip
    return path


@pytest.mark.parametrize("ordering", [False, True])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_online_dt_gives_equal_outputs(tmp_path, activation, ordering):
    state = weights("transformer", ordering=ordering)
    policy, notes = read_foreign(save_online_dt(tmp_path / "model.pt", state, activation_function=activation))
    clock = "embed_ordering.weight" if ordering else None
    assert_equal_outputs(policy, state, "transformer", activation=activation, clock=clock)
    assert policy.context_length == 20
    assert len(notes) == 1
    assert "not normalised" in notes[0]
    assert [found.message for found in check_policy(policy, OBS) if not found.passed] == []


@pytest.mark.parametrize("std", [0.2, 1.0])
def test_a_deterministic_head_gets_the_deviation_it_is_told(tmp_path, std):
    state = weights("transformer", stochastic=False)
    policy, notes = read_foreign(save_online_dt(tmp_path / "model.pt", state), Foreign(std=std, context_length=5))
    assert_equal_outputs(policy, state, "transformer", activation="relu")
    torch.testing.assert_close(policy(context()).std, torch.full((3, 4, ACT), std))
    assert re.search(rf"deterministic.*deviation of {std} ", notes[1])
    assert policy.context_length == 5


def save_hugging_face(folder, state, **config):
    folder.mkdir()
    shape = {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "state_dim": OBS, "act_dim": ACT, **config}
    (folder / "config.json").write_text(json.dumps({"activation_function": "relu", "max_ep_len": TIMES, **shape}))
    safetensors.torch.save_file(state, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("activation", ["relu", "gelu_new"])
def test_hugging_face_gives_equal_outputs(tmp_path, activation):
    state = weights("encoder", stochastic=False)
    folder = save_hugging_face(tmp_path / "hf", state, activation_function=activation)
    policy, notes = read_foreign(folder, Foreign(return_scale=0.01))
    options = {"activation": activation, "clock": "embed_timestep.weight", "scale": 0.01}
    assert_equal_outputs(policy, state, "encoder", **options)
    assert "deterministic" in notes[1]
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert_equal_outputs(read_foreign(folder, Foreign(return_scale=0.01))[0], state, "encoder", **options)


def test_transformers_itself_gives_equal_outputs(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.DecisionTransformerConfig(
        state_dim=OBS, act_dim=ACT, hidden_size=WIDTH, n_layer=LAYERS, n_head=HEADS, max_ep_len=TIMES
    )
    model = transformers.DecisionTransformerModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=seeded()))
    model.save_pretrained(tmp_path / "hf")
    policy, _ = read_foreign(tmp_path / "hf")
    steps = context()
    with torch.no_grad():
        actions = model(
            states=steps.observations, actions=steps.actions, rewards=steps.rewards[..., None],
            returns_to_go=0.001 * steps.returns_to_go[..., None], timesteps=steps.timesteps,
            attention_mask=steps.mask.float(),
        ).action_preds  # fmt: skip
        torch.testing.assert_close(policy(steps).mode[steps.mask], actions[steps.mask], atol=1e-5, rtol=1e-5)


def test_a_bare_state_dict_needs_to_be_told_its_heads(tmp_path):
    state = weights("transformer")
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(ConfigError, match=r"attention heads.*--heads"):
        read_foreign(tmp_path / "weights.pt")
    policy, _ = read_foreign(tmp_path / "weights.pt", Foreign(heads=HEADS))
    assert_equal_outputs(policy, state, "transformer", activation="relu")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"transformer.wpe.weight": torch.zeros(8, WIDTH)}, "another kind of model.*wpe"),
        ({"embed_state.weight": None}, "has no 'embed_state.weight'"),
        ({"transformer.ln_f.weight": torch.zeros(3)}, "does not fit together"),
    ],
)
def test_what_is_something_else_is_refused(tmp_path, change, said):
    state = {name: value for name, value in {**weights("transformer"), **change}.items() if value is not None}
    with pytest.raises(DataError, match=said):
        read_foreign(save_online_dt(tmp_path / "model.pt", state))


@pytest.mark.parametrize("name", ["action_tanh", "scale_attn_by_inverse_layer_idx", "layer_norm_epsilon"])
def test_settings_without_a_counterpart_are_refused(tmp_path, name):
    value = {"action_tanh": False, "scale_attn_by_inverse_layer_idx": True, "layer_norm_epsilon": 1e-6}[name]
    folder = save_hugging_face(tmp_path / "hf", weights("encoder", stochastic=False), **{name: value})
    with pytest.raises(DataError, match=name):
        read_foreign(folder)


class Bomb:
    def __reduce__(self):
        return print, ("boom",)


def test_nothing_in_a_file_is_executed(tmp_path, capsys):
    torch.save({"model_state_dict": Bomb()}, tmp_path / "model.pt")
    with pytest.raises(DataError, match="tensors and plain values alone"):
        read_foreign(tmp_path / "model.pt")
    assert "boom" not in capsys.readouterr().out


@pytest.mark.parametrize("std", [0.0, 8.0])
def test_a_deviation_out_of_bounds_is_refused(std):
    with pytest.raises(ConfigError, match=r"std must lie between 0\.0067 and 7\.39"):
        Foreign(std=std)


def test_the_command_writes_a_checkpoint_to_start_from(tmp_path, capsys):
    source = save_online_dt(tmp_path / "model.pt", weights("transformer", stochastic=False))
    columns = {
        "observations": 3 + 2 * torch.randn(12, OBS, generator=seeded()),
        "actions": torch.zeros(12, ACT),
        "rewards": torch.ones(12),
        "terminals": torch.tensor([False] * 5 + [True] + [False] * 5 + [True]),
        "timeouts": torch.zeros(12, dtype=torch.bool),
    }
    write_hdf5(tmp_path / "data.hdf5", columns)
    out = tmp_path / "mine"
    options = ["--dataset", "hopper-medium-v2", "--return-to-go", "3600", "--std", "0.3"]
    main(["import", str(source), "--out", str(out), "--data", str(tmp_path / "data.hdf5"), *options])
    said = capsys.readouterr().out
    assert "deviation of 0.3" in said
    assert "not normalised" not in said
    policy = load_policy(out)
    torch.testing.assert_close(policy.observation_mean, columns["observations"].mean(0))
    expected = read_foreign(source, Foreign(std=0.3))[0].state_dict()
    same = {name for name, value in policy.state_dict().items() if value.equal(expected[name])}
    assert expected.keys() - same == {"observation_mean", "observation_std"}
    assert read_about(out)["return_to_go"] == 3600
    with pytest.raises(SystemExit) as end:
        main(["import", str(source), "--out", str(out)])
    assert end.value.code == 2
    assert "holds checkpoints already" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["import", str(source), "--out", str(tmp_path / "slip"), "--dataset", "hopper-medum-v2"])
    assert end.value.code == 2
    assert "hopper-medium-v2" in capsys.readouterr().err
    assert not (tmp_path / "slip").exists()
    for option, value, part in (
        ("--return-to-go", "nan", "--return-to-go is a finite number"),
        ("--context-length", "0", "context_length"),
        ("--dataset", "walker2d-medium-v2", "walker2d has 17 and 6"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["import", str(source), "--out", str(tmp_path / "slip"), option, value])
        assert end.value.code == 2
        assert part in capsys.readouterr().err
    assert not (tmp_path / "slip").exists()
    with pytest.raises(SystemExit) as end:
        main(["import", str(tmp_path / "nothing.pt"), "--out", str(tmp_path / "slip")])
    assert end.value.code == 3
    assert "nothing.pt is not there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dataset", "rule"), [("pen-human-v1", "adroit"), ("antmaze-umaze-v2", "antmaze"), (None, None)]
)
def test_data_are_cut_by_the_rule_of_their_dataset(dataset, rule, tmp_path, monkeypatch):
    source, asked = save_online_dt(tmp_path / "model.pt", weights("transformer", stochastic=False)), []

    def load(path, *, splitting):
        asked.append((path, splitting))
        raise DataError("seen enough")

    monkeypatch.setattr("dtune.experiments.loading.load_dataset", load)
    named = [] if dataset is None else ["--dataset", dataset]
    with pytest.raises(SystemExit):
        main(["import", str(source), "--out", str(tmp_path / "o"), "--data", "d.hdf5", "--std", "0.3", *named])
    assert asked == [(Path("d.hdf5"), rule)]
