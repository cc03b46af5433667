"""The command `dtune`: presets as subcommands, every field an option."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version

from dtune.cli import data, recording, reporting, sharing, training
from dtune.cli.check import check
from dtune.cli.completion import completion
from dtune.cli.importing import import_policy
from dtune.cli.machine import doctor
from dtune.cli.replaying import replay
from dtune.cli.sweeping import sweep
from dtune.errors import ConfigError, DtuneError, meant

# Torch takes a second to import: only where a command needs it, so that `dtune --help` answers at once.

USAGE = """usage: dtune COMMAND ... [--debug]

  dtune demo                          make data, pretrain, finetune with GRPO-DT and PPO-DT, compare (10 minutes)
  dtune pretrain DATASET              fit a decision transformer to offline data
  dtune finetune METHOD/DATASET       improve it online by grpo, ppo, q_guided, odt, odt_td3 or iql; dt judges it
  dtune sweep --table 1 | --figure 2c run them all: datasets x methods x seeds, here or on a Ray cluster
  dtune evaluate PATH                 judge the policy of a run folder or checkpoint
  dtune collect RUNS --out DIR        put the evaluations of runs into CSVs, one a run
  dtune report RESULTS                Table 1 beside the paper's, intervals, and what it cost; --html FILE: a page
  dtune figures RESULTS --out DIR     Figs. 1 to 4, against iterations, environment steps and seconds
  dtune record PATH --out FILE        a video of an episode; --before PATH: two side by side
  dtune data list|show|make|download  the datasets: which are here, what is in one, and how to get one
  dtune check env ID                  say what is right and wrong with a Gymnasium environment, or a task
  dtune replay FILE                   walk again, step by step, what a run stopped for with exit code 5
  dtune doctor                        versions, threads, graphics, GPU, disk, and what is known to be bad
  dtune import PATH --out DIR         make a checkpoint of online-dt's model.pt or of a Hugging Face folder
  dtune export PATH --out FILE.onnx   write a policy as ONNX, compared with itself
  dtune push PATH USER/NAME           send a policy to Hugging Face, with a model card
  dtune completion bash|zsh           print what makes the shell complete all this

`dtune COMMAND --help` lists what else can be said; `dtune finetune METHOD/DATASET --help` every hyperparameter;
`dtune --version` the version.
The same command again continues a run that was cut off. Exit codes: 0 done, 2 usage or configuration, 3 data,
4 environment, 5 numbers no longer finite, 75 stopped by SIGTERM or SIGUSR1, 130 by Ctrl-C (saved), 1 anything else."""

COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "demo": training.demo,
    "pretrain": training.pretrain,
    "finetune": training.finetune,
    "evaluate": training.evaluate,
    "collect": reporting.collect,
    "report": reporting.report,
    "figures": reporting.figures,
    "record": recording.record,
    "sweep": sweep,
    "data": data.data,
    "check": check,
    "replay": replay,
    "doctor": doctor,
    "import": import_policy,
    "export": sharing.export,
    "push": sharing.push,
    "completion": completion,
}


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
    if given[0] == "--version":
        print(f"dtune {version('dtune')}")
        sys.exit(0)
    command = COMMANDS.get(given[0])
    if command is None:
        hint = meant(given[0], COMMANDS)
        raise ConfigError(f"there is no command {given[0]!r}{hint}: choose one of {', '.join(COMMANDS)}")
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
