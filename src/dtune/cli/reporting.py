"""The commands about results: collect, report, figures."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from dtune.cli.options import parse
from dtune.errors import ConfigError

if TYPE_CHECKING:  # importing it takes a second
    from dtune.experiments.reports.results import Curve


def check_file(option: str, path: Path) -> None:
    """Refuses a path at which no file can be made, before the work that would be lost."""
    if path.is_dir():
        raise ConfigError(f"{option} is to be a file, and {path} is a folder: name another file")
    check_folder(option, path.parent)


def check_folder(option: str, path: Path) -> None:
    """Refuses a path at which no folder can be made, before the work that would be lost."""
    there = next((place for place in (path, *path.parents) if place.exists()), path)
    if there.exists() and not there.is_dir():
        raise ConfigError(f"{option} needs {path} to be a folder, and {there} is a file: choose another {option}")


def collect(arguments: list[str]) -> None:
    """`dtune collect RUNS --out DIR`."""

    @dataclass(frozen=True, kw_only=True)
    class Collect:
        """Puts the evaluations of finished runs into one CSV a run, to be kept in git."""

        runs: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUNS")]
        """A run folder, or any folder above some."""
        out: Path
        """Where the CSVs go, as results/NAME."""
        only: str | None = None
        """Name of a folder that must be in a run's path, as `small` where scales lie side by side."""

    command = parse(Collect, "collect", arguments)
    check_folder("--out", command.out)
    from dtune.experiments.reports.collect import write_results

    written, left_out = write_results(command.runs, command.out, only=command.only, say=print)
    for folder in left_out:
        print(
            f"left out: {folder} (a pretraining, not finished, not judged yet, or of no method or dataset of the paper)"
        )
    print(f"{len(written)} {'record' if len(written) == 1 else 'records'} in {command.out}")


def report(arguments: list[str]) -> None:
    """`dtune report RESULTS`."""

    @dataclass(frozen=True, kw_only=True)
    class Report:
        """Shows Table 1 and what it cost, from records or run folders."""

        results: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RESULTS")]
        """A folder of records (`dtune collect` makes them), or of runs. What lies in one folder is compared."""
        format: Literal["terminal", "markdown", "latex", "csv"] = "terminal"
        """How the tables are written; csv: the scores alone, in full precision."""
        score: Literal["final", "best"] = "final"
        """The main number: mean of the last three evaluations, or the best one. The other stands beside it."""
        methods: tuple[str, ...] | None = None
        """Columns, as `ppo grpo grpo+relabel`; all without variants by default."""
        html: Path | None = None
        """Writes a page with curves, tables and configuration here instead."""
        only: str | None = None
        """Of runs, those in a folder of this name or below, as `small` where scales lie side by side."""

    command = parse(Report, "report", arguments)
    if command.html is None:
        groups = _records(command.results, command.only)
        _show(groups, command.format, command.score, command.methods)
        return
    if command.format != "terminal":
        raise ConfigError("--html is a page of its own: leave out --format, or --html")
    check_file("--html", command.html)
    from dtune.experiments.reports import page, pages

    if (command.results / "metrics.csv").is_file():
        made = pages.run_page(command.results)
    else:
        groups = _records(command.results, command.only)
        made = pages.results_page(command.results, groups, command.score, command.methods, command.only)
    print(page.write(made, command.html))


def _records(results: Path, only: str | None) -> "dict[str, list[Curve]]":
    """Records by folder; what is odd about runs is said beside the result."""
    from dtune.experiments.reports.collect import load

    return load(results, only=only, say=lambda sentence: print(sentence, file=sys.stderr))


def _show(
    groups: "dict[str, list[Curve]]", form: str, score: Literal["final", "best"], wanted: tuple[str, ...] | None
) -> None:
    """Prints the tables of every folder of records."""
    from dtune.experiments.reports import formats
    from dtune.experiments.reports.report import report as make_report
    from dtune.experiments.reports.report import scores_csv
    from dtune.experiments.reports.scores import choose_groups, score_table

    for number, (title, (curves, methods)) in enumerate(choose_groups(groups, wanted).items()):
        if variants := sorted({curve.method for curve in curves} - set(methods)) if wanted is None else []:
            print(f"left out: {', '.join(variants)} (--methods says which to show)", file=sys.stderr)
        if form == "csv":
            text = scores_csv(score_table(curves, methods, score), methods, title, score)
            print(text if not number else text.partition("\n")[2], end="")
            continue
        grids = make_report(curves, methods, title=title, score=score, digits=1 if form == "terminal" else 2)
        if number:
            print()
        if form == "terminal":
            formats.print_grids(grids)
        else:
            print("\n".join(map(formats.markdown if form == "markdown" else formats.latex, grids)), end="")


def figures(arguments: list[str]) -> None:
    """`dtune figures RESULTS --out DIR`."""

    @dataclass(frozen=True, kw_only=True)
    class Figures:
        """Draws Figures 1 to 4 from records, against iterations, environment steps and seconds."""

        results: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RESULTS")]
        """A folder of records, or of runs."""
        out: Path
        """Where the PDFs and PNGs go; records in folders below have folders below."""
        figure: tuple[str, ...] | None = None
        """Which, as `1 2c 4a`; all that there are records for by default."""
        only: str | None = None
        """Of runs, those in a folder of this name or below, as `small` where scales lie side by side."""

    command = parse(Figures, "figures", arguments)
    check_folder("--out", command.out)
    from dtune.experiments.reports.drawing import draw_all

    drawn = 0
    for title, curves in _records(command.results, command.only).items():
        written, skipped = draw_all(curves, command.out / title, command.figure)
        drawn += len(written)
        for path in written:
            print(path)
        if skipped:
            print(f"{title or command.results}: no records for {', '.join(f'Fig. {name}' for name in skipped)}")
    if not drawn:
        raise ConfigError("there are no records of a figure, or none asked for: `dtune sweep --figure NAME` makes them")
