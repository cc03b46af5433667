"""The commands that train and judge: demo, pretrain, finetune, evaluate."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from dtune.cli.options import Fields, named, parse, read_architecture, read_scale
from dtune.errors import ConfigError

if TYPE_CHECKING:
    from dtune.experiments.methods import Method
    from dtune.experiments.presets import PretrainConfig


def pretrain(arguments: list[str]) -> None:
    """`dtune pretrain DATASET`."""
    from dtune.experiments import presets, run

    name, rest = named("pretrain", arguments, "dataset", list(presets.TABLE_6))
    chosen, network = read_scale(rest), read_architecture(rest)

    @dataclass(frozen=True, kw_only=True)
    class Pretrain:
        """Fits a decision transformer to offline data; the same command again continues."""

        scale: str = chosen
        """`paper`: 4 layers of 512, hours on a CPU; `small`: 2 layers of 64, a minute."""
        architecture: str = network
        """`dt`, or `reinformer`, which predicts the return it acts on (Fig. 4a)."""
        out: Path | None = None
        """Run folder; runs/pretrain/DATASET/SCALE/seedN by default (a Reinformer's: SCALE-reinformer)."""
        data: Path | None = None
        """D4RL's HDF5 file of the dataset. Random datasets are recorded where none is given."""
        mirror: Literal["wandb", "trackio"] | None = None
        """Repeats the metrics to Weights & Biases (offline unless $WANDB_MODE says otherwise) or trackio."""
        run: Fields[presets.PretrainConfig] = field(
            default_factory=lambda: presets.pretraining(name, chosen, 0, network)
        )

    command = parse(Pretrain, f"pretrain {name}", rest)
    folder = command.out or _pretrained(name, _place(chosen, network), command.run.seed)
    _finish(folder, run.pretrain_preset(command.run, folder, command.data, mirror=command.mirror))


def finetune(arguments: list[str]) -> None:
    """`dtune finetune METHOD/DATASET`."""
    from dtune.experiments import presets, run
    from dtune.experiments.methods import ALGORITHMS
    from dtune.models.device import choose_device

    choices = [f"{method}/{dataset}" for method in presets.METHODS for dataset in presets.TABLE_6]
    name, rest = named("finetune", arguments, "method and dataset", choices)
    method, slash, dataset = name.partition("/")
    if not slash:
        raise ConfigError(
            f"{name!r} is not METHOD/DATASET, as grpo/hopper-random-v2: the"
            f" methods are {', '.join(presets.METHODS)}, and `dtune data list` shows the datasets"
        )
    chosen, network = read_scale(rest), read_architecture(rest)
    preset = presets.finetuning(method, dataset, chosen, network)

    @dataclass(frozen=True, kw_only=True)
    class Finetune:
        """Improves a pretrained decision transformer online; the same command again continues."""

        scale: str = chosen
        """`paper`: the paper's sizes, days on a CPU; `small`: minutes."""
        architecture: str = network
        """`dt` or `reinformer` (Fig. 4a): what to pretrain where no policy is given, and with which context."""
        out: Path | None = None
        """Run folder; runs/METHOD/DATASET/SCALE/seedN by default (a Reinformer's: SCALE-reinformer)."""
        policy: Path | None = None
        """Run folder, checkpoint, or `user/name` on Hugging Face, to start from; where none is given, pretraining comes
        first, with seed 0 for all seeds of this. IQL has its own."""
        data: Path | None = None
        """D4RL's HDF5 file for that pretraining, and for the methods that go on with it: ODT, ODT+TD3, IQL and Q-guided
        GRPO-DT. Random datasets are recorded where none is given."""
        mirror: Literal["wandb", "trackio"] | None = None
        """Repeats the metrics to Weights & Biases (offline unless $WANDB_MODE says otherwise) or trackio."""
        run: Fields[presets.FinetuneConfig] = field(default_factory=lambda: preset)

    command = parse(Finetune, f"finetune {name}", rest)
    start, learner = command.policy, ALGORITHMS[type(command.run.algorithm)]
    _check_start(start, command.data, network, learner)
    config = presets.pretraining(dataset, chosen, 0, network)
    config = replace(config, threads=command.run.threads, device=command.run.device)
    choose_device(command.run.device)  # before the pretraining, which is none of its causes
    folder = command.out or Path("runs") / method / dataset / _place(chosen, network) / f"seed{command.run.seed}"
    data = (command.data or run.data_file(config)) if learner.offline else None
    if start is None and learner.policy is None:
        pretrained = _pretrained(dataset, _place(chosen, network), 0)
        run.refuse_early(command.run, folder, pretrained, command.mirror)
        start = _pretrain_first(config, pretrained, command.data)
    _finish(folder, run.finetune_preset(command.run, folder, start, data, mirror=command.mirror))


def _check_start(start: Path | None, data: Path | None, network: str, learner: "Method") -> None:
    """Refuses a policy to begin with that does not go together with what else was asked for."""
    from dtune.experiments.policies import load_policy

    if start is not None and data is not None and not learner.offline:
        raise ConfigError("--data is what to pretrain on, and --policy is pretrained: leave out one of them")
    if network == "reinformer" and learner.policy is not None:
        raise ConfigError(f"{learner.name} begins with a policy of its own, not a Reinformer: leave out --architecture")
    if start is not None and start.exists() and network == "reinformer":
        kind = type(load_policy(start)).__name__
        if kind != "Reinformer":
            raise ConfigError(
                f"{start} holds a {kind}, and no Reinformer: leave out --architecture, or --policy to pretrain one"
            )


def _pretrain_first(config: "PretrainConfig", folder: Path, data: Path | None) -> Path:
    """The policy that a finetuning begins with where none is given."""
    from dtune.experiments.run import pretrain_preset

    try:
        pretrain_preset(config, folder, data, wait=True)
    except ConfigError as error:
        hint = "(This is the pretraining; --policy PATH begins with a policy that is there.)"
        raise ConfigError(f"{error}\n{hint}") from error
    return folder / "checkpoints" / "last"


def evaluate(arguments: list[str]) -> None:
    """`dtune evaluate PATH`."""
    from dtune.experiments import run

    @dataclass(frozen=True, kw_only=True)
    class Evaluate:
        """Judges a policy with mean actions."""

        path: tyro.conf.Positional[Path]
        """A run folder (its best checkpoint), a checkpoint, or `user/name` on Hugging Face."""
        episodes: int = 20
        """How many."""
        return_to_go: float | None = None
        """Return asked for, in reward units; what the policy was finetuned with by default."""
        threads: int = 1
        """CPU threads."""
        device: str = "cpu"
        """Where the network is: `cpu` or `cuda`."""

    command = parse(Evaluate, "evaluate", arguments)
    found = run.evaluate(
        command.path, episodes=command.episodes, return_to_go=command.return_to_go, threads=command.threads,
        device=command.device,
    )  # fmt: skip
    for key, value in found.items():
        print(f"{key:26} {value:.2f}" if isinstance(value, float) else f"{key:26} {value}")


def demo(arguments: list[str]) -> None:
    """`dtune demo`."""
    from dtune.experiments.demo import DemoConfig, run_demo

    run_demo(parse(DemoConfig, "demo", arguments))


def _place(scale: str, architecture: str) -> str:
    """The part of a run folder's path that tells presets of a dataset apart."""
    return scale if architecture == "dt" else f"{scale}-{architecture}"


def _pretrained(dataset: str, scale: str, seed: int) -> Path:
    return Path("runs") / "pretrain" / dataset / scale / f"seed{seed}"


def _finish(folder: Path, rows: list[dict[str, float]]) -> None:
    """What came of a run, said by the first of its processes."""
    if os.environ.get("RANK", "0") != "0":
        return
    judged = [row for row in rows if "eval/return" in row]
    first, last = judged[0], judged[-1]
    for name, row in (("before", first), ("after", last)):
        print(
            f"{name:7} return {row['eval/return']:8.1f} ± {row['eval/return_std']:.1f}"
            f"   score {row['eval/normalized_score']:6.1f}   length {row['eval/length']:6.1f}"
        )
    print(f"run folder: {folder}")
