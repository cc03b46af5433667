"""A pretrained Hopper policy, and runs of it, as small as they get: seconds, whoever asks."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PRETRAIN = [
    "pretrain", "hopper-random-v2", "--scale", "small", "--iterations", "1", "--evaluation-episodes", "2",
    "--random-episodes", "6", "--model.layers", "1", "--model.heads", "2", "--model.width", "16",
    "--algorithm.updates-per-iteration", "4", "--algorithm.batch-size", "8",
]  # fmt: skip

_RUN = [
    "--scale", "small", "--threads", "1", "--iterations", "6", "--evaluation-episodes", "2", "--evaluate-every", "3",
]  # fmt: skip

GRPO = [
    "finetune", "grpo/hopper-random-v2", *_RUN, "--checkpoint-every", "2",
    "--algorithm.replay-capacity", "2", "--algorithm.reset-trajectories", "2", "--algorithm.group-size", "4",
    "--algorithm.subtrajectory-length", "3", "--algorithm.lookahead-length", "2",
    "--algorithm.subtrajectory-capacity", "12", "--algorithm.batch-size", "4",
]  # fmt: skip

PPO = [
    "finetune", "ppo/hopper-random-v2", *_RUN, "--checkpoint-every", "2",
    "--algorithm.episodes-per-iteration", "2", "--algorithm.replay-capacity", "4", "--algorithm.batch-size", "8",
    "--algorithm.updates-per-iteration", "2",
]  # fmt: skip

_POLICY = ["--checkpoint-every", "2", "--algorithm.context-length", "1"]
_FIT = ["--algorithm.update.context-length", "2", "--algorithm.update.batch-size", "8",
        "--algorithm.update.updates-per-iteration", "2"]  # fmt: skip

Q_GUIDED = [
    "finetune", "q_guided/hopper-random-v2", *_RUN, *_POLICY, "--algorithm.episodes-per-iteration", "2",
    "--algorithm.state-trajectories", "2", "--algorithm.states", "1", "--algorithm.group-size", "4",
    "--algorithm.batch-size", "4", "--algorithm.critic-updates", "2", "--algorithm.critic-batch-size", "8",
    "--algorithm.critic.offline-updates", "3", "--algorithm.critic.width", "8",
]  # fmt: skip

ODT = ["finetune", "odt/hopper-random-v2", *_RUN, *_POLICY, *_FIT, "--algorithm.min-steps", "0"]

ODT_TD3 = [
    "finetune", "odt_td3/hopper-random-v2", *_RUN, *_POLICY, *_FIT, "--algorithm.min-steps", "0",
    "--algorithm.critic.offline-updates", "3", "--algorithm.critic.width", "8",
]  # fmt: skip

IQL = [
    "finetune", "iql/hopper-random-v2", *_RUN, "--checkpoint-every", "2", "--algorithm.batch-size", "8",
    "--algorithm.width", "8", "--algorithm.pretraining-updates", "8", "--algorithm.updates-per-offline-iteration", "4",
    "--algorithm.min-steps", "20", "--algorithm.replay-capacity", "2000",
]  # fmt: skip

COMMANDS = {"grpo": GRPO, "ppo": PPO}
OTHERS = {"q_guided": Q_GUIDED, "odt": ODT, "odt_td3": ODT_TD3, "iql": IQL}
"""The methods that go on learning from the offline data, which `--data` has to name."""


def environment(folder: Path) -> dict[str, str]:
    """One thread, and no dataset of the user's."""
    return os.environ | {"OMP_NUM_THREADS": "1", "DTUNE_DATA": str(folder / "data"), "PYTHONWARNINGS": "ignore"}


def start(arguments: Sequence[str], folder: Path, *, before: str = "") -> subprocess.Popen[str]:
    """`dtune …` in a process of its own, in `folder`; `before` is Python to run first."""
    script = f"import sys\n{before}\nfrom dtune.cli import main\nmain(sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 120) -> tuple[int, str, str]:
    """Waits for the end: exit code, standard output, standard error."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def outcome(run: Path) -> dict[str, bytes]:
    """What a run is about, byte for byte: its record and its last state."""
    last = run / "checkpoints" / "last"
    files = [run / "metrics.csv", *sorted(last.iterdir()), run / "checkpoints" / "best" / "policy.safetensors"]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}
