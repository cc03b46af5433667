"""`dtune replay`: walks again what a run was stopped for."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import tyro

from dtune.cli.options import parse
from dtune.errors import ConfigError, DataError

SHOWN = 5
"""Steps shown at both ends of a walk, unless all are asked for."""


def replay(arguments: list[str]) -> None:
    """`dtune replay FILE`."""

    @dataclass(frozen=True)
    class Replay:
        """Walks again, step by step, what a run that ended with exit code 5 met; says where the first bad number comes.

        Nothing in the file is executed.
        """

        file: tyro.conf.Positional[Path]
        """The replay_….npz in the run folder."""
        task: str | None = None
        """Name of the task to walk in; what the file says by default."""
        every_step: bool = False
        """Show every step of a walk, not only its ends."""

    command = parse(Replay, "replay", arguments)
    from dtune.envs.tasks import make_simulator
    from dtune.experiments.folder import versions
    from dtune.experiments.replay import read_replay, walk_again

    _check_file(command.file)
    found = read_replay(command.file)
    task = found.task if command.task is None else command.task
    if task is None:
        raise ConfigError(
            f"{command.file} is of a simulator made in Python: give `dtune.experiments.replay.walk_again` that"
            " simulator, or name a task with --task"
        )
    simulator = make_simulator(task)
    print(f"{task}, iteration {found.iteration}: {found.reason}")
    for name, version in versions().items():
        if found.versions.get(name) != version:
            print(f"note: {name} was {found.versions.get(name)}, here it is {version}: numbers may differ")
    for number, walk in enumerate(found.walks, start=1):
        print(f"walk {number} of {len(found.walks)}, {len(walk.actions)} actions")
        moments = list(walk_again(walk, simulator))
        for moment in moments:
            if command.every_step or min(moment.step, moments[-1].step - moment.step) < SHOWN:
                print(
                    f"  step {moment.step:4}  reward {moment.reward:12.4g}  largest observation"
                    f" {moment.observation:10.4g}  largest action {moment.action:8.4g}"
                )
        wrong = moments[-1].wrong if moments else None
        print(f"  first bad number at step {moments[-1].step}: {wrong}" if wrong else "  every number is finite")


def _check_file(path: Path) -> None:
    """Refuses what is no replay file at all; whether one is damaged is found by reading it."""
    from dtune.data.npz import open_archive

    wanted = "give the replay_….npz of the run folder"
    if not path.is_file():
        raise DataError(f"{path} is a folder: {wanted}" if path.is_dir() else f"there is no file {path}: {wanted}")
    try:
        with open_archive(path) as archive:
            archive.getinfo("header.npy")
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{path} is no replay file, or not a whole one: {wanted}") from error
