"""Jobs on a Ray cluster: Ray places them, and tries them again when a worker or a whole node is gone."""

import math
import os
import socket
import time
from pathlib import Path
from typing import Any, final

from dtune.errors import ConfigError
from dtune.experiments.sweeps import jobs
from dtune.experiments.sweeps.jobs import ONE_THREAD, RETRIES, Change, Job, Machine

LOCAL = "local:"
"""`local:N` instead of an address: a cluster of N nodes on this machine, to try it."""

_HANDED_ON = ("DTUNE_", "D4RL_", "MINARI_")
"""Beginnings of the environment variables that tasks get from whoever submits them."""


class Crashed(Exception):
    """A command that ended so that it is worth another start."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def attempt(
    arguments: tuple[str, ...], log: str, cwd: str, environment: dict[str, str]
) -> tuple[int, float]:  # what Ray runs on some node
    """Runs a command to its end, as `LocalEngine` does; its exit code, and the seconds it took.

    Raises:
        Crashed: for Ray to start it again.
    """
    began = time.monotonic()
    code = jobs.run_to_end(arguments, Path(log), cwd=Path(cwd), environment=environment)
    if jobs.state_of(code) == "pending":
        raise Crashed(code)
    return code, time.monotonic() - began


@final
class RayEngine:
    """Runs each job as a task of its own; all nodes have to see the same files.

    Args:
        address: of a cluster; `auto` for the one this machine is in; `local:N` starts one of N nodes here.
        jobs: at a time on such a local cluster, over all of its nodes.
        retries: Ray's `max_retries`.
        machine: what each job takes up.

    Raises:
        ConfigError: if Ray is not installed, or there is no such cluster.
    """

    def __init__(self, address: str, jobs: int = 1, retries: int = RETRIES, machine: Machine = ONE_THREAD) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # tells nobody
        try:
            import ray
        except ImportError:
            raise ConfigError("--ray needs the package ray: pip install 'dtune[ray]'") from None
        self._ray: Any = ray
        self._cluster = _local_cluster(address, jobs, machine) if address.startswith(LOCAL) else None
        try:
            if self._cluster is None:
                _knock(address)
            ray.init(
                address=self._cluster.address if self._cluster else address,
                log_to_driver=False,
                logging_level="WARNING",
            )
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            said = " ".join(str(error).split())[:200]
            raise ConfigError(f"there is no Ray cluster at {address} ({said}): give --ray its address") from error
        self._check_room(machine)
        # max_calls: a process a task, so that none inherits anything from the one before
        self._task = ray.remote(
            num_cpus=machine.threads,
            num_gpus=machine.gpus,
            max_retries=retries,
            retry_exceptions=[Crashed],
            max_calls=1,
        )(attempt)
        self._jobs: dict[Any, Job] = {}
        self._begun: dict[str, int] = {}  # starts in a job's log, when it was submitted and as of now
        self._seen: dict[str, int] = {}

    def _check_room(self, machine: Machine) -> None:
        """Refuses runs that no node could hold: Ray would wait for ever for one that can."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= machine.threads and node.get("GPU", 0) >= machine.gpus for node in nodes):
            self.close()
            raise ConfigError(
                f"no node of the cluster has {machine.threads} CPUs and {machine.gpus} GPUs for a run: lower --threads,"
                " or leave out --device"
            )

    def submit(self, job: Job) -> None:
        """Hands a job to the cluster."""
        environment = {name: value for name, value in os.environ.items() if name.startswith(_HANDED_ON)}
        self._begun[job.key] = self._seen[job.key] = jobs.starts(job.log)
        reference = self._task.remote(job.arguments, str(job.log.absolute()), str(Path.cwd()), environment)
        self._jobs[reference] = job

    def poll(self, patience: float) -> list[Change]:
        """See `Engine.poll`. That a job is running is read off its log."""
        if not self._jobs:
            return []
        ended, _ = self._ray.wait(list(self._jobs), num_returns=1, timeout=patience)
        changes = [change for job in self._jobs.values() if (change := self._progress(job))]
        return changes + [self._end(reference) for reference in ended]

    def stop(self, number: int) -> list[Change]:  # noqa: ARG002
        """See `Engine.stop`; Ray interrupts its tasks, and those pass it on as SIGTERM."""
        for reference in self._jobs:
            self._ray.cancel(reference, force=False)
        return [self._end(reference) for reference in list(self._jobs)]

    def close(self) -> None:
        """Leaves the cluster, and ends a local one."""
        self._ray.shutdown()
        if self._cluster is not None:
            self._cluster.shutdown()

    def _progress(self, job: Job) -> Change | None:
        found = jobs.starts(job.log)
        if found <= self._seen[job.key]:
            return None
        self._seen[job.key] = found
        return Change(key=job.key, state="running", starts=found - self._begun[job.key])

    def _end(self, reference: Any) -> Change:
        """What became of a task that has ended; waits for one that has not."""
        job = self._jobs.pop(reference)
        state: jobs.State
        seconds = 0.0
        try:
            code, seconds = self._ray.get(reference)
            state = jobs.state_of(code)
        except self._ray.exceptions.TaskCancelledError:
            state, code = "pending", 75
        except Crashed as error:  # as often as Ray may try it
            state, code = "failed", error.code
        except self._ray.exceptions.RayError:  # node after node went away
            state, code = "failed", 1
        count = jobs.starts(job.log) - self._begun[job.key]
        return Change(key=job.key, state=state, starts=count, seconds=seconds, code=code)


def _knock(address: str) -> None:
    """Refuses a HOST:PORT where nobody listens; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _local_cluster(address: str, jobs: int, machine: Machine) -> Any:
    """A cluster of the nodes asked for, in processes on this machine."""
    from ray.cluster_utils import Cluster

    count = address.removeprefix(LOCAL)
    if not count.isdecimal() or not int(count):
        raise ConfigError(f"--ray {address}: say local:2 for a cluster of two nodes on this machine")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 gives way to all else on the machine
    each = math.ceil(jobs / int(count))
    options = {
        "num_cpus": each * machine.threads,
        "num_gpus": each * machine.gpus,
        "object_store_memory": 80 * 2**20,
    }
    cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
    for _ in range(int(count) - 1):
        cluster.add_node(**options)
    cluster.wait_for_nodes()
    return cluster
