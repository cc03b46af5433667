"""How far one run of GRPO-DT gains by more processes: measured for 1 and 2 of them here, modelled for many machines.

`python benchmarks/scaling.py [--quick] [--scale paper] [--bandwidth 1.25e9] [--latency 5e-5] [--out ...]`

measured  seconds of the parts of an iteration with 1 and 2 processes of one thread each, in turns, medians over the
          rounds; efficiency is t₁ / (2 t₂); bytes that a process puts into collectives, by `parallel.traffic`
share     the same parts in one process that has only the share of one of N machines, with nobody to talk to
model     an iteration on N machines like this one: the shares, and the collectives by a ring of `--bandwidth` bytes/s
          each way and `--latency` seconds a message, small ones too, as gloo does. `strong`: the paper's iteration.
          `weak`: N times as many groups, episodes and rows a gradient step

The model knows no overlap, no congestion and no stragglers, and every machine is as fast as this one; between the
shares measured it is a line through them. `first` is what costs most of what does not shrink. Hoppers do not fall, so
that all walks stay alive. `--quick` only shows that the program works.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acting import GOAL, Line, Size, hoppers, quick
from worlds import clocks, write

from dtune import parallel
from dtune.algorithms.grpo import GRPO, GRPOConfig

PARTS = {"episodes": "_collect", "points": "_choose_reset_points", "groups": "_grow_groups", "updates": "_optimise"}
"""Parts of an iteration, by the method that does them."""
GROUPS, BATCH, BUFFER = 64, 256, 2048
MACHINES = (2, 8, 32, 128, 512)


def timed(algorithm: GRPO) -> dict[str, list[float]]:
    """Seconds of each part in each iteration from now on."""
    seconds: dict[str, list[float]] = {name: [] for name in (*PARTS, "iteration")}

    def watch(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            parallel.total(torch.zeros(1))  # who waits for others does so here
            began = time.perf_counter()
            result = method(*arguments)
            seconds[name].append(time.perf_counter() - began)
            return result

        return call

    for name, method in {**PARTS, "iteration": "iterate"}.items():
        setattr(algorithm, method, watch(name, getattr(algorithm, method)))
    return seconds


def learner(size: Size, groups: int, batch: int, buffer: int) -> GRPO:
    config = GRPOConfig(
        return_to_go=GOAL, reset_trajectories=max(groups // 4, 1), reset_points=min(groups, 4), return_margin=0.0,
        subtrajectory_capacity=buffer, batch_size=batch, lookahead_length=400 if size.walks > 16 else 5,
    )  # fmt: skip
    return GRPO(size.transformer(), config)


def child(size: Size, groups: int, batch: int, buffer: int, iterations: int) -> dict[str, Any]:
    """Some iterations behind as many as fill the buffer; medians of seconds, bytes, processor seconds."""
    with parallel.begun():
        algorithm, simulator = learner(size, groups, batch, buffer), hoppers(1, size.episode)
        while len(algorithm.buffer) < buffer:
            algorithm.iterate(simulator)
        parallel.traffic.clear()
        seconds, done = timed(algorithm), algorithm.metrics.gradient_steps
        for _ in range(iterations):
            algorithm.iterate(simulator)
        return {
            "seconds": {name: float(np.median(values)) for name, values in seconds.items()},
            "sent": {kind: count / iterations for kind, count in parallel.traffic.items()},
            "steps": (algorithm.metrics.gradient_steps - done) / iterations,
            "parameters": sum(p.numel() for p in algorithm.policy.parameters()),
            "episode": sum(v[0].nbytes for v in algorithm.replay.rows.values()),
            "busy": time.process_time(),
        }


def run(options: argparse.Namespace, ranks: int, share: int = 1) -> dict[str, Any]:
    """`child` on some ranks, each of which has a part of the groups that `share` machines have; rank 0's account."""
    rows = [max(count // share, least) for count, least in ((GROUPS, 1), (BATCH, 8), (BUFFER, 8))]
    if options.quick:
        rows = [2, 8, 16]
    command = [sys.executable, __file__, "--child", *map(str, rows), "--scale", options.scale, "--iterations",
               str(options.iterations), *["--quick"] * options.quick]  # fmt: skip
    port = str(29500 + os.getpid() % 1000)
    many = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    before = clocks()
    started = [
        subprocess.Popen(command, env=os.environ | many | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(ranks)
    ]
    told = [json.loads(process.communicate()[0]) for process in started]
    wall, _, busy = clocks() - before
    return told[0] | {"foreign": max(0.0, (busy - sum(part["busy"] for part in told)) / wall)}


def line(kind: str, part: str, machines: int, seconds: float, efficiency: float, sent: float, note: str) -> Line:
    return {
        "kind": kind, "part": part, "machines": machines, "seconds": f"{seconds:.4g}",
        "efficiency": f"{efficiency:.3f}", "sent_mb": f"{sent / 1e6:.3f}", "note": note,
    }  # fmt: skip


def measured(options: argparse.Namespace) -> tuple[list[Line], dict[str, Any]]:
    """1 and 2 processes in turns; and the account of one of the two."""
    told: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for turn in range(options.rounds):
        for ranks in (1, 2) if turn % 2 else (2, 1):
            told[ranks].append(run(options, ranks))
    account, lines = told[2][0], []
    expected = 4 * (account["parameters"] + 5) * account["steps"]
    foreign = max(part["foreign"] for parts in told.values() for part in parts)
    for part in (*PARTS, "iteration"):
        one, two = (float(np.median([each["seconds"][part] for each in told[ranks]])) for ranks in (1, 2))
        sent = sum(account["sent"].values()) if part == "iteration" else 0.0
        gradients = f"; {expected / 1e6:.3f} MB of it gradients" if part == "iteration" else ""
        note = f"of one process: {one:.4g} s; foreign cores {foreign:.2f}{gradients}"
        lines.append(line("measured", part, 2, two, one / two / 2, sent, note))
    return lines, account


def shares(options: argparse.Namespace) -> Iterator[tuple[Line, int, dict[str, Any]]]:
    """One process with the share of one of N machines."""
    for machines in (1, 2) if options.quick else (1, 4, 16, 64):
        told = run(options, 1, machines)
        for part in PARTS:
            note = f"foreign cores {told['foreign']:.2f}"
            yield line("share", part, machines, told["seconds"][part], 1.0, 0.0, note), machines, told


def ring(size: float, machines: int, options: argparse.Namespace) -> float:
    """Seconds to add up `size` bytes over a ring: each sends 2(N-1)/N of them, in as many messages."""
    return 2 * (machines - 1) * (size / machines / options.bandwidth + options.latency)


def spread(size: float, machines: int, options: argparse.Namespace) -> float:
    """Seconds until all have `size` bytes of one machine: N - 1 messages in a ring of pieces."""
    return size / options.bandwidth + (machines - 1) * options.latency


def terms(
    machines: int, weak: bool, found: dict[int, dict[str, float]], account: dict[str, Any], options: argparse.Namespace
) -> dict[str, float]:
    """Seconds of each part of an iteration on some machines."""
    known = sorted(found)
    share = 1 if weak else min(machines, GROUPS)  # a group is not cut in pieces

    def at(part: str) -> float:  # work falls as 1 / N: a line in that
        return float(np.interp(-1 / share, [-1 / n for n in known], [found[n][part] for n in known]))

    steps, gradient = account["steps"], 4.0 * account["parameters"]
    parts = {part: at(part) for part in ("groups", "updates")}
    parts["points"] = found[1]["points"] if weak else max(found[1]["points"] / min(machines, 4), 0.0)
    parts["episodes"] = found[1]["episodes"]  # one walk cannot be shared; weak: one each
    parts["gradients"] = steps * ring(gradient, machines, options)
    parts["other collectives"] = 2 * steps * ring(16, machines, options) + 8 * ring(64, machines, options)
    parts["spreading episodes"] = spread(account["episode"] * (machines if weak else 1), machines, options)
    return parts


def model(found: dict[int, dict[str, float]], account: dict[str, Any], options: argparse.Namespace) -> Iterator[Line]:
    for kind in ("strong", "weak"):
        alone = sum(found[1].values())
        for machines in MACHINES:
            parts = terms(machines, kind == "weak", found, account, options)
            seconds = sum(parts.values())
            efficiency = alone / seconds / (1 if kind == "weak" else machines)
            ideal = {part: found[1].get(part, 0.0) / (1 if kind == "weak" else machines) for part in parts}
            first = max(parts, key=lambda part: parts[part] - ideal[part])
            said = ", ".join(f"{part} {value:.3g}" for part, value in parts.items())
            yield line("model", kind, machines, seconds, efficiency, 0.0, f"first: {first} ({said})")


def main() -> None:
    parser = argparse.ArgumentParser(description="What more processes gain.")
    parser.add_argument("--quick", action="store_true", help="as little as possible: the numbers mean nothing")
    parser.add_argument("--scale", choices=("small", "paper"), default="small", help="of the network")
    parser.add_argument("--rounds", type=int, default=3, help="turns of 1 and 2 processes")
    parser.add_argument("--iterations", type=int, default=5, help="measured in each turn")
    parser.add_argument("--bandwidth", type=float, default=1.25e9, help="bytes/s each way: 10 Gbit/s")
    parser.add_argument("--latency", type=float, default=5e-5, help="seconds a message")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/scaling.csv"), help="CSV to write")
    parser.add_argument("--child", nargs=3, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = quick(1) if options.quick else Size(threads=1)
    if options.scale == "small":
        size = replace(size, layers=min(size.layers, 2), width=64)
    if options.child:
        print(json.dumps(child(size, *options.child, options.iterations)))
        return
    table: list[Line] = []
    found: dict[int, dict[str, float]] = {}

    def tell(one: Line) -> None:
        print("  ".join(f"{value!s:<{width}}" for value, width in zip(one.values(), (8, 9, 4, 9, 6, 9, 9))), flush=True)
        table.append(one)

    lines, account = measured(options)
    for one in lines:
        tell(one)
    for one, machines, told in shares(options):
        tell(one)
        found[machines] = {part: told["seconds"][part] for part in PARTS}
    for one in model(found, account, options):
        tell(one)
    write(options.out, table)


if __name__ == "__main__":
    main()
