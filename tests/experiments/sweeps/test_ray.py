"""Sweeps on a Ray cluster of two nodes on this machine."""

import signal
import time

import pytest
from test_sweep import finish, ledger_of, log_of, outcomes, rows, start_sweep, tiny_runs

from dtune.cli import main
from dtune.errors import ConfigError
from dtune.experiments.sweeps.jobs import Machine, starts

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 2,
}
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture
def cluster(monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    made = Cluster(
        initialize_head=True, head_node_args={**NODE, "include_dashboard": False, "_system_config": QUICK_TO_NOTICE}
    )
    yield made
    made.shutdown()


def wait_for(process, what, limit: float = 600.0) -> None:
    began = time.monotonic()
    while not what():
        assert process.poll() is None, finish(process)
        assert time.monotonic() - began < limit
        time.sleep(0.05)


def test_a_sweep_that_loses_a_node_ends_complete_and_as_if_it_had_not(pretrained, cluster, tmp_path):
    (tmp_path / "hopper-random-v2.hdf5").touch()
    seeds, out = 6, tmp_path / "out"
    runs = tiny_runs(out, pretrained, seeds=seeds)
    doomed = cluster.add_node(**NODE)
    process = start_sweep(tmp_path, pretrained, "--ray", cluster.address, seeds=seeds)

    def underway() -> list[int]:
        """Rows so far of the runs that were begun and have not ended."""
        begun = [run for run in runs if starts(log_of(out, run.key))]
        return [count for run in begun if (count := rows(out / run.key)) < 7]

    wait_for(process, lambda: len(underway()) >= 2 and max(underway(), default=0) > 1)  # one on each node
    cluster.remove_node(doomed, allow_graceful=False)
    code, said, err = finish(process, timeout=1500)
    assert code == 0, err
    assert "12/12 done" in said  # Ray itself tells of the lost node, too
    attempts = [entry["attempts"] for entry in ledger_of(out).values()]
    assert (min(attempts), max(attempts)) == (1, 2)  # what was on the lost node was begun twice
    alone = tiny_runs(tmp_path / "alone", pretrained, seeds=seeds)
    for run in alone:
        main(run.arguments)  # here, which saves the imports
    assert outcomes(out, runs) == outcomes(tmp_path / "alone", alone)


def test_a_local_cluster_for_trying_and_a_signal_that_stops_it(pretrained, tmp_path):
    (tmp_path / "hopper-random-v2.hdf5").touch()
    out = tmp_path / "out"
    runs = tiny_runs(out, pretrained)
    process = start_sweep(tmp_path, pretrained, "--ray", "local:2", "--jobs", "2")
    wait_for(process, lambda: any(rows(out / run.key) > 1 for run in runs))
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 75
    assert "stopped by SIGTERM" in err
    assert {entry["state"] for entry in ledger_of(out).values()} <= {"pending", "done"}
    assert all(starts(log_of(out, run.key)) == 1 for run in runs)  # logs are below the sweep's folder, wherever it ran
    code, said, _ = finish(start_sweep(tmp_path, pretrained, "--ray", "local:2"))
    assert code == 0
    assert "2/2 done" in said


@pytest.mark.parametrize("address", ["local:0", "local:two", "127.0.0.1:1"])
def test_what_is_no_cluster_is_refused(address):
    from dtune.experiments.sweeps.ray_engine import RayEngine

    with pytest.raises(ConfigError, match=address):
        RayEngine(address)


def test_runs_that_no_node_can_hold_are_refused_and_those_that_one_can_are_placed():
    from dtune.experiments.sweeps.ray_engine import RayEngine

    class Nodes:
        def nodes(self):
            return [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 8.0, "GPU": 1.0}}]

        def shutdown(self): ...

    engine = object.__new__(RayEngine)
    engine._ray, engine._cluster = Nodes(), None
    engine._check_room(Machine(threads=2))
    for machine in (Machine(threads=3), Machine(device="cuda")):
        with pytest.raises(ConfigError, match=r"no node of the cluster has \d CPUs and \d GPUs for a run: lower"):
            engine._check_room(machine)
