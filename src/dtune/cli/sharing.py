"""The commands that take a policy elsewhere: export, push."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from dtune.cli.options import parse


def export(arguments: list[str]) -> None:
    """`dtune export PATH --out policy.onnx`."""

    @dataclass(frozen=True, kw_only=True)
    class Export:
        """Writes a policy as ONNX, compared with itself before it is written; `pip install 'dtune[onnx]'`.

        Windows of observations, returns-to-go, actions, timesteps and mask in environment units go in; the mean action,
        the mean and deviation before tanh, and the return-to-go acted on come out.
        """

        path: tyro.conf.Positional[Path]
        """A run folder (its best checkpoint), a checkpoint, or user/name on Hugging Face."""
        out: Path
        """The file; its name ends in .onnx."""
        seed: int = 0
        """Of the walks that file and policy are compared on."""

    command = parse(Export, "export", arguments)
    from dtune.experiments.sharing.export import TOLERANCE, WINDOWS, export_policy

    done = export_policy(command.path, command.out, seed=command.seed)
    for name, shape in done.inputs.items():
        print(f"input  {name:16} {' x '.join(str(size) for size in shape)}")
    print(f"compared with the policy on {WINDOWS:,} windows of {done.compared_on}; at most {TOLERANCE:g} is allowed:")
    for name, difference in done.differences.items():
        print(f"output {name:16} differs by {difference:.1e}")
    print(f"file: {done.path} ({done.path.stat().st_size / 1e6:.1f} MB); examples/act_with_onnx.py shows how to act")


def push(arguments: list[str]) -> None:
    """`dtune push PATH user/name`."""

    @dataclass(frozen=True, kw_only=True)
    class Push:
        """Sends a policy to Hugging Face, with a model card; `pip install 'dtune[hub]'`.

        `dtune.load_policy("user/name")` reads it again, and so does every command that takes a policy.
        """

        path: tyro.conf.Positional[Path]
        """A run folder (its best checkpoint) or a checkpoint."""
        repository: tyro.conf.Positional[str]
        """user/name; made where there is none."""
        license: str = "mit"
        """Of the policy, as Hugging Face abbreviates it."""
        private: bool = False
        """Whether a new repository is for you only."""
        out: Path | None = None
        """A folder to write what would be sent to, instead of sending it."""

    command = parse(Push, "push", arguments)
    from dtune.experiments.sharing.push import gather, push_policy

    if command.out is not None:
        gather(command.path, command.repository, command.out, license=command.license)
        print(f"written to {command.out}, not sent")
        return
    address = push_policy(command.path, command.repository, license=command.license, private=command.private)
    print(f"pushed: {address}")
