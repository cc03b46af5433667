"""Curves on paper: one style for all figures, as vectors and as pictures."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtune.errors import ConfigError
from dtune.experiments.reports.figures import AXES, FIGURES, Axis, Band, FigureSpec, apart, band, curve_label, curves_of
from dtune.experiments.reports.results import Curve
from dtune.experiments.reports.scores import published

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's eight, told apart with every kind of colour blindness; yellow is too faint on white.
COLOURS = {
    "grpo": "#D55E00",
    "ppo": "#0072B2",
    "odt_td3": "#009E73",
    "odt": "#56B4E9",
    "iql": "#E69F00",
    "dt": "#000000",
    "q_guided": "#CC79A7",
}
"""Of the methods; variants take those that are left."""

VARIANTS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", (0, (5, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (1, 1)), (0, (8, 2, 1, 2, 1, 2)))
"""So that curves stay apart in grey, too: of methods in the order of `COLOURS`, of variants by their place."""

LOGARITHMIC = 10
"""Where runs end so many times later than others, the horizontal axis is logarithmic."""

Panel = tuple[str, Axis, Mapping[str, Band]]
"""Title, horizontal axis, and the bands by method."""

THIN = 0.8
"""Width of the lines of single seeds, where there is no mean of them."""

W_PAD = 0.09
"""Inches left and right of a panel: the last number of one axis and the first of the next stay apart."""

WIDE = 3
"""More datasets than this in a figure: a panel each, and a file an axis."""

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "svg.hashsalt": "dtune",
}


def draw_all(curves: Sequence[Curve], out: Path, wanted: Sequence[str] | None = None) -> tuple[list[Path], list[str]]:
    """Draws every figure there are records for.

    Args:
        curves: records that are to be compared with each other.
        out: the folder; made where it does not exist.
        wanted: names of figures; all where None.

    Returns:
        The files written, a PDF and a PNG each, and the names of the figures without records.

    Raises:
        ConfigError: if there is no figure of that name.
    """
    names = list(FIGURES) if wanted is None else list(wanted)
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        raise ConfigError(f"there is no figure {', '.join(unknown)}: choose of {', '.join(FIGURES)}")
    written: list[Path] = []
    skipped = []
    for name in names:
        chosen = curves_of(FIGURES[name], curves)
        if not chosen:
            skipped.append(name)
            continue
        out.mkdir(parents=True, exist_ok=True)
        written += _draw(FIGURES[name], chosen, out / f"figure_{name}")
    return written, skipped


def draw_panels(
    panels: Sequence[Panel], path: Path, *, columns: int, title: str = "",
    names: Mapping[str, str], up: str = "normalised score", endings: Sequence[str] = (".png",),
    logarithmic: bool = False,
) -> list[Path]:  # fmt: skip
    """Draws panels in rows of `columns`, with one legend below all; rows of one title share their vertical axis.

    Args:
        panels: title, axis and the bands by method, each.
        path: of the files, without ending.
        columns: panels in a row.
        title: above all.
        names: of the methods, in the order of the legend.
        up: label of the vertical axes.
        endings: which files to write.
        logarithmic: whether bands hold logarithms to base 10.

    Returns:
        The files.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = -(-len(panels) // columns)
    headings = [heading for heading, _, _ in panels]
    alike = all(len(set(headings[first : first + columns])) == 1 for first in range(0, len(panels), columns))
    with pyplot.rc_context(STYLE):
        figure, grid = pyplot.subplots(
            rows,
            columns,
            figsize=(3.3 * columns, 2.5 * rows + 0.9),
            squeeze=False,
            sharey="row" if alike else False,
        )
        figure.set_layout_engine("constrained", w_pad=W_PAD)
        for number, axes in enumerate(grid.flat):
            if number >= len(panels):
                axes.set_visible(False)
                continue
            heading, axis, bands = panels[number]
            _draw_panel(axes, heading, axis, bands, list(names), logarithmic)
            if number % columns == 0:
                axes.set_ylabel(up)
        _finish(figure, [axes for axes in grid.flat if axes.get_visible()], panels, names, title)
        files = [path.with_name(path.name + ending) for ending in endings]
        for file in files:  # no date: the same records give the same bytes
            figure.savefig(file, dpi=130, metadata={"CreationDate": None} if file.suffix == ".pdf" else None)
            figure.set_layout_engine("none")  # it is laid out now
        pyplot.close(figure)
    return files


def _draw(spec: FigureSpec, chosen: Mapping[str, Mapping[str, list[Curve]]], path: Path) -> list[Path]:
    """One figure: a row a dataset with an axis a column or, for many datasets, a file an axis."""
    names = {method: curve_label(spec, method) for runs in chosen.values() for method in runs}
    files: list[Path] = []
    for up, label, suffix in _quantities(spec):
        for ending, panels, columns in _sheets(chosen, up):
            if any(bands for _, _, bands in panels):
                files += draw_panels(
                    panels, path.with_name(path.name + suffix + ending), columns=columns, title=spec.title,
                    names=names, up=label, endings=(".pdf", ".png"), logarithmic=up == "ratio_peak",
                )  # fmt: skip
    return files


def _sheets(chosen: Mapping[str, Mapping[str, list[Curve]]], up: str) -> Iterator[tuple[str, list[Panel], int]]:
    """Ending of the file, panels and columns of each file of a figure."""
    datasets = _in_order(chosen)
    if len(datasets) <= WIDE:
        yield "", [(name, axis, _bands(runs, axis, up)) for name, runs in datasets for axis in AXES], len(AXES)
        return
    for axis in AXES:
        panels: list[Panel] = [(name, axis, _bands(runs, axis, up)) for name, runs in datasets]
        yield f"_{axis.column}", panels, 5 if len(datasets) > 9 else 3


def _quantities(spec: FigureSpec) -> list[tuple[str, str, str]]:
    """Column, label and ending of the file of what a figure shows."""
    ratio = [("ratio_peak", "largest importance ratio", "_ratio")] if spec.ratio else []
    return [("normalized_score", "normalised score", ""), *ratio]


def _in_order(chosen: Mapping[str, Mapping[str, list[Curve]]]) -> list[tuple[str, Mapping[str, list[Curve]]]]:
    order = {name: number for number, name in enumerate(published())}
    return sorted(chosen.items(), key=lambda item: (order.get(item[0], len(order)), item[0]))


def _bands(runs: Mapping[str, list[Curve]], axis: Axis, up: str) -> dict[str, Band]:
    """Of every method with numbers; seeds that share no place are kept singly."""
    logarithmic = up == "ratio_peak"
    found = {
        method: band(curves, axis.column, up, logarithmic=logarithmic)
        or apart(curves, axis.column, up, logarithmic=logarithmic)
        for method, curves in runs.items()
    }
    return {method: one for method, one in found.items() if one is not None}


def _draw_panel(
    axes: "Axes", heading: str, axis: Axis, bands: Mapping[str, Band], order: Sequence[str], logarithmic: bool
) -> None:
    far = _far(bands)
    shown = {method: one.above_zero() if far else one for method, one in bands.items()}
    for method, one in shown.items():
        style = {"color": colour(method, order), "linestyle": dash(method, order), "label": method}
        _draw_band(axes, one, style, logarithmic)
    if logarithmic:
        axes.set_yscale("log")
    axes.set_title(heading, loc="left")
    _scale_across(axes, axis, shown, far)


def _draw_band(axes: "Axes", one: Band, style: dict[str, Any], logarithmic: bool) -> None:
    """A level line, a mean with its deviation or, where that would be no line, thin lines of the seeds."""

    def raised(values: Any) -> Any:
        return 10.0**values if logarithmic else values

    if one.constant and len(one.across):
        axes.axhline(raised(one.mean[0]), **style)
    elif len(one.across) > 1:
        axes.plot(one.across, raised(one.mean), **style)
        if one.seeds > 1:
            low, high = raised(one.mean - one.deviation), raised(one.mean + one.deviation)
            axes.fill_between(one.across, low, high, color=style["color"], alpha=0.18, linewidth=0)
    else:
        width: dict[str, Any] = {"linewidth": THIN} if len(one.lines) > 1 else {}
        for places, values in one.lines:
            axes.plot(places, raised(values), marker="o" if len(places) == 1 else "", markersize=3, **width, **style)


def _far(bands: Mapping[str, Band]) -> bool:
    """Whether curves end so far apart that the horizontal axis is logarithmic."""
    ends = [float(path[-1]) for one in bands.values() if not one.constant for path in one.paths if path[-1] > 0]
    return bool(ends) and max(ends) > LOGARITHMIC * min(ends)


def _scale_across(axes: "Axes", axis: Axis, shown: Mapping[str, Band], far: bool) -> None:
    """Labels the horizontal axis; a logarithmic one begins where the first of the curves begins."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, NullFormatter

    form = EngFormatter(sep="") if axis.column == "env_steps" else FuncFormatter(lambda place, _: f"{place:g}")
    axes.set_xlabel(axis.label + (", logarithmic" if far else ""))
    if far:
        axes.set_xscale("log")
        axes.set_xlim(left=min(path[0] for one in shown.values() if not one.constant for path in one.paths))
        low, high = axes.get_xlim()
        axes.xaxis.set_minor_formatter(NullFormatter() if high > 10 * low else form)
    else:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=axis.column == "iteration"))
    axes.xaxis.set_major_formatter(form)


def _finish(
    figure: "Figure", shown: Sequence["Axes"], panels: Sequence[Panel],
    names: Mapping[str, str], title: str,
) -> None:  # fmt: skip
    """One legend and one line below all panels, where they cover nothing."""
    lines = sorted((line for axes in shown for line in axes.get_lines()), key=lambda line: line.get_linewidth())
    handles = {line.get_label(): line for line in lines}  # of a curve that is thin in one panel only, the thick one
    seeds = sorted({one.seeds for _, _, bands in panels for one in bands.values()})
    said = "" if not seeds else str(seeds[0]) if seeds[0] == seeds[-1] else f"{seeds[0]} to {seeds[-1]}"
    meaning = f"mean and ± 1 standard deviation over {said} seeds" if seeds and seeds[-1] > 1 else "one seed"
    if any(line.get_linewidth() == THIN for line in lines):
        meaning += "; thin lines: seeds singly, where they were not judged over a common range"
    present = [method for method in names if method in handles]
    figure.legend(
        [handles[method] for method in present], [names[method] for method in present],
        loc="outside lower center", ncols=min(len(present), 4 if len(shown) < 5 else 7), title=meaning,
        title_fontsize=8,
    )  # fmt: skip
    if title:
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")


def colour(method: str, order: Sequence[str]) -> str:
    """Of a method: its own; of a variant: by its place among the variants shown."""
    if method in COLOURS:
        return COLOURS[method]
    others = [name for name in order if name not in COLOURS]
    free = [one for one in VARIANTS if one not in {COLOURS[name] for name in order if name in COLOURS}]
    return free[others.index(method) % len(free)]


def dash(method: str, order: Sequence[str]) -> Any:
    """Line style: of a method its own, of a variant by its place among the variants shown."""
    known = list(COLOURS)
    place = known.index(method) if method in known else 1 + [name for name in order if name not in known].index(method)
    return DASHES[place % len(DASHES)]
