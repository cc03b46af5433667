"""The command that films: record."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dtune.cli.options import parse


def record(arguments: list[str]) -> None:
    """`dtune record PATH`."""

    @dataclass(frozen=True, kw_only=True)
    class Record:
        """Films an episode of mean actions, without a display."""

        path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
        """A run folder (its best checkpoint) or a checkpoint."""
        out: Path | None = None
        """The file: .mp4 or .gif; videos/iteration_N.mp4 in the run folder by default."""
        before: Path | None = None
        """Another run folder or checkpoint, filmed from the same start at the left."""
        width: int = 480
        """Pixels of one episode; even."""
        height: int = 360
        """Pixels; even."""
        frames_per_second: float = 30.0
        """At most; steps are left out until it fits, so that time runs as in the world."""
        max_steps: int | None = None
        """Steps filmed; the whole episode by default."""
        seed: int = 0
        """Of the episode's start."""
        return_to_go: float | None = None
        """Return asked for, in reward units; what each policy was made for by default."""

    command = parse(Record, "record", arguments)
    from dtune.experiments.reports.video import Film, place_in_run
    from dtune.experiments.reports.video import record as film

    options = {name: value for name, value in vars(command).items() if name not in ("path", "out", "before")}
    out = command.out or place_in_run(command.path)
    found = film(command.path, out, before=command.before, film=Film(**options))
    if command.before is not None:
        print(f"before  return {found['before_return']:8.1f}   length {found['before_length']:6.0f}")
    after = "" if command.before is None else "after   "
    print(f"{after}return {found['return']:8.1f}   length {found['length']:6.0f}")
    print(f"{out}: {found['frames']:.0f} frames, {found['frames_per_second']:.1f} a second")
