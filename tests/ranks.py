"""Several ranks on this machine: a process imports once, and forks as many as a job asks for."""

import json
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from subprocess import Popen
from typing import Any

import jaxtyping
import torch

if __name__ == "__main__":  # shapes are checked on the ranks, too
    tower = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
    jaxtyping.install_import_hook("dtune", tower)

from dtune.errors import DtuneError
from dtune.experiments import checkpoint
from dtune.experiments.encoding import encode

TESTS = Path(__file__).parent


def environment(**more: str) -> dict[str, str]:
    """Of processes that import what this one imports: one thread each, and no dataset of the user's."""
    path = os.pathsep.join([str(TESTS), str(TESTS / "algorithms"), *sys.path])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"} | more


class Ranks:
    """Runs jobs of `jobs.py` on several ranks, which are forked by a process that has imported everything."""

    def __init__(self) -> None:
        self._process = Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), text=True
        )

    def run(self, job: str, count: int, **arguments: Any) -> list[Any]:
        """What `job(**arguments)` gives on each of `count` ranks, as JSON has it; what it raises, as text."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"job": job, "count": count, "arguments": arguments}), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


def torchrun(*options: str, before: Sequence[str] = (), timeout: int = 60, **arguments: Any) -> Popen[str]:
    """The job `finetune`, by torchrun; `before` is what the command begins with."""
    command = [
        *before, sys.executable, "-m", "torch.distributed.run", *options, str(TESTS / "jobs.py"),
        json.dumps(arguments),
    ]  # fmt: skip
    variables = environment(DTUNE_TIMEOUT=str(timeout))
    return Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def workers(process: Popen[str]) -> dict[str, int]:
    """Processes that torchrun has started, by rank."""
    found = {}
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        told = Path(f"/proc/{child}/environ").read_text().split("\0")
        found |= {line.removeprefix("RANK="): int(child) for line in told if line.startswith("RANK=")}
    return found


def iterations(run: Path) -> int:
    """Recorded so far."""
    path = run / "metrics.csv"
    return path.read_bytes().count(b"\n") - 2 if path.exists() else -1


def wait_for(process: Popen[str], run: Path, iteration: int, limit: float = 90.0) -> None:
    began = time.monotonic()
    while iterations(run) < iteration:
        assert process.poll() is None, process.communicate()
        if time.monotonic() - began > limit:
            process.terminate()
            raise AssertionError(process.communicate())
        time.sleep(0.01)


def close(a: Any, b: Any, tolerance: float = 2e-4) -> bool:
    """Whether numbers are the same to rounding."""
    return torch.allclose(torch.tensor(a).double(), torch.tensor(b).double(), rtol=tolerance, atol=tolerance)


def saved(run: Path) -> dict[str, torch.Tensor]:
    """The last state of a run, without what says whose was what."""
    state = encode(checkpoint.load(run / "checkpoints" / "last"))[1]
    return {name: value for name, value in state.items() if not name.endswith("owners")}


def check_alike(run: Path, expected: Path) -> None:
    """Records and last states are the same to rounding."""
    ours, theirs = saved(run), saved(expected)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert close(ours[name].tolist(), value.tolist(), 1e-3), name
    lines, rows = ((path / "metrics.csv").read_text().splitlines() for path in (run, expected))
    assert lines[0] == rows[0]
    for line, row in zip(lines[1:], rows[1:], strict=True):
        for mine, other in zip(line.split(","), row.split(","), strict=True):
            assert mine == other or close(float(mine), float(other), 1e-2)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def variables(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    return {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def fork(job: dict[str, Any], rank: int, port: int) -> tuple[int, int]:
    """A process that does the job as one rank; its id, and where to read what it gives."""
    import jobs

    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    os.close(reader)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # ours is for what jobs give
    try:
        os.environ.update(variables(rank, job["count"], port))
        told = getattr(jobs, job["job"])(**job["arguments"])
    except BaseException as error:
        told = f"{type(error).__name__}: {error}"
        if not isinstance(error, DtuneError):
            traceback.print_exc()
    with os.fdopen(writer, "w") as out:
        json.dump(told, out)
    sys.stderr.flush()
    os._exit(0)


def serve() -> None:
    for line in sys.stdin:
        job, port = json.loads(line), free_port()
        children = [fork(job, rank, port) for rank in range(job["count"])]
        told = []
        for child, reader in children:
            with os.fdopen(reader) as said:
                told.append(json.loads(said.read() or '"died"'))
            os.waitpid(child, 0)
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    import jobs

    jobs.learn("grpo", 1)  # what torch imports late is imported, too
    serve()
