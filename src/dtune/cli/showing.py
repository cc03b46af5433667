"""How datasets look in a terminal of eighty columns, and in a pipe."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from torch import Tensor

    from dtune.data.datasets import Dataset

BINS, BAR = 12, 40


def table(*names: str) -> Table:
    """An empty table; columns whose names begin with > are numbers."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, header_style="bold")
    for name in names:
        made.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    return made


def print_table(made: Table) -> None:
    """Prints a table, never wider than the terminal."""
    Console(highlight=False).print(made)


def show_columns(path: str, columns: "Mapping[str, Tensor]") -> None:
    """Prints the name and size of a file, and shape and range of each of its columns."""
    from dtune.data.summary import ranges

    file = Path(path).expanduser()
    _say(path if not file.is_file() else f"{path}  ({file.stat().st_size / 1e6:,.1f} MB)", "bold")
    print()
    made = table("column", "shape", ">least", ">mean", ">most")
    for key, (shape, *numbers) in ranges(columns).items():
        made.add_row(key, " x ".join(f"{size:,}" for size in shape), *(f"{number:.4g}" for number in numbers))
    print_table(made)


def show_episodes(dataset: "Dataset", splitting: str, task: str | None) -> None:
    """Prints how many episodes there are, what they are like, and a histogram of their returns."""
    from dtune.data.summary import spread, summarise
    from dtune.envs.tasks import normalized_score

    found = summarise(dataset)
    clock = found.episodes - found.terminated
    print()
    _say(f"{found.episodes:,} episodes, {found.steps:,} steps  ({splitting} splitting)", "bold")
    print(f"{found.terminated:,} ended by the environment, {clock:,} by the clock\n")
    made = table("", ">least", ">mean ± deviation", ">most")
    rows = [("return", found.returns), ("length", found.lengths)]
    if task is not None:
        rows.insert(1, ("score", spread(normalized_score(task, dataset.returns))))
    for name, (least, mean, deviation, most) in rows:
        made.add_row(name, f"{least:,.2f}", f"{mean:,.2f} ± {deviation:,.2f}", f"{most:,.2f}")
    print_table(made)
    print("\n   return from                                            episodes")
    for edge, bar, count in histogram(dataset.returns):
        line = Text(f"{edge:>14,.1f}  ").append(f"{bar:{BAR}}", "cyan").append(f"{count:>8,}")
        Console(highlight=False).print(line)


def show_published(name: str, dataset: "Dataset") -> None:
    """Prints what Tables 2-4 say of a dataset beside what was found."""
    from dtune.envs.sources import source
    from dtune.envs.tasks import task_info

    known, info = source(name), task_info(name)
    mean, deviation = known.score
    offset = 100 * info.reference_min / (info.reference_max - info.reference_min)
    print()
    print(f"Tables 2-4 say {known.steps:,} steps, score {mean:.2f} ± {deviation:.2f}")
    if offset:
        print(f"(± {deviation + offset:.2f} without the constant that is in the printed deviations)")
    if dataset.steps != known.steps:
        print(f"With {dataset.steps:,} steps, these are other data.")


def show_list(title: str, sentences: Sequence[str]) -> None:
    """Prints sentences under a title, if there are any; folded in a terminal, a line each elsewhere."""
    if not sentences:
        return
    console = Console()
    width = console.width if console.is_terminal else 10**6
    print()
    _say(title, "bold red" if title == "Problems" else "bold")
    for sentence in sentences:
        print(textwrap.fill(sentence, width, initial_indent="  * ", subsequent_indent="    ", break_long_words=False))


def histogram(numbers: "Tensor") -> Iterator[tuple[float, str, int]]:
    """The lower edge, a bar and the count of each bin."""
    from dtune.data.summary import bins

    edges, counts = bins(numbers, BINS)
    for edge, count in zip(edges, counts):
        eighths = round(8 * BAR * count / max(counts)) or (1 if count else 0)
        yield edge, "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8], count


def short(path: Path) -> str:
    """A path with ~ for the home."""
    home = str(Path.home())
    return f"~{str(path).removeprefix(home)}" if str(path).startswith(f"{home}/") else str(path)


def _say(line: str, style: str) -> None:
    Console(highlight=False).print(Text(line, style), soft_wrap=True)
