"""A table as text: for a terminal, Markdown, LaTeX or HTML. Knows nothing of what is in it."""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

Mark = Literal["", "best", "near"]


class Word(NamedTuple):
    """What stands in one cell."""

    text: str
    mark: Mark = ""


@final
@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of cells."""

    words: Sequence[Word]
    dim: bool = False
    """Whether it is beside the point: the paper's numbers, say."""
    last: bool = False
    """Whether a rule follows."""


@final
@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table: the first `left` columns are names, the others numbers."""

    title: str
    header: Sequence[str]
    lines: Sequence[Line]
    notes: Sequence[str] = ()
    """Sentences below it."""
    left: int = 1


def terminal(grid: Grid) -> RenderableType:
    """For rich to print."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for number, name in enumerate(grid.header):
        table.add_column(name, justify="left" if number < grid.left else "right", overflow="fold")
    styles = {"best": "bold", "near": "underline", "": ""}
    for line in grid.lines:
        words = [Text(word.text, style=styles[word.mark]) for word in line.words]
        table.add_row(*words, style="dim" if line.dim else "", end_section=line.last)
    return Group(Text(grid.title, style="bold"), table, *(Text(note, style="dim") for note in grid.notes))


def print_grids(grids: Sequence[Grid]) -> None:
    """Prints tables under each other; where there is no terminal they are as wide as they need."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=240)
    for number, grid in enumerate(grids):
        if number:
            console.print()
        console.print(terminal(grid))


def markdown(grid: Grid) -> str:
    """A heading, a pipe table, and its notes."""
    marks: dict[Mark, Callable[[str], str]] = {"": str, "best": "**{}**".format, "near": "<u>{}</u>".format}
    rule = ["---" if number < grid.left else "---:" for number in range(len(grid.header))]
    rows = [[_escaped(name, "|", "\\") for name in grid.header], rule]
    rows += [
        [marks[word.mark](_escaped(word.text, "|", "\\")) if word.text else "" for word in line.words]
        for line in grid.lines
    ]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"### {grid.title}\n\n{table}\n" + "".join(f"\n{note}\n" for note in grid.notes)


def latex(grid: Grid) -> str:
    """A table environment of booktabs."""
    marks: dict[Mark, Callable[[str], str]] = {
        "": str,
        "best": lambda text: f"\\textbf{{{text}}}",
        "near": lambda text: f"\\underline{{{text}}}",
    }
    columns = "".join("l" if number < grid.left else "r" for number in range(len(grid.header)))
    body = []
    for line in grid.lines:
        cells = [marks[word.mark](_tex(word.text)) if word.text else "" for word in line.words]
        gray = [f"\\textcolor{{gray}}{{{cell}}}" if line.dim and cell else cell for cell in cells]
        body += [" & ".join(gray) + r" \\", *([r"\midrule"] if line.last else [])]
    if body and body[-1] == r"\midrule":
        body.pop()
    parts = [
        "% needs \\usepackage{booktabs,xcolor}", r"\begin{table}", r"\centering", f"\\caption{{{_caption(grid)}}}",
        f"\\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(map(_tex, grid.header)) + r" \\", r"\midrule",
        *body, r"\bottomrule", r"\end{tabular}", r"\end{table}",
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def page(grid: Grid) -> str:
    """An HTML table with its notes; every text is escaped."""
    tags: dict[Mark, Callable[[str], str]] = {"": str, "best": "<b>{}</b>".format, "near": "<u>{}</u>".format}
    names = "".join(
        f'<th class="{"name" if number < grid.left else "number"}">{html.escape(name)}</th>'
        for number, name in enumerate(grid.header)
    )
    rows = []
    for line in grid.lines:
        cells = "".join(
            f'<td class="{"name" if number < grid.left else "number"}">{tags[word.mark](html.escape(word.text))}</td>'
            for number, word in enumerate(line.words)
        )
        kind = " ".join(name for name, held in (("dim", line.dim), ("last", line.last)) if held)
        rows.append(f'<tr class="{kind}">{cells}</tr>')
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in grid.notes)
    body = "\n".join(rows)
    return (
        f'<h3>{html.escape(grid.title)}</h3>\n<div class="scroll"><table><thead><tr>{names}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>\n{notes}"
    )


def _caption(grid: Grid) -> str:
    return _tex(" ".join([grid.title + ".", *grid.notes]))


def _tex(text: str) -> str:
    text = _escaped(text, "\\", "\\textbackslash ") if "\\" in text else text
    for character in "&%$#_{}":
        text = text.replace(character, "\\" + character)
    return text.replace("±", "$\\pm$").replace("~", "\\textasciitilde ").replace("–", "--").replace("^", "\\^{}")


def _escaped(text: str, character: str, by: str) -> str:
    return text.replace(character, by + character if len(by) == 1 else by)
