"""Several ranks on this machine: a process imports once, and forks as many as a job asks for."""

import json
import os
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent


class Ranks:
    """Runs jobs of `jobs.py` on several ranks, which are forked by a process that has imported everything."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
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
    from dtune.errors import DtuneError

    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    os.close(reader)
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
    import jaxtyping

    with jaxtyping.install_import_hook("dtune", "beartype.beartype"):
        import jobs
    jobs.learn("grpo", 1)  # what torch imports late is imported, too
    serve()
