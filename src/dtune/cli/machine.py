"""`dtune doctor`: whether this machine has what runs need."""

from dataclasses import dataclass
from pathlib import Path

from dtune.cli.options import parse
from dtune.errors import SimulatorError


def doctor(arguments: list[str]) -> None:
    """`dtune doctor`."""

    @dataclass(frozen=True, kw_only=True)
    class Doctor:
        """Prints versions, threads, graphics, GPU and disk, and what of it is wrong.

        What is marked `no` is missing, and not needed to train. Exit code 0: runs can be made here; 4: they cannot.
        """

        out: Path = Path()
        """Folder in which runs would be written."""

    command = parse(Doctor, "doctor", arguments)
    from dtune.experiments.doctor import examine

    findings = examine(command.out)
    for found in findings:
        mark = "right" if found.passed else "WRONG" if found.needed else "no"
        print(f"{mark:6} {found.name:12} {found.message}")
    broken = [found.name for found in findings if found.needed and not found.passed]
    if broken:
        raise SimulatorError(f"runs cannot be made here: {', '.join(broken)}, as said above")
    print("runs can be made here")
