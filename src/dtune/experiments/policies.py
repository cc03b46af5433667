"""Policies on disk: weights and architecture, without the run they came from."""

import json
import reprlib
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from dtune.errors import ConfigError
from dtune.experiments import checkpoint
from dtune.experiments.sharing import hub
from dtune.models.decision_transformer import DecisionTransformer, DecisionTransformerConfig
from dtune.models.perceptron_policy import PerceptronPolicy, PerceptronPolicyConfig
from dtune.models.policy import TrainablePolicy
from dtune.models.reinformer import Reinformer, ReinformerConfig

DOCUMENT = "policy.json"
StoredPolicy = DecisionTransformer | PerceptronPolicy | Reinformer

KINDS: dict[str, tuple[Any, Any]] = {
    "DecisionTransformer": (DecisionTransformer, DecisionTransformerConfig),
    "PerceptronPolicy": (PerceptronPolicy, PerceptronPolicyConfig),
    "Reinformer": (Reinformer, ReinformerConfig),
}
"""Policies that can be read from their document alone, by the name they have in it, each with its config."""

LARGEST = {"context_length": 4096, "layers": 1000}
"""Settings that cost memory or time whatever the weights hold, and the most a document may ask for."""

_ACCEPTED: dict[Any, tuple[type, ...]] = {int: (int,), float: (float, int)}  # by what a setting is declared as


def describe(policy: StoredPolicy, **about: Any) -> dict[str, Any]:
    """The JSON document that makes a checkpoint's weights usable alone.

    Args:
        policy: whose architecture.
        about: further facts for the reader, such as the dataset and the return to ask for.
    """
    config = replace(policy.config, context_length=policy.context_length)
    return {DOCUMENT: {"kind": type(policy).__name__, "config": asdict(config), **about}}


def load_policy(path: str | Path) -> StoredPolicy:
    """Reads a policy. Executes nothing it reads.

    Args:
        path: a checkpoint, or a run folder (its best checkpoint); where there is neither, `user/name` is the name of a
            repository on Hugging Face, which is fetched.

    Raises:
        ConfigError: if there is no checkpoint at `path`, or not one of a policy in `KINDS`.
        CheckpointError: if a file of it is damaged.
        DataError: if a repository cannot be fetched.
    """
    return _read(Path(path))[0]


def assemble(kind: str, config: dict[str, Any], weights: dict[str, Tensor]) -> StoredPolicy:
    """A policy of a kind in `KINDS`, from what its document says and its weights.

    Before the network is made the two are compared: a few bytes can ask for any number of gigabytes.

    Raises:
        ConfigError: if the document asks for what no network of this kind can be, or for another one than the weights'.
    """
    make, shape = KINDS[kind]
    _check_settings(shape, config)
    wanted = shape(**config)
    held = len(weights), sum(tensor.numel() for tensor in weights.values())
    if wanted.size != held:
        raise ConfigError(
            "the weights are {:,} tensors of {:,} numbers and it asks for {:,} of {:,}".format(*held, *wanted.size)
        )
    policy = make(wanted)
    policy.load_state_dict(weights)
    return policy


def _check_settings(shape: Any, config: dict[str, Any]) -> None:
    """Refuses settings of another type than `shape` declares, and those above `LARGEST`."""
    declared = {field.name: field.type for field in fields(shape)}
    for name, value in config.items():
        accepted = _ACCEPTED.get(declared.get(name), (type(value),))
        if type(value) not in accepted:  # exactly: True is no 1
            raise ConfigError(f"{name} must be a JSON {accepted[0].__name__}, got {reprlib.repr(value)}")
        if name in LARGEST and value > LARGEST[name]:
            raise ConfigError(f"{name} must be at most {LARGEST[name]:,}, got {reprlib.repr(value)}")


def read_about(path: str | Path) -> dict[str, Any]:
    """What a policy's document says beside its architecture: `dataset`, `return_to_go`, …"""
    return _read(Path(path))[1]


def load_weights(policy: TrainablePolicy, path: str | Path) -> None:
    """Puts the weights of a run's best checkpoint into `policy`, which may be of a class of one's own.

    Args:
        policy: of the same shape as the one that the run improved.
        path: a run folder or a checkpoint.

    Raises:
        ConfigError: if there are none, or those of another network.
        CheckpointError: if a file is damaged.
    """
    directory = find_checkpoint(Path(path), checkpoint.WEIGHTS)
    found = safetensors.torch.load(checkpoint.verify(directory)[checkpoint.WEIGHTS])
    theirs, ours = ({name: tuple(value.shape) for name, value in each.items()} for each in (found, policy.state_dict()))
    if theirs != ours:  # before any of them is overwritten
        name = next(name for name in [*ours, *sorted(theirs)] if theirs.get(name) != ours.get(name))
        raise ConfigError(
            f"{directory} has weights of another network ({name} is {theirs.get(name, 'not there')}, here"
            f" {ours.get(name, 'not there')}): give one of the same shape"
        )
    policy.load_state_dict(found)


def find_checkpoint(path: Path, holding: str = DOCUMENT) -> Path:
    """The checkpoint meant by a path: itself, or the best of a run folder (the last, where none was judged).

    It is fetched from Hugging Face where the path is `user/name` and there is no folder `user`.

    Args:
        path: what somebody typed.
        holding: a file that the checkpoint has.

    Raises:
        ConfigError: if there is none.
        DataError: if it cannot be fetched.
    """
    if hub.is_repository(str(path)):
        path = hub.pull(str(path))
    for candidate in (path, path / "checkpoints" / "best", path / "best", path / "checkpoints" / "last"):
        if (candidate / holding).is_file():
            return candidate
    where = "give a run folder, or one of the folders in its checkpoints/"
    if not path.exists():
        raise ConfigError(f"{path} is not there: {where}")
    raise ConfigError(
        f"{path} holds no policy of dtune's: {where}; `dtune import` reads a model.pt or a folder of save_pretrained,"
        " and dtune.load_weights a run of a policy of your own"
    )


def _read(path: Path) -> tuple[StoredPolicy, dict[str, Any]]:
    directory = find_checkpoint(path)
    files = checkpoint.verify(directory)
    try:
        about = dict(json.loads(files[DOCUMENT]))
        kind = about.pop("kind", None)
        if kind in KINDS:
            return assemble(kind, about.pop("config"), safetensors.torch.load(files[checkpoint.WEIGHTS])), about
    except (ConfigError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        said = str(error) if isinstance(error, ConfigError) else repr(error)
        raise checkpoint.CheckpointError(
            f"{directory} does not hold the policy its {DOCUMENT} describes ({' '.join(said.split())[:200]}):"
            " give a checkpoint that dtune wrote"
        ) from error
    raise ConfigError(f"{directory}/{DOCUMENT} does not describe a {' or '.join(KINDS)}: nothing else is read here")
