"""`report.html`: one file that opens from a disk and asks no network for anything."""

import base64
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from dtune.experiments import disk
from dtune.experiments.reports import formats
from dtune.experiments.reports.formats import Grid

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; media-src data:"
"""What a browser may load: nothing that is not in the page."""

_FILMS = {".mp4": "video/mp4", ".gif": "image/gif"}
_MOST_BYTES = 50_000_000
"""Of a film in a page."""

_DIGITS = 5


@final
@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve against every axis there is."""

    name: str
    colour: str
    dash: str = ""
    """As SVG has it."""
    axes: Mapping[str, Mapping[str, Sequence[float]]]
    """By key of an axis: `x`, `y` and, where there is a band, `low` and `high`."""


@final
@dataclass(frozen=True, kw_only=True)
class Panel:
    """One diagram."""

    title: str
    lines: Sequence[Line]


@final
@dataclass(frozen=True, kw_only=True)
class Page:
    """What a page shows, from top to bottom."""

    title: str
    lead: str
    axes: Mapping[str, str]
    """Label by key."""
    panels: Mapping[str, Sequence[Panel]]
    """By heading."""
    grids: Sequence[Grid] = ()
    films: Sequence[Path] = ()
    details: Sequence[tuple[str, str, Any]] = ()
    """Heading, name and JSON of what is folded away: configuration, versions."""


def write(page: Page, out: Path) -> Path:
    """Writes a page in one step."""
    out.parent.mkdir(parents=True, exist_ok=True)
    disk.replace(out, render(page).encode())
    return out


def render(page: Page) -> str:
    """The page as text; whatever comes from outside is escaped."""
    panels = [panel for some in page.panels.values() for panel in some]
    parts = [
        f"<h1>{html.escape(page.title)}</h1>",
        f'<p class="lead">{html.escape(page.lead)}</p>',
        _curves(page, panels) if panels else "",
        "<h2>Tables</h2>" if page.grids else "",
        *(formats.page(grid) for grid in page.grids),
        "<h2>Films</h2>" if page.films else "",
        *(_film(path) for path in page.films),
        *_details(page.details),
    ]
    return _TEMPLATE.format(
        policy=_POLICY,
        title=html.escape(page.title),
        style=_asset("page.css"),
        body="\n".join(part for part in parts if part),
        data=_json(_data(page.axes, panels)),
        script=_asset("page.js") if panels else "",
    )


_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
<script type="application/json" id="data">{data}</script>
<script>
{script}</script>
</body>
</html>
"""


def _curves(page: Page, panels: Sequence[Panel]) -> str:
    buttons = "".join(
        f'<button data-axis="{html.escape(key)}">{html.escape(label)}</button>' for key, label in page.axes.items()
    )
    lines = {line.name: line for panel in panels for line in panel.lines}
    legend = "".join(
        f'<button data-name="{html.escape(name)}"><svg width="26" height="8" viewBox="0 0 26 8" style="width:26px">'
        f'<path d="M0 4H26" stroke="{line.colour}" stroke-width="2" stroke-dasharray="{line.dash}"/></svg>'
        f"{html.escape(name)}</button>"
        for name, line in lines.items()
    )
    several = any(len(panel.lines) > 1 for panel in panels)
    some, number = [], 0
    for heading, group in page.panels.items():
        figures = []
        for panel in group:
            figures.append(
                f'<figure data-panel="{number}"><figcaption>{html.escape(panel.title)}</figcaption></figure>'
            )
            number += 1
        title = f"<h3>{html.escape(heading)}</h3>" if heading else ""
        some.append(f'{title}<div class="panels">{"".join(figures)}</div>')
    return (
        f'<h2>Curves</h2><div class="bar"><span class="axes">{buttons}</span>'
        f'<span class="legend">{legend if several else ""}</span></div>'
        f"<noscript><p>The curves need JavaScript.</p></noscript>{''.join(some)}"
        '<p class="note">Drag to zoom, double click to see all'
        f"{'; a name in the legend hides its curves' if several else ''}.</p>"
    )


def _data(axes: Mapping[str, str], panels: Sequence[Panel]) -> dict[str, Any]:
    return {
        "axes": [{"key": key, "label": label} for key, label in axes.items()],
        "panels": [
            {
                "series": [
                    {
                        "name": line.name,
                        "colour": line.colour,
                        "dash": line.dash,
                        "axes": {
                            axis: {name: _rounded(values) for name, values in numbers.items()}
                            for axis, numbers in line.axes.items()
                        },
                    }
                    for line in panel.lines
                ]
            }
            for panel in panels
        ],
    }


def _rounded(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.{_DIGITS}g}") for value in values if math.isfinite(value)]


def _film(path: Path) -> str:
    if path.stat().st_size > _MOST_BYTES:
        return f'<p class="note">{html.escape(path.name)} is too large for a page</p>'
    kind, content = _FILMS[path.suffix], base64.b64encode(path.read_bytes()).decode()
    if kind.startswith("video"):
        return f'<video controls loop muted src="data:{kind};base64,{content}"></video>'
    return f'<img alt="{html.escape(path.name)}" src="data:{kind};base64,{content}">'


def films(folder: Path) -> list[Path]:
    """Films that lie in a folder, or in its `videos`."""
    found = [path for place in (folder, folder / "videos") if place.is_dir() for path in place.iterdir()]
    return sorted(path for path in found if path.suffix in _FILMS)


def _details(details: Sequence[tuple[str, str, Any]]) -> list[str]:
    parts, before = [], None
    for heading, name, content in details:
        if heading != before:
            parts.append(f"<h2>{html.escape(heading)}</h2>")
        before = heading
        text = html.escape(json.dumps(content, indent=2))
        parts.append(f"<details><summary>{html.escape(name)}</summary><pre>{text}</pre></details>")
    return parts


def _json(content: Any) -> str:
    """JSON that cannot end the element it stands in."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text()
