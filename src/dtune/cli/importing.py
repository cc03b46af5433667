"""`dtune import`: somebody else's decision transformer becomes a checkpoint."""

import math
from dataclasses import dataclass
from pathlib import Path

import tyro

from dtune.cli.options import parse
from dtune.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Import:
    """Makes a checkpoint of online-dt's model.pt, or of a folder of Hugging Face's DecisionTransformerModel.

    Its outputs are the same; nothing in the file is executed.
    """

    path: tyro.conf.Positional[Path]
    """The file, or the folder with config.json and model.safetensors (or pytorch_model.bin)."""
    out: Path
    """Where to write; `dtune finetune … --policy OUT` starts from it."""
    data: Path | None = None
    """D4RL's HDF5 file it was trained on: gives the mean and deviation of observations, which neither format
    keeps. Left out, observations reach the network as they are."""
    dataset: str | None = None
    """Name of that dataset, as hopper-medium-v2, for `dtune evaluate`."""
    return_to_go: float | None = None
    """Return to ask for when it is evaluated, in reward units."""
    return_scale: float = 0.001
    """Factor from reward units to its return token: 1 for online-dt on AntMaze."""
    std: float = 0.2
    """Standard deviation before tanh, for a deterministic head."""
    context_length: int | None = None
    """Steps of history; the file's where it says so, else 20."""
    heads: int | None = None
    """Attention heads, where the file does not say."""


def import_policy(arguments: list[str]) -> None:
    """`dtune import PATH --out DIR`."""
    command = parse(Import, "import", arguments)
    from dtune.data.datasets import check_fits
    from dtune.envs.sources import SOURCES
    from dtune.envs.tasks import task_info
    from dtune.experiments import checkpoint
    from dtune.experiments.loading import load_dataset
    from dtune.experiments.policies import describe
    from dtune.models.foreign import Foreign, read_foreign

    info = None if command.dataset is None else task_info(command.dataset)
    if command.return_to_go is not None and not math.isfinite(command.return_to_go):
        raise ConfigError(f"--return-to-go is a finite number, got {command.return_to_go}")
    if (command.out / "checkpoints").exists():
        raise ConfigError(f"{command.out} holds checkpoints already: choose another folder")
    foreign = Foreign(
        return_scale=command.return_scale,
        std=command.std,
        context_length=command.context_length,
        heads=command.heads,
    )
    policy, notes = read_foreign(command.path, foreign)
    shape = policy.config
    if command.data is not None:
        known = SOURCES.get(command.dataset or "")
        dataset = load_dataset(command.data, splitting=known.splitting if known else None)
        check_fits(dataset, shape.observation_dim, shape.action_dim)
        policy.set_statistics(*dataset.observation_statistics())
        notes = notes[1:]
    if info is not None and (shape.observation_dim, shape.action_dim) != (info.observation_dim, info.action_dim):
        raise ConfigError(
            f"{command.path} observes {shape.observation_dim} numbers and acts with {shape.action_dim}, and {info.name}"
            f" has {info.observation_dim} and {info.action_dim}: name the --dataset it was trained on, or leave it out"
        )
    about = {"dataset": command.dataset, "return_to_go": command.return_to_go, "imported_from": str(command.path)}
    documents = describe(policy, **{name: value for name, value in about.items() if value is not None})
    state = {"algorithm": {"policy": policy.state_dict()}}
    written = checkpoint.save(command.out, 0, state, best=0, documents=documents)
    print(
        f"{shape.layers} layers of {shape.width}, {shape.heads} heads, context {shape.context_length}:"
        f" observes {shape.observation_dim} numbers, acts with {shape.action_dim}"
    )
    for note in notes:
        print(f"note: {note}")
    print(f"checkpoint: {written}")
