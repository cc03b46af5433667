"""The commands about data: list, show, make, download."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dtune.cli import showing
from dtune.cli.options import parse
from dtune.cli.reporting import check_file
from dtune.errors import ConfigError, DataError, meant

USAGE = """say what to do with data:

  dtune data list                     the datasets of Tables 2-4, and which of them are here
  dtune data show NAME_OR_PATH        what is in one, and everything that is wrong with it
  dtune data make hopper-random       record a random dataset, as D4RL did (walker2d-random, ant-random)
  dtune data download NAME            fetch D4RL's file of one, or a Minari dataset by its id

`dtune data COMMAND --help` lists what else can be said."""


def data(arguments: list[str]) -> None:
    """`dtune data list | show | make | download`."""
    commands: dict[str, Callable[[list[str]], None]] = {
        "list": list_all,
        "show": show,
        "make": make,
        "download": download,
    }
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE)
    elif not arguments or arguments[0] not in commands:
        said = (
            f"there is no command 'data {arguments[0]}'{meant(arguments[0], commands)}"
            if arguments
            else "say what to do with data"
        )
        raise ConfigError(f"{said}: choose one of {', '.join(commands)}; `dtune data --help` says what they do")
    else:
        commands[arguments[0]](arguments[1:])


def list_all(arguments: list[str]) -> None:
    """`dtune data list`."""

    @dataclass(frozen=True, kw_only=True)
    class List:
        """Lists the datasets of Tables 2-4, and which of them are on this machine."""

    parse(List, "data list", arguments)
    from dtune.envs.sources import SOURCES
    from dtune.experiments.loading import data_folder, here

    table = showing.table("dataset", ">steps", ">score in Tables 2-4", "here")
    table.columns[0].no_wrap = True  # a name is searched for, and copied
    for name, known in SOURCES.items():
        found = here(name)
        place = showing.short(found) if found else ("recorded when needed" if known.random else "no")
        table.add_row(name, f"{known.steps:,}", f"{known.score[0]:.2f} ± {known.score[1]:.2f}", place)
    showing.print_table(table)
    print(f"\n`dtune data download NAME` fetches one into {showing.short(data_folder())}")


def show(arguments: list[str]) -> None:
    """`dtune data show NAME_OR_PATH`."""

    @dataclass(frozen=True, kw_only=True)
    class Show:
        """Shows what is in a dataset, and everything that is wrong with it."""

        name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME_OR_PATH")]
        """A dataset of Tables 2-4, a Minari id, or the path of a file."""
        splitting: Literal["locomotion", "adroit", "antmaze"] | None = None
        """The rule episodes are cut by; that of the name, or `locomotion`, by default."""
        task: str | None = None
        """Task whose reference scores normalise the returns; that of the name by default."""

    command = parse(Show, "data show", arguments)
    from dtune.data.columns import check_values, make_dataset
    from dtune.data.datasets import check_fits
    from dtune.data.summary import remarks
    from dtune.envs.sources import SOURCES
    from dtune.envs.tasks import task_info
    from dtune.experiments.loading import columns_of, find, here

    known = SOURCES.get(command.name)
    task = command.task or (command.name if known else None)
    info = None if task is None else task_info(task)
    splitting = command.splitting or (known.splitting if known else "locomotion")
    if known and known.random and not here(command.name):
        raise DataError(f"{command.name} is not recorded yet: `dtune data make {command.name}` does that.")
    if not known:
        _check_given(command.name)
    path = str(here(command.name) or find(command.name)) if known else command.name
    problems: list[str] = []
    columns = columns_of(path, complain=problems.append)
    check_values(columns, name=path, splitting=splitting, complain=problems.append)
    showing.show_columns(path, columns)
    if problems:
        showing.show_list("Problems", [sentence.removeprefix(path).lstrip(": ") for sentence in problems])
        number = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise DataError(f"{path} has {number}, listed above: it cannot be trained on as it is.")
    dataset = make_dataset(columns, name=path, splitting=splitting)
    if info is not None:
        check_fits(dataset, info.observation_dim, info.action_dim)
    showing.show_episodes(dataset, splitting, task)
    if known:
        showing.show_published(command.name, dataset)
    showing.show_list("Worth knowing", list(remarks(columns, dataset)))


def _check_given(name: str) -> None:
    """Refuses a slip in a name of Tables 2-4, and a path at which there is no recording."""
    from dtune.data import hdf5, minari, npz
    from dtune.envs.sources import SOURCES
    from dtune.experiments.loading import FILE_ENDINGS

    path, formats = Path(name).expanduser(), "HDF5 of D4RL's or Minari's layout, or .npz"
    if path.is_dir():
        raise DataError(f"{name} is a folder: give the path of a file ({formats})")
    if not path.exists():
        near = meant(name, SOURCES)
        if path.suffix in FILE_ENDINGS:
            raise DataError(f"{name} is not there: give the path of a file ({formats})")
        if near and minari.ID.fullmatch(name) and not (minari.minari_folder() / name).exists():
            raise DataError(f"there is no dataset {name}{near}: `dtune data list` shows them all")
    elif path.suffix == ".npz":
        with path.open("rb") as file:
            begin = file.read(len(hdf5.SIGNATURE))
        if not begin.startswith((npz.SIGNATURE, hdf5.SIGNATURE, b"\x80")):  # a pickle is told of by who reads
            raise DataError(f"{name} is not a readable .npz file: write it with numpy.savez, or download it again")


def make(arguments: list[str]) -> None:
    """`dtune data make hopper-random`."""
    from dtune.envs.sources import SOURCES
    from dtune.experiments import loading, presets

    random = {name.rpartition("-")[0]: name for name, known in SOURCES.items() if known.random}

    @dataclass(frozen=True, kw_only=True)
    class Make:
        """Records a random dataset, as D4RL did."""

        name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
        """hopper-random, walker2d-random or ant-random."""
        episodes: int | None = None
        """How many; as many as make the paper's million steps by default."""
        seed: int = 0
        """Of their starts and actions: the same seed gives the same bytes."""
        out: Path | None = None
        """The file; by default where `dtune pretrain` looks for a recording of so many episodes and this seed."""
        threads: int = 1
        """CPU threads for the physics. The file does not depend on it."""

    command = parse(Make, "data make", arguments)
    name = random.get(command.name, command.name)
    if name not in random.values():
        raise ConfigError(
            f"{command.name!r} is no random dataset{meant(command.name, random)}: choose one of {', '.join(random)}"
        )
    episodes = presets.pretraining(name, "paper").random_episodes if command.episodes is None else command.episodes
    for what, value in (("episodes", episodes), ("threads", command.threads)):
        if value < 1:
            raise ConfigError(f"{what} must be at least 1, got {value}")
    if not 0 <= command.seed < 2**63:
        raise ConfigError(f"seed must be in [0, 2^63), got {command.seed}")
    if command.out is not None:
        check_file("--out", command.out)
    path = command.out or loading.recording(name, episodes, command.seed)
    if command.out is not None and path.exists():
        raise ConfigError(f"{path} is there already: choose another --out, or delete it")
    if path.is_file():
        print(f"{path} is there already")
    loading.make_random(name, path, episodes=episodes, seed=command.seed, threads=command.threads)
    show([str(path), "--task", name])


def download(arguments: list[str]) -> None:
    """`dtune data download NAME`."""

    @dataclass(frozen=True, kw_only=True)
    class Download:
        """Fetches a dataset: D4RL's file of a name of Tables 2-4, or a Minari dataset."""

        name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
        """The name, or Minari's id."""
        again: bool = False
        """Fetch it though it is here."""

    command = parse(Download, "data download", arguments)
    from dtune.data import minari
    from dtune.envs.sources import SOURCES
    from dtune.experiments import loading

    if command.name not in SOURCES:
        near = meant(command.name, SOURCES)
        if not minari.ID.fullmatch(command.name) or ("/" not in command.name and near):
            raise ConfigError(
                f"{command.name!r} is no dataset of Tables 2-4 ({', '.join(SOURCES)}) and no Minari id (as"
                f" D4RL/door/human-v2){near}"
            )
        path, _ = minari.find_minari(command.name, download=True)
    else:
        found = next((path for path in loading.places(command.name) if path.is_file()), None)
        path = loading.fetch_file(command.name) if found is None or command.again else found
    print(f"{command.name} is at {path}")
    print(f"`dtune data show {command.name}` shows what is in it")
