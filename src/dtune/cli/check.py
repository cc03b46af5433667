"""`dtune check`: what is right and what is wrong with somebody's environment."""

import sys
from dataclasses import dataclass

import tyro

from dtune.cli.options import parse
from dtune.errors import ConfigError, SimulatorError

_HELP = """usage: dtune check env ID [options]

Walks an environment for some seconds and says, a line each, what is right and what is wrong. ID is that of a
Gymnasium environment (Pendulum-v1, module:ID), or the name of a task of dtune's (hopper). Being gone back in
is needed by GRPO-DT only. Exit code 0: it can be used; 4: it is broken.

`dtune check env --help` lists the options."""


def check(arguments: list[str]) -> None:
    """`dtune check env ID`."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(_HELP)
        sys.exit(0)
    if arguments[:1] != ["env"]:
        raise ConfigError("say what to check: `dtune check env ID`; `dtune check --help` tells more")
    _check_env(arguments[1:])


def _check_env(arguments: list[str]) -> None:
    @dataclass(frozen=True)
    class Check:
        """Says what is right and what is wrong with an environment."""

        id: tyro.conf.Positional[str]
        """ID of a Gymnasium environment, or the name of a task or of one of its datasets."""
        horizon: int | None = None
        """Steps in an episode; the environment's own time limit by default."""
        steps: int = 100
        """Steps compared after going back."""
        workers: int = 1
        """Processes that step it; 0: none. Tasks of dtune's take them as threads."""
        timeout: float = 60.0
        """Seconds a step may take."""
        seed: int = 0
        """Of everything random."""

    options = parse(Check, "check env", arguments)
    from dtune.envs.check import check_simulator
    from dtune.envs.gymnasium import GymnasiumSimulator
    from dtune.envs.simulator import Simulator
    from dtune.envs.tasks import DATASETS, TASKS, make_simulator

    simulator: Simulator
    if options.id in TASKS or options.id in DATASETS:
        simulator = make_simulator(options.id, max(1, options.workers))
    else:
        simulator = GymnasiumSimulator(
            options.id, horizon=options.horizon, workers=options.workers, timeout=options.timeout
        )
    findings = check_simulator(simulator, steps=options.steps, seed=options.seed)
    for found in findings:
        mark = "right" if found.passed else "WRONG" if found.needed else "no"
        print(f"{mark:6} {found.name:11} {found.message}")
    broken = [found.name for found in findings if found.needed and not found.passed]
    if broken:
        raise SimulatorError(f"{options.id} cannot be used as it is: {', '.join(broken)}, as said above")
    print(f"{options.id} can be used" + ("" if findings[-1].passed else ", but not by GRPO-DT"))
