"""The command that runs many: sweep."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dtune.cli.options import parse
from dtune.errors import ConfigError

if TYPE_CHECKING:
    from dtune.experiments.presets import Scale
    from dtune.experiments.sweeps.estimates import Pace
    from dtune.experiments.sweeps.jobs import Engine, Machine
    from dtune.experiments.sweeps.plans import Curve


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Runs datasets x methods x seeds, or those of Table 1 or of a figure; the same command again goes on."""

    table: str | None = None
    """1: the runs of Table 1, 17 datasets x 6 methods."""
    figure: str | None = None
    """The runs of a figure: 1, 2a to 2e, 3, 4a to 4d."""
    datasets: tuple[str, ...] = ()
    """Names, one or more; a table's or a figure's own where none are given."""
    methods: tuple[str, ...] = ()
    """Of dt, iql, odt, odt_td3, ppo, grpo, q_guided; Table 1's where none are given."""
    seeds: int = 3
    """Seeds of each: 0, 1, and so on. Data are shared by all, and a seed's pretrained policy by all methods."""
    pretrainings: int | None = None
    """Policies pretrained on a dataset, which the seeds take in turn; one for each seed where not given. 1: all seeds
    begin with the same, as in the paper's Table 1, where DT has no deviation."""
    scale: str = "paper"
    """`paper`: the paper's sizes; `small`: minutes a run, on a CPU."""
    minutes: float | None = None
    """Training time of each run, the same for all methods, instead of a number of iterations."""
    clock: Literal["wall", "processor"] = "wall"
    """What counts the minutes, and the seconds of the record: `processor` where other work shares the machine."""
    like: Path | None = None
    """With --minutes: folder of runs, or of their records, on a machine like this one. They say how many iterations
    fit into the minutes, over which learning rates fall; stated speeds where not given."""
    iterations: int | None = None
    """Instead of the presets'."""
    out: Path = Path("runs/sweep")
    """Folder of the ledger and the runs: METHOD/DATASET/SCALE/seedN."""
    data: Path | None = None
    """Folder to look for NAME.hdf5 and NAME.*.hdf5 in first, at any depth."""
    jobs: int = 1
    """Runs at a time."""
    threads: int = 1
    """CPU threads of each."""
    device: str = "cpu"
    """Where their networks are: `cpu` or `cuda`."""
    ray: str | None = None
    """Address of a Ray cluster to run them on; local:2 starts one of two nodes on this machine."""
    dry_run: bool = False
    """Only print the commands."""


def sweep(arguments: list[str]) -> None:
    """`dtune sweep`."""
    command = parse(Sweep, "sweep", _spell_out(arguments))
    from dtune.experiments.sweeps.plans import Budget, plan
    from dtune.experiments.sweeps.sweep import announce, run_sweep

    for name in ("seeds", "jobs", "threads"):
        if getattr(command, name) < 1:
            raise ConfigError(f"--{name} must be at least 1, got {getattr(command, name)}")
    if command.pretrainings is not None and command.pretrainings < 1:
        raise ConfigError(f"--pretrainings must be at least 1, got {command.pretrainings}")
    scale = _scale(command)
    if command.minutes is not None and not 0 < command.minutes < math.inf:
        raise ConfigError(f"--minutes must be a finite number above 0, got {command.minutes}")
    if command.like is not None and command.minutes is None:
        raise ConfigError("--like says how many iterations fit into --minutes: give --minutes, or leave out --like")
    datasets, curves = _chosen(command)
    machine = _machine(command)
    files = _files(command, datasets)
    runs = plan(
        datasets,
        curves,
        seeds=command.seeds,
        scale=scale,
        out=command.out,
        files=files,
        budget=Budget(
            minutes=command.minutes, iterations=command.iterations, clock=command.clock, pace=_pace(command.like)
        ),
        pretrainings=command.pretrainings,
        machine=machine,
    )
    if command.dry_run:
        for line in (*_data_commands(command, files), *(run.command for run in runs)):
            print(line)
        announce(runs, None, jobs=command.jobs, out=command.out, say=print)
        return
    run_sweep(runs, command.out, partial(_engine, command, machine), jobs=command.jobs, say=partial(print, flush=True))


def _scale(command: Sweep) -> "Scale":
    if command.scale not in ("paper", "small"):
        raise ConfigError(f"--scale is paper or small, got {command.scale!r}")
    return "small" if command.scale == "small" else "paper"


def _spell_out(arguments: list[str]) -> list[str]:
    """Lets `--dry-run` do without a value."""
    found = []
    for word, following in zip(arguments, [*arguments[1:], ""]):
        found.append(word)
        if word == "--dry-run" and following not in ("True", "False"):
            found.append("True")
    return found


def _chosen(command: Sweep) -> "tuple[Sequence[str], Sequence[Curve]]":
    """Datasets and curves that a command means."""
    from dtune.envs.tasks import DATASETS
    from dtune.experiments.sweeps.plans import FIGURES, TABLE_1, Curve

    if command.table is not None and command.figure is not None:
        raise ConfigError("--table and --figure are two sweeps: the same --out keeps what they share")
    if command.figure is not None:
        if command.figure not in FIGURES:
            raise ConfigError(f"--figure is one of {', '.join(FIGURES)}, got {command.figure!r}")
        if command.methods:
            raise ConfigError("--figure decides the methods: leave out --methods, or --figure")
        figure = FIGURES[command.figure]
        return command.datasets or figure.datasets, figure.curves
    if command.table not in (None, "1"):
        raise ConfigError(f"the table of results is --table 1, got {command.table!r}")
    if command.table is None and not command.datasets:
        raise ConfigError("say what to run: --table 1, --figure 2c, or --datasets and --methods")
    curves = [Curve(method=method) for method in command.methods or TABLE_1]
    return command.datasets or tuple(DATASETS), curves


def _files(command: Sweep, datasets: Sequence[str]) -> dict[str, Path]:
    """The file of each dataset; a random one is recorded first, and what is missing is told at once."""
    from dtune.envs.sources import source
    from dtune.errors import DataError
    from dtune.experiments import presets
    from dtune.experiments.loading import here, places, recording
    from dtune.experiments.run import data_file

    if command.data is not None and not command.data.is_dir():
        raise ConfigError(f"--data {command.data} is no folder: give the one that holds the datasets")
    found, missing = {}, []
    for name in datasets:
        config = presets.pretraining(name, _scale(command))
        own = [] if command.data is None else sorted(command.data.rglob(f"{name}.hdf5"))
        own += [] if command.data is None else sorted(command.data.rglob(f"{name}.*.hdf5"))
        if own:
            found[name] = own[0]
        elif source(name).random:
            found[name] = recording(name, config.random_episodes, 0) if command.dry_run else data_file(config)
        else:
            found[name] = here(name) or places(name)[0]
            missing += [] if found[name].is_file() else [name]
    if missing and not command.dry_run:
        raise DataError(
            f"there are no files of {', '.join(missing)}: `dtune data download NAME` fetches one, --data FOLDER says"
            " where they are, and --datasets leaves some out"
        )
    return found


def _data_commands(command: Sweep, files: dict[str, Path]) -> Iterator[str]:
    """What to type first, where a file is not here."""
    from dtune.envs.sources import source
    from dtune.experiments import presets

    for name, path in files.items():
        if not path.is_file() and source(name).random:
            episodes = presets.pretraining(name, _scale(command)).random_episodes
            yield f"dtune data make {name} --episodes {episodes}"
        elif not path.is_file():
            yield f"dtune data download {name}"


def _pace(like: Path | None) -> "Pace | None":
    """Seconds an iteration of the runs in a folder."""
    if like is None:
        return None
    from dtune.experiments.reports.collect import load
    from dtune.experiments.sweeps.estimates import paces

    return paces(curve for curves in load(like).values() for curve in curves)


def _machine(command: Sweep) -> "Machine":
    from dtune.experiments.sweeps.jobs import Machine
    from dtune.models.device import check_device, choose_device

    if command.ray is not None and command.device not in ("cpu", "cuda"):
        raise ConfigError(f"with --ray, which gives each run a GPU, --device is cpu or cuda, got {command.device!r}")
    if command.dry_run or command.ray is not None:
        check_device(command.device)
    else:
        choose_device(command.device)
    return Machine(threads=command.threads, device=command.device)


def _engine(command: Sweep, machine: "Machine") -> "Engine":
    if command.ray is None:
        from dtune.experiments.sweeps.jobs import LocalEngine

        return LocalEngine(command.jobs)
    from dtune.experiments.sweeps.ray_engine import RayEngine

    return RayEngine(command.ray, command.jobs, machine=machine)
