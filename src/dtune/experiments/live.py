"""What a run shows while it trains: one panel in a terminal, plain lines everywhere else."""

import io
import math
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.live import Live as RichLive
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text


def _percent(value: int | float) -> str:
    return f"{value:.1%}"


def _short(value: int | float) -> str:
    return f"{value:.4g}"


# Label, the keys to look under (the first that is there), how to write it.
_SHOWN: tuple[tuple[str, tuple[str, ...], Callable[[int | float], str]], ...] = (
    ("env steps/s", ("time/env_steps_per_second",), lambda value: f"{value:,.0f}"),
    ("return", ("eval/return", "rollout/return"), lambda value: f"{value:.1f}"),
    ("score", ("eval/normalized_score",), lambda value: f"{value:.1f}"),
    ("ratio mean", ("train/ratio_mean",), lambda value: f"{value:.3f}"),
    ("ratio max", ("train/ratio_max",), lambda value: f"{value:.3f}"),
    ("clipped", ("train/clip_fraction",), _percent),
    ("KL", ("train/kl",), _short),
    ("entropy", ("train/entropy",), _short),
    ("entropy target", ("train/entropy_target",), _short),
    ("dropped", ("rollout/dropped",), _percent),
)


class Live:
    """A display of the running iteration; use it as a context manager.

    In a terminal it redraws a panel. Elsewhere (a file, a pipe, a cluster's log) it prints one plain line an
    iteration, at most one in `interval` seconds and always the last.

    Args:
        title: what is being trained.
        iterations: the number of the last iteration.
        start: iterations done before, by an interrupted run.
        time_limit: seconds of training (`time/seconds`) after which the run ends, if it does not end before.
        quiet: print nothing at all.
        stream: where to print; standard output by default.
        interval: seconds between plain lines at least.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        title: str,
        iterations: int,
        start: int = 0,
        *,
        time_limit: float | None = None,
        quiet: bool = False,
        stream: TextIO | io.StringIO | None = None,
        interval: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title, self._iterations, self._start = title, iterations, start
        self._time_limit = math.inf if time_limit is None else time_limit
        self._quiet = quiet
        self._stream: TextIO = sys.stdout if stream is None else stream
        self._interval, self._clock = interval, clock
        self._began = clock()
        self._printed_at = -math.inf
        self._iteration = start
        self._metrics: dict[str, int | float] = {}  # the newest of each: evaluations are rarer than iterations
        self._pending: str | None = None
        self._panel: RichLive | None = None

    def __enter__(self) -> "Live":
        self._began = self._clock()
        console = Console(file=self._stream)
        if not self._quiet and self._stream.isatty() and not console.is_dumb_terminal:
            self._panel = RichLive(self._draw(), console=console, refresh_per_second=4)
            self._panel.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._panel is not None:
            self._panel.stop()
            self._panel = None
        elif self._pending is not None:
            self._print(self._pending)

    def update(self, iteration: int, metrics: Mapping[str, int | float]) -> None:
        """Shows that `iteration` is done; a metric that is not there is left out."""
        self._iteration = iteration
        self._metrics.update(metrics)
        if self._panel is not None:
            self._panel.update(self._draw())
            return
        self._pending = self._line()
        if self._clock() - self._printed_at >= self._interval:
            self._print(self._pending)

    def say(self, sentence: str) -> None:
        """Prints a sentence, above the panel where there is one."""
        if self._panel is not None:
            self._panel.console.print(Text(sentence))
        elif not self._quiet:
            print(sentence, file=self._stream, flush=True)

    def _print(self, line: str) -> None:
        if not self._quiet:
            print(line, file=self._stream, flush=True)
        self._printed_at, self._pending = self._clock(), None

    def _remaining(self) -> str | None:
        done = self._iteration - self._start
        left = self._iterations - self._iteration
        if done <= 0 or left <= 0:
            return None
        limit = max(0.0, self._time_limit - self._metrics.get("time/seconds", 0.0))
        seconds = round(min((self._clock() - self._began) / done * left, limit))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"

    def _values(self) -> list[tuple[str, str]]:
        values = []
        for label, keys, write in _SHOWN:
            key = next((key for key in keys if key in self._metrics), None)
            if key is not None:
                values.append((label, write(self._metrics[key])))
        return values

    def _line(self) -> str:
        remaining = self._remaining()
        parts = [f"{self._title} {self._iteration}/{self._iterations}"]
        parts += [f"ETA {remaining}"] if remaining else []
        return "  ".join(parts + [f"{label} {value}" for label, value in self._values()])

    def _draw(self) -> Table:
        table = Table.grid(padding=(0, 2))
        remaining = self._remaining()
        counter = f"{self._iteration}/{self._iterations}" + (f"  ETA {remaining}" if remaining else "")
        table.add_row(Text(self._title, style="bold"), Text(counter))
        table.add_row("", ProgressBar(total=max(self._iterations, 1), completed=self._iteration, width=30))
        for label, value in self._values():
            table.add_row(Text(label), Text(value))
        return table
