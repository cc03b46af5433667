"""One run over four hosts, which are network namespaces of this machine, and what happens when one is cut off."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from shutil import which

import pytest
from ranks import Ranks, check_alike, torchrun, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or which("ip") is None, reason="needs root, and iproute2"),
]
HOSTS = 4
MARK = f"dt{os.getpid() % 100_000}"
"""Begins every name that is made here; an interface has room for 15 letters."""
RENDEZVOUS = "last_call_timeout=10,join_timeout=90,keep_alive_interval=2,keep_alive_max_attempt=5"


def ip(*arguments: str, check: bool = True) -> str:
    ran = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if check and ran.returncode:
        pytest.skip(f"ip {' '.join(arguments)}: {ran.stderr.strip()}")
    return ran.stdout


@contextmanager
def hosts() -> Iterator[list[str]]:
    """Namespaces on a bridge, 10.77.0.1 and so on; nothing is left of them."""
    names = [f"{MARK}h{number}" for number in range(1, HOSTS + 1)]
    try:
        ip("link", "add", f"{MARK}b", "type", "bridge")
        ip("link", "set", f"{MARK}b", "up")
        for number, name in enumerate(names, 1):
            ip("netns", "add", name)
            ip("link", "add", f"{MARK}v{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"{MARK}v{number}", "master", f"{MARK}b", "up")
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for number, name in enumerate(names, 1):
            ip("link", "del", f"{MARK}v{number}", check=False)  # the kernel would take its time
            for process in ip("netns", "pids", name, check=False).split():
                os.kill(int(process), signal.SIGKILL)
            ip("netns", "del", name, check=False)
        ip("link", "del", f"{MARK}b", check=False)


def test_a_host_is_cut_off_and_the_others_go_on(tmp_path):
    server = Ranks()
    server.run("finetune", 1, folder=str(tmp_path / "one"), iterations=10)
    server.close()
    with hosts() as names:
        processes = [
            torchrun(
                "--nnodes", "3:4", "--nproc-per-node", "1", "--max-restarts", "3", "--rdzv-backend", "c10d",
                "--rdzv-id", MARK, "--rdzv-endpoint", "10.77.0.1:29400", "--local-addr", f"10.77.0.{number}",
                "--rdzv-conf", f"{RENDEZVOUS},is_host={int(number == 1)}",
                timeout=10,  # of a cut that nobody tells of
                before=["ip", "netns", "exec", name, "env", "GLOO_SOCKET_IFNAME=eth0"],
                folder=str(tmp_path / name), iterations=10, seconds=0.1,
            )
            for number, name in enumerate(names, 1)
        ]  # fmt: skip
        run = tmp_path / names[0]
        wait_for(processes[0], run, 4, limit=240.0)
        ip("link", "set", f"{MARK}v{HOSTS}", "down")
        ended = [process.communicate(timeout=240) for process in processes[:-1]]
    processes[-1].communicate(timeout=30)
    assert [process.returncode for process in processes[:-1]] == [0] * 3, ended
    assert "ranks=3" in ended[0][0]
    assert "continuing after iteration" in ended[0][0]
    assert not any((tmp_path / name).exists() for name in names[1:])
    check_alike(run, tmp_path / "one")
    assert MARK not in ip("link") + ip("netns")
