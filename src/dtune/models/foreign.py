"""Decision transformers of others: online-dt's `model.pt`, and Hugging Face's `DecisionTransformerModel` folders.

Both are GPT-2 blocks over the same three tokens, so they become a `DecisionTransformer` with equal outputs. Nothing in
a file is executed: tensors and plain values are all that is unpickled.
"""

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy._core.multiarray import _reconstruct  # what a pickled array is made with: online-dt saves numpy's generator
from safetensors import SafetensorError
from torch import Tensor

from dtune.errors import ConfigError, DataError
from dtune.models.decision_transformer import (
    LOG_STD_MAX,
    LOG_STD_MIN,
    Activation,
    DecisionTransformer,
    DecisionTransformerConfig,
)

_UNUSED = ("predict_state.", "predict_return.", "encoder.wte.", "transformer.wte.")
_BUFFERS = (".attn.bias", ".attn.masked_bias")
_LAYOUT = {
    "ln_1": "norm_attention", "attn.c_attn": "qkv", "attn.c_proj": "project", "ln_2": "norm_mlp",
    "mlp.c_fc": "expand", "mlp.c_proj": "contract",
}  # fmt: skip
_OUTSIDE = {
    "embed_return": "embed_return", "embed_state": "embed_observation", "embed_action": "embed_action",
    "embed_ln": "norm_embedding",
}  # fmt: skip
_ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu", "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}  # fmt: skip
_PLAIN = {"layer_norm_epsilon": 1e-5, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
          "add_cross_attention": False, "action_tanh": True}  # fmt: skip
"""Settings of Hugging Face's that have one value here."""


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """What a file does not say of its model."""

    return_scale: float = 0.001
    """Factor from reward units to the network's return token: 1/1000 for most, 1 for online-dt on AntMaze."""
    std: float = 0.2
    """σ before squashing, for a deterministic head: how far the first finetuned actions stray."""
    context_length: int | None = None
    """Steps of history; the file's where it says so, else 20."""
    heads: int | None = None
    """Attention heads a block, where the file does not say."""

    def __post_init__(self) -> None:
        low, high = math.exp(LOG_STD_MIN), math.exp(LOG_STD_MAX)
        if not low < self.std < high:
            raise ConfigError(f"std must lie between {low:.4f} and {high:.2f}, where σ is bounded, got {self.std}")


def read_foreign(path: str | Path, known: Foreign | None = None) -> tuple[DecisionTransformer, list[str]]:
    """Reads online-dt's `model.pt`, or a folder that Hugging Face's `save_pretrained` wrote.

    Args:
        path: the file, or the folder.
        known: what the file does not say.

    Returns:
        The policy, with statistics of 0 and 1: neither format keeps those of its observations. And sentences that its
        user ought to read.

    Raises:
        DataError: if it cannot be read, or holds another kind of model.
        ConfigError: if something it does not say has to be given.
    """
    path, known = Path(path), known or Foreign()
    if not path.exists():
        raise DataError(f"{path} is not there: give a model.pt, or a folder that `save_pretrained` wrote")
    if path.is_dir():
        settings, weights = _read_folder(path)
        encoder = "encoder"
    else:
        settings, weights = _read_file(path)
        encoder = "transformer"
    try:
        return _convert(path, settings, dict(weights), known, encoder)
    except KeyError as error:
        raise DataError(
            f"{path} has no {error}: it is not a decision transformer of online-dt or Hugging Face"
        ) from None


def _read_file(path: Path) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    """The settings and weights of online-dt's checkpoint, or of its model's `state_dict` alone."""
    found = _unpickle(path)
    if "model_state_dict" not in found:
        return {}, found
    args = found.get("args") or {}
    settings = {"n_head": args.get("n_head"), "context_length": args.get("K")}
    return settings | {"activation_function": args.get("activation_function", "relu")}, found["model_state_dict"]


def _read_folder(path: Path) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    """The settings and weights of a Hugging Face folder, safetensors before pickles."""
    try:
        settings = json.loads((path / "config.json").read_text())
        safe, pickled = path / "model.safetensors", path / "pytorch_model.bin"
        if not (safe.is_file() or pickled.is_file()):
            raise FileNotFoundError(f"there is no {safe.name}")
        weights = safetensors.torch.load_file(safe) if safe.is_file() else _unpickle(pickled)
    except DataError:
        raise
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        said = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read ({said}): a folder needs config.json and model.safetensors") from error
    for name, value in _PLAIN.items():
        if settings.get(name, value) != value:
            raise DataError(f"{path} has {name}={settings[name]!r}; only {value!r} has a counterpart here")
    return {
        "n_head": settings.get("n_head", 1),
        "activation_function": settings.get("activation_function", "relu"),
    }, weights


def _unpickle(path: Path) -> Mapping[str, Any]:
    """Tensors, arrays and plain values, and never code."""
    array: list[Any] = [_reconstruct, (_reconstruct, "numpy.core.multiarray._reconstruct"), np.ndarray, np.dtype]
    try:
        with torch.serialization.safe_globals([*array, np.dtypes.UInt32DType]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is refused is said below
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a stranger's file may make the reader say anything
        said = f"{path} cannot be read as tensors and plain values alone ({type(error).__name__} in PyTorch's reader)"
        raise DataError(f"{said}: give a checkpoint of online-dt, or a model's weights") from error
    if not isinstance(found, Mapping):
        raise DataError(f"{path} holds a {type(found).__name__}: give online-dt's model.pt or a model's state_dict")
    return found


def _convert(
    path: Path, settings: dict[str, Any], weights: dict[str, Tensor], known: Foreign, encoder: str
) -> tuple[DecisionTransformer, list[str]]:
    """Takes every tensor to its place; what is left over was not understood."""
    notes = [
        "observations are not normalised, because the file does not say by what: give the data it was trained on"
        " (--data), or set_statistics"
    ]
    state: dict[str, Tensor] = {}
    layers = 0
    for theirs, ours in _OUTSIDE.items():
        _move(weights, theirs, state, ours)
    while f"{encoder}.h.{layers}.ln_1.weight" in weights:
        for theirs, ours in _LAYOUT.items():
            _move(weights, f"{encoder}.h.{layers}.{theirs}", state, f"blocks.{layers}.{ours}")
        layers += 1
    _move(weights, f"{encoder}.ln_f", state, "norm_final")
    clock = _timestep_embedding(weights, encoder, state)
    notes += _move_head(weights, state, known.std)
    left = [key for key in weights if not key.startswith(_UNUSED) and not key.endswith(_BUFFERS)]
    if left or not layers:
        raise DataError(f"{path} is another kind of model: {left or 'it has no blocks'} has no counterpart here")
    policy = DecisionTransformer(_shape(path, settings, state, known, layers, clock))
    state |= {name: value for name, value in policy.state_dict().items() if name.startswith("observation_")}
    try:
        policy.load_state_dict(state)
    except RuntimeError as error:  # an inner layer of another width, say
        raise DataError(f"{path} does not fit together: {' '.join(str(error).split())[:200]}") from error
    return policy, notes


def _move(weights: dict[str, Tensor], theirs: str, state: dict[str, Tensor], ours: str) -> None:
    """A weight and its bias; GPT-2 keeps the weights of its linear maps transposed."""
    weight = weights.pop(f"{theirs}.weight").float()
    state[f"{ours}.weight"] = weight.T.contiguous() if ".c_" in theirs else weight
    state[f"{ours}.bias"] = weights.pop(f"{theirs}.bias").float()


def _timestep_embedding(weights: dict[str, Tensor], encoder: str, state: dict[str, Tensor]) -> int:
    """How many timesteps have an embedding: Hugging Face's always, online-dt's only with an ordering."""
    unused = weights.pop("embed_timestep.weight", None)
    table = weights.pop("embed_ordering.weight", None)
    if encoder == "encoder":
        table = unused
        # GPT-2's own positions are all 0 there: one vector more behind the first norm
        state["norm_embedding.bias"] = state["norm_embedding.bias"] + weights.pop("encoder.wpe.weight")[0].float()
    if table is None:
        return 0
    state["embed_timestep.weight"] = table.float()
    return len(table)


def _move_head(weights: dict[str, Tensor], state: dict[str, Tensor], std: float) -> list[str]:
    """The action head; a deterministic one gets a deviation, the same everywhere until it learns another."""
    if "predict_action.mu.weight" in weights:
        _move(weights, "predict_action.mu", state, "head_mean")
        _move(weights, "predict_action.log_std", state, "head_log_std")
        return []
    _move(weights, "predict_action.0", state, "head_mean")
    bounded = 2 * (math.log(std) - LOG_STD_MIN) / (LOG_STD_MAX - LOG_STD_MIN) - 1
    state["head_log_std.weight"] = torch.zeros_like(state["head_mean.weight"])
    state["head_log_std.bias"] = torch.full_like(state["head_mean.bias"], math.atanh(bounded))
    return [f"its head is deterministic: actions get a standard deviation of {std} before tanh (--std)"]


def _shape(
    path: Path, settings: dict[str, Any], state: dict[str, Tensor], known: Foreign, layers: int, clock: int
) -> DecisionTransformerConfig:
    """The network's shape, by its tensors and by what the file or its user says."""
    heads = settings.get("n_head") or known.heads
    if heads is None:
        raise ConfigError(f"{path} does not say how many attention heads its blocks have: say it with --heads")
    name = settings.get("activation_function", "relu")
    if name not in _ACTIVATIONS:
        raise DataError(f"{path} has the activation {name!r}: known are {', '.join(_ACTIVATIONS)}")
    width, observation_dim = state["embed_observation.weight"].shape
    return DecisionTransformerConfig(
        observation_dim=observation_dim,
        action_dim=len(state["head_mean.bias"]),
        context_length=settings.get("context_length") or 20 if known.context_length is None else known.context_length,
        layers=layers,
        heads=heads,
        width=width,
        return_scale=known.return_scale,
        activation=_ACTIVATIONS[name],
        timestep_embedding=clock,
    )
