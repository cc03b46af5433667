"""Policies on disk: weights and architecture, without the run they came from."""

import json
from dataclasses import asdict, replace
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
from dtune.models.reinformer import Reinformer, ReinformerConfig

DOCUMENT = "policy.json"
StoredPolicy = DecisionTransformer | PerceptronPolicy | Reinformer

KINDS: dict[str, tuple[Any, Any]] = {
    "DecisionTransformer": (DecisionTransformer, DecisionTransformerConfig),
    "PerceptronPolicy": (PerceptronPolicy, PerceptronPolicyConfig),
    "Reinformer": (Reinformer, ReinformerConfig),
}
"""Policies that can be read from their document alone, by the name they have in it, each with its config."""


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
    """A policy of a kind in `KINDS`, from what its document says and its weights."""
    make, shape = KINDS[kind]
    policy = make(shape(**config))
    policy.load_state_dict(weights)
    return policy


def read_about(path: str | Path) -> dict[str, Any]:
    """What a policy's document says beside its architecture: `dataset`, `return_to_go`, …"""
    return _read(Path(path))[1]


def find_checkpoint(path: Path) -> Path:
    """The checkpoint meant by a path: itself, or the best of a run folder (the last, where none was judged).

    It is fetched from Hugging Face where the path is `user/name` and there is no folder `user`.

    Raises:
        ConfigError: if there is none.
        DataError: if it cannot be fetched.
    """
    if hub.is_repository(str(path)):
        path = hub.pull(str(path))
    for candidate in (path, path / "checkpoints" / "best", path / "best", path / "checkpoints" / "last"):
        if (candidate / DOCUMENT).is_file():
            return candidate
    raise ConfigError(f"{path} holds no policy: give a run folder, or one of the folders in its checkpoints/")


def _read(path: Path) -> tuple[StoredPolicy, dict[str, Any]]:
    directory = find_checkpoint(path)
    files = checkpoint.verify(directory)
    try:
        about = dict(json.loads(files[DOCUMENT]))
        kind = about.pop("kind", None)
        if kind not in KINDS:
            raise ConfigError(
                f"{directory}/{DOCUMENT} does not describe a {' or '.join(KINDS)}: nothing else is read here"
            )
        policy = assemble(kind, about.pop("config"), safetensors.torch.load(files["policy.safetensors"]))
    except ConfigError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise checkpoint.CheckpointError(
            f"{directory} does not hold the policy its {DOCUMENT} describes ({' '.join(repr(error).split())[:200]}):"
            " give a checkpoint that dtune wrote"
        ) from error
    return policy, about
