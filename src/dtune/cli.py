"""The command `dtune`: presets as subcommands, every field an option."""

import contextlib
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from dtune.errors import ConfigError, DtuneError

# Torch takes a second to import: only where a command needs it, so that `dtune --help` answers at once.

USAGE = """usage: dtune COMMAND ... [--debug]

  dtune demo                          make data, pretrain, finetune with GRPO-DT and PPO-DT, compare (10 minutes)
  dtune pretrain DATASET              fit a decision transformer to offline data
  dtune finetune METHOD/DATASET       improve it online: grpo/hopper-medium-v2, ppo/hopper-medium-v2, …
  dtune evaluate PATH                 judge the policy of a run folder or checkpoint

`dtune COMMAND --help` lists what else can be said; `dtune finetune METHOD/DATASET --help` every hyperparameter.
The same command again continues a run that was cut off. Exit codes: 0 done, 2 usage or configuration, 3 data,
4 environment, 5 numbers no longer finite, 75 stopped by SIGTERM, 130 by Ctrl-C (both saved), 1 anything else."""

Config = TypeVar("Config")
# The fields of a preset are options without a prefix, those of its parts have the part's name: --algorithm.group-size
Fields = Annotated[Config, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits with its code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    try:
        try:
            _run(given)
        finally:
            sys.stdout.flush()  # here, where its failing can still be caught
    except BrokenPipeError:  # the reader of our output has gone, as `dtune … | head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        sentence, code = _explain(error)
        print(f"dtune: {sentence}", file=sys.stderr)
        sys.exit(code)


def _run(given: list[str]) -> None:
    if not given or given[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if given else sys.stderr)
        sys.exit(0 if given else 2)
    command = COMMANDS.get(given[0])
    if command is None:
        raise ConfigError(f"there is no command {given[0]!r}: choose one of {', '.join(COMMANDS)}")
    command(given[1:])


def _explain(error: BaseException) -> tuple[str, int]:
    """What to tell the user of an error, and the exit code."""
    if isinstance(error, DtuneError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted before it could save; the same command goes on from the last checkpoint", 130
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return (
            f"the system refuses{where}: {error.strerror or error}; checkpoints written before are intact: make room"
            " or set the permissions, and run the same command again",
            1,
        )
    said = " ".join(str(error).split())
    return f"internal error, {type(error).__name__}: {said}; the same command with --debug shows where", 1


def _parse(kind: type[Config], name: str, arguments: list[str]) -> Config:
    """Reads options; what tyro draws a box around becomes a sentence."""
    said = io.StringIO()
    flags = (tyro.conf.FlagConversionOff, tyro.conf.SuppressFixed)
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, prog=f"dtune {name}", args=arguments, config=flags)
    except SystemExit as end:
        if not end.code:
            raise  # --help was asked for
    raise ConfigError(f"{_sentence(said.getvalue())}; `dtune {name} --help` lists the options")


def _sentence(box: str) -> str:
    """The message in one of tyro's boxes, and the options it believes were meant."""
    body = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    parts = re.split("[─-]{9,}", "\n".join(body))
    if "╭" not in box:  # where there is no UTF-8, the title is a part of its own
        parts = parts[1:]
    message, rest = parts[0], "".join(parts[1:])
    message = re.sub(r"^Error parsing run[.\w]*: ", "", " ".join(message.split()))
    meant = re.findall(r"^--\S+", rest, re.MULTILINE) if "Perhaps you meant" in rest else []
    return message.rstrip(".") + (f" (perhaps you meant {' or '.join(meant)})" if meant else "")


def _named(command: str, arguments: list[str], what: str, choices: Sequence[str]) -> tuple[str, list[str]]:
    """Takes the preset's name from the front of the arguments."""
    if arguments[:1] in (["-h"], ["--help"]):
        listed = "\n  ".join(choices)
        print(f"say which {what} first; then come options (add --help to see them). One of:\n  {listed}")
        sys.exit(0)
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError(f"say which {what} first, as {choices[0]}; `dtune {command} --help` lists them all")
    return arguments[0], arguments[1:]


def _scale(arguments: list[str]) -> Any:
    """Looks for --scale ahead of the others, because it decides their defaults."""
    scale = "paper"
    for index, argument in enumerate(arguments):
        if argument == "--scale" and index + 1 < len(arguments):
            scale = arguments[index + 1]
        elif argument.startswith("--scale="):
            scale = argument.partition("=")[2]
    if scale not in ("paper", "small"):
        raise ConfigError(f"--scale is paper or small, got {scale!r}")
    return scale


def pretrain(arguments: list[str]) -> None:
    """`dtune pretrain DATASET`."""
    from dtune.experiments import presets, run

    name, rest = _named("pretrain", arguments, "dataset", list(presets.TABLE_6))
    chosen = _scale(rest)

    @dataclass(frozen=True, kw_only=True)
    class Pretrain:
        """Fits a decision transformer to offline data; the same command again continues."""

        scale: str = chosen
        """`paper`: 4 layers of 512, hours on a CPU; `small`: 2 layers of 64, a minute."""
        out: Path | None = None
        """Run folder; runs/pretrain/DATASET/SCALE/seedN by default."""
        data: Path | None = None
        """D4RL's HDF5 file of the dataset. Random datasets are recorded where none is given."""
        run: Fields[presets.PretrainConfig] = field(default_factory=lambda: presets.pretraining(name, chosen))

    command = _parse(Pretrain, f"pretrain {name}", rest)
    folder = command.out or _pretrained(name, chosen, command.run.seed)
    _finish(folder, run.pretrain_preset(command.run, folder, command.data))


def finetune(arguments: list[str]) -> None:
    """`dtune finetune METHOD/DATASET`."""
    from dtune.experiments import presets, run

    choices = [f"{method}/{dataset}" for method in presets.METHODS for dataset in presets.TABLE_6]
    name, rest = _named("finetune", arguments, "method and dataset", choices)
    method, _, dataset = name.partition("/")
    chosen = _scale(rest)
    preset = presets.finetuning(method, dataset, chosen)

    @dataclass(frozen=True, kw_only=True)
    class Finetune:
        """Improves a pretrained decision transformer online; the same command again continues."""

        scale: str = chosen
        """`paper`: the paper's sizes, days on a CPU; `small`: minutes."""
        out: Path | None = None
        """Run folder; runs/METHOD/DATASET/SCALE/seedN by default."""
        policy: Path | None = None
        """Run folder or checkpoint to start from; where none is given, pretraining comes first."""
        data: Path | None = None
        """D4RL's HDF5 file for that pretraining. Random datasets are recorded where none is given."""
        run: Fields[presets.FinetuneConfig] = field(default_factory=lambda: preset)

    command = _parse(Finetune, f"finetune {name}", rest)
    start = command.policy
    if start is not None and command.data is not None:
        raise ConfigError("--data is what to pretrain on, and --policy is pretrained: leave out one of them")
    if start is None:
        before = _pretrained(dataset, chosen, 0)
        try:
            config = replace(presets.pretraining(dataset, chosen), threads=command.run.threads)
            run.pretrain_preset(config, before, command.data)
        except ConfigError as error:
            hint = "(This is the pretraining; --policy PATH begins with a policy that is there.)"
            raise ConfigError(f"{error}\n{hint}") from error
        start = before / "checkpoints" / "last"
    folder = command.out or Path("runs") / method / dataset / chosen / f"seed{command.run.seed}"
    _finish(folder, run.finetune_preset(command.run, folder, start))


def evaluate(arguments: list[str]) -> None:
    """`dtune evaluate PATH`."""
    from dtune.experiments import run

    @dataclass(frozen=True, kw_only=True)
    class Evaluate:
        """Judges a policy with mean actions."""

        path: tyro.conf.Positional[Path]
        """A run folder (its best checkpoint) or a checkpoint."""
        episodes: int = 20
        """How many."""
        return_to_go: float | None = None
        """Return asked for, in reward units; what the policy was finetuned with by default."""
        threads: int = 1
        """CPU threads."""

    command = _parse(Evaluate, "evaluate", arguments)
    found = run.evaluate(
        command.path, episodes=command.episodes, return_to_go=command.return_to_go, threads=command.threads
    )
    for key, value in found.items():
        print(f"{key:26} {value:.2f}" if isinstance(value, float) else f"{key:26} {value}")


def demo(arguments: list[str]) -> None:
    """`dtune demo`."""
    from dtune.experiments.demo import DemoConfig, run_demo

    run_demo(_parse(DemoConfig, "demo", arguments))


def _pretrained(dataset: str, scale: str, seed: int) -> Path:
    return Path("runs") / "pretrain" / dataset / scale / f"seed{seed}"


def _finish(folder: Path, rows: list[dict[str, float]]) -> None:
    judged = [row for row in rows if "eval/return" in row]
    first, last = judged[0], judged[-1]
    for name, row in (("before", first), ("after", last)):
        print(
            f"{name:7} return {row['eval/return']:8.1f} ± {row['eval/return_std']:.1f}"
            f"   score {row['eval/normalized_score']:6.1f}   length {row['eval/length']:6.1f}"
        )
    print(f"run folder: {folder}")


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "demo": demo,
    "pretrain": pretrain,
    "finetune": finetune,
    "evaluate": evaluate,
}
