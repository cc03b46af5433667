"""Which runs the paper's Table 1 and Figures 1 to 4 are made of; and each of them as a command.

A run's folder is `METHOD[+VARIANT]/DATASET/SCALE/seedN` below that of its sweep. Runs that two figures share, and those
that a figure shares with Table 1, are the same run.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from dtune.envs.tasks import DATASETS, task_info
from dtune.errors import ConfigError
from dtune.experiments import presets
from dtune.experiments.loop import Clock
from dtune.experiments.methods import ALGORITHMS
from dtune.experiments.presets import Architecture, FinetuneConfig, Scale
from dtune.experiments.sweeps.estimates import SECONDS, Pace
from dtune.experiments.sweeps.jobs import ONE_THREAD, Machine

TABLE_1 = ("dt", "iql", "odt", "odt_td3", "ppo", "grpo")
"""Methods, in the order of its columns."""

HORIZON = "horizon"
"""In place of a value: the steps of a whole episode."""

UNLIMITED = 1_000_000
"""Iterations of a run that only its time limit ends."""

EVALUATIONS = {"small": 10, "paper": 20}
"""Of such a run, by its scale; the last three make its score."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One curve of a figure, or column of Table 1."""

    method: str = "grpo"
    """A key of `presets.METHODS`."""
    variant: str = ""
    """What it is called beside the preset; a variant that changes nothing of a preset is the preset."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Values by dotted name of a field of `FinetuneConfig`."""
    architecture: Architecture = "dt"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """The runs of a figure."""

    datasets: tuple[str, ...]
    """Those the paper names, or, where its text names none, those chosen here."""
    curves: tuple[Curve, ...]


def _varied(name: str, **values: Any) -> tuple[Curve, ...]:
    """GRPO-DT with each value of a field."""
    return tuple(Curve(variant=variant, changes={f"algorithm.{name}": value}) for variant, value in values.items())


_GRPO, _PPO = Curve(), Curve(method="ppo")
_CHOSEN = ("ant-medium-v2",)  # the text names no dataset: Fig. 2a's
_RELABEL = {"algorithm.relabel": True}

FIGURES = {
    # Sec. 3.1 speaks of Hopper and of Adroit's Door, without saying which of their datasets
    "1": Figure(
        datasets=("hopper-medium-v2", "door-human-v1"),
        curves=(
            _GRPO, Curve(variant="relabel", changes=_RELABEL),
            _PPO, Curve(method="ppo", variant="relabel", changes=_RELABEL),
        ),
    ),
    "2a": Figure(
        datasets=("ant-medium-v2",),
        curves=(
            _GRPO,
            Curve(
                variant="full",
                changes={
                    "algorithm.subtrajectory_length": HORIZON, "algorithm.lookahead_length": 0,
                    "algorithm.reset_selection": "start",
                },
            ),
        ),
    ),
    "2b": Figure(datasets=_CHOSEN, curves=(_GRPO, *_varied("shared_start", mixed=False))),
    "2c": Figure(datasets=_CHOSEN, curves=_varied("update.ratio", sequence="sequence", token="token")),
    "2d": Figure(datasets=_CHOSEN, curves=_varied("reset_selection", active="active", uniform="uniform")),
    "2e": Figure(datasets=_CHOSEN, curves=_varied("update.ratio", sequence="sequence", geometric="geometric")),
    "3": Figure(datasets=tuple(DATASETS), curves=tuple(Curve(method=method) for method in TABLE_1[1:])),
    "4a": Figure(datasets=_CHOSEN, curves=(_GRPO, Curve(variant="reinformer", architecture="reinformer"))),
    "4b": Figure(datasets=("ant-medium-replay-v2",), curves=(_GRPO, Curve(method="q_guided"))),
    # the lengths are on the figures' axes only: these are chosen around the presets'
    "4c": Figure(
        datasets=_CHOSEN, curves=(_GRPO, *_varied("subtrajectory_length", traj3=3, traj50=50, traj100=100))
    ),
    "4d": Figure(datasets=_CHOSEN, curves=(_GRPO, *_varied("lookahead_length", eval0=0, eval30=30, eval100=100))),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of a sweep."""

    key: str
    """Its folder, below the sweep's."""
    arguments: tuple[str, ...]
    """Of `dtune`."""
    after: str | None = None
    """Key of the pretraining it begins with."""
    method: str
    """A key of `presets.METHODS`, or `pretrain`."""
    dataset: str
    scale: Scale
    iterations: int
    time_limit: float | None = None
    """Seconds."""

    @property
    def command(self) -> str:
        """What to type."""
        return shlex.join(("dtune", *self.arguments))


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long the runs of a sweep last."""

    minutes: float | None = None
    """Of training, the same for every method; None: as many iterations as the preset has."""
    iterations: int | None = None
    """Instead of the preset's; with `minutes`, whichever ends first."""
    clock: Clock = "wall"
    """What counts the minutes, and the seconds of the record."""
    pace: Pace | None = None
    """Seconds an iteration as measured, of every method and dataset; None: as stated. They say how many iterations
    fit into the minutes, and learning rates fall over so many."""


def plan(
    datasets: Sequence[str],
    curves: Sequence[Curve],
    *,
    seeds: int,
    scale: Scale,
    out: Path,
    files: Mapping[str, Path],
    budget: Budget = Budget(),
    pretrainings: int | None = None,
    machine: Machine = ONE_THREAD,
) -> list[Run]:
    """The runs of datasets x curves x seeds, each after the pretraining it shares with the others.

    Args:
        datasets: names, each a row of Table 6.
        curves: methods and their variants.
        seeds: 0 to `seeds` - 1.
        scale: of all.
        out: the sweep's folder.
        files: the offline data of each dataset.
        budget: how long they last.
        pretrainings: policies pretrained on a dataset, seeds 0 to `pretrainings` - 1, that runs take in turn; None:
            each run has that of its own seed.
        machine: what each has to run on.

    Raises:
        ConfigError: for a method or a dataset without a preset.
    """
    found: dict[str, Run] = {}
    for dataset in datasets:
        for seed in range(seeds):
            for curve in curves:
                first = seed if pretrainings is None else seed % pretrainings
                for run in _runs(curve, dataset, (seed, first), scale, out, files[dataset], budget, machine):
                    found.setdefault(run.key, run)
    return sorted(found.values(), key=lambda run: run.method != "pretrain")


def settle(curve: Curve, dataset: str, scale: Scale, budget: Budget = Budget()) -> tuple[str, FinetuneConfig]:
    """A curve's method as folders and records call it, `grpo+token`, and its config; seed 0.

    At scale `small` GRPO-DT's preset has a ratio an action, so that `grpo` itself is the curve "token" there.
    """
    config = _within(budget, curve, dataset, scale)
    base, changes = config, _resolve(curve.changes, dataset)
    for name, value in changes.items():
        config = _change(config, name.split("."), value)
    differs = config != base or curve.architecture != "dt"
    return curve.method + (f"+{curve.variant}" if curve.variant and differs else ""), config


def _within(budget: Budget, curve: Curve, dataset: str, scale: Scale) -> FinetuneConfig:
    """The preset, for the time or the iterations there are; each method is judged equally often in its time."""
    if budget.minutes is None:
        iterations = budget.iterations
        if not presets.finetuning(curve.method, dataset, scale).iterations:
            iterations = None  # DT is judged, whatever the others do
        return presets.finetuning(curve.method, dataset, scale, curve.architecture, iterations=iterations)
    seconds = 60 * budget.minutes
    if not presets.finetuning(curve.method, dataset, scale).iterations:
        return presets.finetuning(curve.method, dataset, scale, curve.architecture)  # DT is judged only
    expected = budget.iterations or max(1, round(seconds / _pace(budget, curve, dataset, scale)))
    config = presets.finetuning(curve.method, dataset, scale, curve.architecture, iterations=expected)
    return replace(
        config, iterations=budget.iterations or UNLIMITED, time_limit=seconds,
        evaluate_seconds=seconds / EVALUATIONS[scale],
    )  # fmt: skip


def _pace(budget: Budget, curve: Curve, dataset: str, scale: Scale) -> float:
    """Seconds an iteration: of the variant, of the method, or stated where nothing was measured at all."""
    if budget.pace is None:
        return SECONDS[scale][curve.method]
    for name in (f"{curve.method}+{curve.variant}", curve.method):
        if (name, dataset) in budget.pace:
            return budget.pace[name, dataset]
    raise ConfigError(
        f"no measured run of {curve.method} on {dataset}: run a few iterations of it into the folder of --like"
        f" (dtune sweep --datasets {dataset} --methods {curve.method} --scale {scale} --iterations 10 --out FOLDER), or"
        " leave out --like"
    )


def _runs(
    curve: Curve, dataset: str, seeds: tuple[int, int], scale: Scale, out: Path, data: Path, budget: Budget,
    machine: Machine,
) -> list[Run]:  # fmt: skip
    """A run, and before it the pretraining it needs; their seeds."""
    seed, first = seeds
    name, config = settle(curve, dataset, scale, budget)
    config = replace(config, seed=seed, network_threads=1, clock=budget.clock, **vars(machine))
    place = scale if curve.architecture == "dt" else f"{scale}-{curve.architecture}"
    key, learner = f"{name}/{dataset}/{place}/seed{seed}", ALGORITHMS[type(config.algorithm)]
    shared = ["--scale", scale, *(["--architecture", curve.architecture] if curve.architecture != "dt" else [])]
    arguments = ["finetune", f"{curve.method}/{dataset}", *shared, "--out", str(out / key)]
    runs: list[Run] = []
    if learner.policy is None:
        runs.append(_pretraining(curve.architecture, dataset, first, scale, shared, out, data, place, machine))
        arguments += ["--policy", str(out / runs[0].key / "checkpoints" / "last")]
    if learner.offline:
        arguments += ["--data", str(data)]
    preset = presets.finetuning(curve.method, dataset, scale, curve.architecture)
    own = Run(
        key=key,
        arguments=(*arguments, *_options(preset, config)),
        after=runs[0].key if runs else None,
        method=curve.method,
        dataset=dataset,
        scale=scale,
        iterations=config.iterations,
        time_limit=config.time_limit,
    )
    return [*runs, own]


def _pretraining(
    architecture: Architecture, dataset: str, seed: int, scale: Scale, shared: list[str], out: Path, data: Path,
    place: str, machine: Machine,
) -> Run:  # fmt: skip
    config = replace(presets.pretraining(dataset, scale, seed, architecture), **vars(machine))
    key = f"pretrain/{dataset}/{place}/seed{seed}"
    options = _options(presets.pretraining(dataset, scale, 0, architecture), config)
    return Run(
        key=key,
        arguments=("pretrain", dataset, *shared, "--out", str(out / key), "--data", str(data), *options),
        method="pretrain",
        dataset=dataset,
        scale=scale,
        iterations=config.iterations,
    )


def _resolve(changes: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    horizon = task_info(dataset).horizon
    return {name: horizon if value == HORIZON else value for name, value in changes.items()}


def _change(config: Any, path: Sequence[str], value: Any) -> Any:
    """A config with one field of a part of it changed."""
    name, *rest = path
    if name not in {part.name for part in fields(config)}:
        raise ConfigError(f"{type(config).__name__} has no {name}: that variant is not one of this method")
    return replace(config, **{name: _change(getattr(config, name), rest, value) if rest else value})


def _options(preset: Any, config: Any, prefix: str = "--") -> list[str]:
    """What to add to a command for `preset` to run `config`."""
    found = []
    for part in fields(preset):
        before, now = getattr(preset, part.name), getattr(config, part.name)
        option = prefix + part.name.replace("_", "-")
        if is_dataclass(before):
            found += _options(before, now, f"{option}.")
        elif before != now:
            found += [option, str(now)]
    return found
