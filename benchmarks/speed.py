"""How near everything is to what the machine can do, and how far from how it is commonly written.

`python benchmarks/speed.py [--rows rollout gemm ...] [--quick] [--threads 2] [--out results/benchmarks/speed.csv]`

Every line is a ratio of two things measured in turns in the same run, a median over the rounds, so that what else runs
on the machine hits both alike; `foreign_cores` is what others took of it meanwhile. Networks have the paper's size and
random weights; Hoppers do not fall, so that all walks stay alive. `--quick` only shows that the program works.

rollout     512 walks of 15 sampled and 400 scoring steps: `naive.py` against float32, and with bfloat16 in the latter
parts       walks in one part for each thread against one part that all threads share
physics     closed loop against MuJoCo's open loop, as `worlds.py` has it
iteration   a whole iteration of GRPO-DT against naive, put together of its measured parts
gemm        arithmetic of the acting path, of updates and of pretraining against the machine's fastest matrix product
walks       cost of a step of a walk, against the number of walks and threads
memory      peak memory of a process that does two iterations at the paper's scale
small       environment steps a second of whole iterations at scale `small`, of one run with all threads and of as many
            runs of one thread each: against MuJoCo's open loop over the very same steps, and over the first 40 of
            episodes under random actions, which are easier, because Hoppers that lie have more contacts
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from acting import DTYPES, GOAL, Line, Size, hoppers, in_turns, line, parts, quick, rollout, rollout_times, walks
from naive import NaiveGroups, NaiveTransformer, NaiveUpdate
from worlds import Closed, clocks, compete, open_loops, write

from dtune.algorithms.grpo import GRPO, GRPOConfig
from dtune.algorithms.supervised import SupervisedConfig, SupervisedUpdate
from dtune.algorithms.update import ClippedUpdate, UpdateConfig
from dtune.data.steps import Steps
from dtune.envs.rollout import Rollout
from dtune.envs.simulator import Outcome
from dtune.envs.tasks import make_simulator
from dtune.experiments.presets import finetuning
from dtune.models.products import packed

Stretch = tuple[np.ndarray, torch.Tensor]
"""Where walks were put, `[rows, snapshot]`, and every action since then, `[steps, rows, action]`."""


def physics(size: Size) -> Iterator[Line]:
    for threads in dict.fromkeys((1, size.threads)):
        simulator = make_simulator("hopper", threads)
        loops = open_loops(simulator, size.walks, threads)
        rates, foreign = compete({"closed": Closed(simulator=simulator), **loops}, simulator, size.walks, size.rounds)
        ours, bars = np.median(rates["closed"][:, 0]), {name: np.median(rates[name][:, 0]) for name in loops}
        bar = max(bars, key=lambda name: bars[name])
        ratio = float(np.median(rates["closed"][:, 0] / rates[bar][:, 0]))
        what = f"closed loop against MuJoCo's open loop, {size.walks} walks, {threads} threads"
        yield line("physics", what, float(ours), float(bars[bar]), ratio, "steps/s", foreign)


def draws(rows: int, time: int, context: int = 1) -> Steps:
    """Windows of nothing in particular."""
    length = time + context - 1
    raw, scalar = torch.randn(rows, length, 3), torch.randn(rows, length)
    return Steps(
        observations=torch.randn(rows, length, 11), raw_actions=raw, actions=raw.tanh(), rewards=scalar,
        returns_to_go=1000 * scalar, log_probs=torch.full((rows, length), -3.0),
        timesteps=torch.zeros(rows, length, dtype=torch.long), mask=torch.ones(rows, length, dtype=torch.bool),
    )  # fmt: skip


def iteration(size: Size) -> Iterator[Line]:
    """One trajectory of 1000 steps, a group rollout, eight updates."""
    policy, simulator = size.transformer(), hoppers(size.threads)
    update, steps, advantages = ClippedUpdate(policy, UpdateConfig()), draws(size.update_rows, 15), torch.randn
    models = [NaiveTransformer(11, 3, size.width, size.layers) for _ in range(2)]
    naive, alone = NaiveUpdate(models[0], models[1]), NaiveGroups(models[0], 1)
    generator, start = torch.Generator().manual_seed(0), np.zeros((1, 6))
    part = max(size.episode // 50, 2)

    def trajectory(steps: int = part) -> None:
        walk = Rollout.begin(policy, simulator, 1, GOAL, generator)
        walk.advance(steps, generator=generator, snapshots=True, log_probs=False)

    whole, foreign, kind = rollout_times(
        size,
        {
            "update": lambda: update.step(steps, advantages(size.update_rows), generator),
            "naive update": lambda: naive.step(size.update_rows, 15),
            "trajectory": trajectory,
            "begin": lambda: trajectory(0),
            "naive trajectory": lambda: alone.walk(start, start, part, GOAL),
        },
    )
    other = whole["naive"] + 8 * whole["naive update"] + 1000 / part * whole["naive trajectory"]
    collected = whole["begin"] + 1000 / part * (whole["trajectory"] - whole["begin"])
    for name in DTYPES:
        ours = whole[name] + 8 * whole["update"] + collected
        what = f"iteration, lookahead in {name}, against naive ({kind})"
        yield line("iteration", what, ours, other, other / ours, "s", foreign)


def gemm(size: Size) -> Iterator[Line]:
    """Arithmetic as it has to be done: of the state token in acting, of two tokens (the last layer's return token only
    as key and value) in updates, thrice that with gradients and once for the reference; of all tokens in pretraining.
    """
    policy, side = size.transformer(), 2048 if size.width > 64 else 256
    weights = 12 * size.width**2
    update = ClippedUpdate(policy, UpdateConfig())
    steps, generator = draws(size.update_rows, 15), torch.Generator().manual_seed(0)
    pretrained = size.transformer(20)
    supervised = SupervisedUpdate(pretrained, SupervisedConfig())
    windows, batch = draws(max(size.update_rows // 4, 2), 1, 20), draws(size.walks, 1)
    forward = size.update_rows * 15 * ((2 * size.layers - 1) * weights + 2 * size.width**2)
    tokens = len(windows.mask) * (59 * (size.layers - 1) + 20) * weights
    work = {
        "acting, float32": (2 * size.walks * size.layers * weights, policy.acting(), batch),
        "acting, bfloat16": (2 * size.walks * size.layers * weights, policy.acting(torch.bfloat16), batch),
        "update": (2 * 4 * forward, lambda x: update.step(x, torch.randn(len(x.mask)), generator), steps),
        "pretraining, context 20": (2 * 3 * tokens, lambda x: supervised.step(x, generator), windows),
    }
    read = dict(zip(work, (size.walks, size.walks, size.update_rows * 15 * 2, windows.mask.numel() * 3), strict=True))
    x, square = torch.randn(side, side), torch.randn(side, side)
    products = {"torch.mm": partial(torch.mm, x, square)}
    products |= {name: partial(packed(square, x[0], dtype), x.to(dtype)) for name, dtype in DTYPES.items()}
    runs = {name: partial(function, argument) for name, (_, function, argument) in work.items()}
    seconds, foreign = in_turns(products | runs, size.rounds)
    rate = {name: 2 * side**3 / seconds[name] / 1e9 for name in products}
    for name, (operations, _, _) in work.items():
        peak = rate["bfloat16"] if "bfloat16" in name else max(rate["float32"], rate["torch.mm"])
        ours = operations / seconds[name] / 1e9
        yield line("gemm", f"{name}, against the fastest product", ours, peak, ours / peak, "GFLOP/s", foreign)
        fast = read[name] / seconds[name] / 1e3
        yield line("gemm", f"{name}, tokens a second", fast, fast * peak / ours, ours / peak, "k/s", foreign)


def memory(size: Size) -> Iterator[Line]:
    """In a process of its own, whose peak is asked for at its end."""
    before = clocks()
    with child("memory", size) as process:
        said, _ = process.communicate()
    wall, _, busy = clocks() - before
    peak, seconds, own = (float(word) for word in said.split())
    foreign = max(0.0, (busy - own) / wall)
    yield line(
        "memory", "peak of two iterations at the paper's scale, against 3 GB", peak, 3.0, 3 / peak, "GB", foreign
    )
    yield line("memory", "seconds of one of them", seconds, seconds, 1.0, "s", foreign)


def grpo_at_paper_scale(size: Size) -> GRPO:
    points = {"reset_trajectories": size.walks // 32 or 1, "reset_points": 4, "group_size": 8 if size.walks > 16 else 4}
    length = 400 if size.walks > 16 else 5
    return GRPO(size.transformer(), GRPOConfig(return_to_go=GOAL, lookahead_length=length, **points))


def peak_of_two(size: Size) -> None:
    """Two iterations; prints peak memory (GB), seconds of one, and processor seconds of all."""
    simulator, algorithm = hoppers(size.threads, size.episode), grpo_at_paper_scale(size)
    start = time.perf_counter()
    for _ in range(2):
        algorithm.iterate(simulator)
    seconds, status = (time.perf_counter() - start) / 2, Path("/proc/self/status").read_text()
    peak = float(status.split("VmHWM:")[1].split()[0]) / 1e6  # kB; `ru_maxrss` would be the parent's where that is more
    print(peak, seconds, time.process_time())


class Small:
    """GRPO-DT at scale `small`, whose Hoppers do not fall."""

    def __init__(self, size: Size, threads: int) -> None:
        self.config = finetuning("grpo", "hopper-medium-v2", "small").algorithm
        torch.set_num_threads(1)
        policy, self.simulator = replace(size, layers=2, width=64).transformer(), hoppers(threads, size.episode)
        self.algorithm = GRPO(policy, self.config)
        self.algorithm.iterate(self.simulator)

    def rate(self) -> float:
        """Environment steps a second of the iterations from one collection to the next."""
        done, begin = sum(self.algorithm.metrics.env_steps.values()), time.perf_counter()
        for _ in range(self.config.collection_interval):
            self.algorithm.iterate(self.simulator)
        return (sum(self.algorithm.metrics.env_steps.values()) - done) / (time.perf_counter() - begin)

    def stretches(self) -> list[Stretch]:
        """The physics of as many iterations, a stretch from where walks were put until one of them ends."""
        found: list[tuple[np.ndarray, list[torch.Tensor]]] = []
        left, step = np.zeros((0, 0)), self.simulator.step

        def remembered(actions: torch.Tensor) -> Outcome:
            nonlocal left
            now = self.simulator.snapshot()
            if not np.array_equal(now, left):
                found.append((now, []))
            found[-1][1].append(actions.clone())
            outcome = step(actions)
            left = self.simulator.snapshot()
            return outcome

        with patch.object(self.simulator, "step", remembered):
            self.rate()
        return [(start, torch.stack(actions)) for start, actions in found]


def beside(size: Size) -> None:
    """Iterates with one thread; for every line it is sent, prints the rate of some iterations and processor seconds."""
    run = Small(size, 1)
    print("ready", flush=True)
    for _ in sys.stdin:
        begin = time.process_time()
        print(run.rate(), time.process_time() - begin, flush=True)


def open_loop(stretches: list[Stretch], threads: int) -> Callable[[], float]:
    """MuJoCo alone over all of `stretches`; calling it gives steps a second."""
    simulator = hoppers(threads)
    loops = {rows: open_loops(simulator, rows, threads)["step"] for rows in {len(start) for start, _ in stretches}}

    def rate() -> float:
        steps = [actions[..., 0].numel() for _, actions in stretches]
        rates = [float(loops[len(start)](start, actions)[0]) for start, actions in stretches]
        return sum(steps) / float(np.divide(steps, rates).sum())

    return rate


def small(size: Size) -> Iterator[Line]:
    run, simulator = Small(size, size.threads), hoppers(size.threads)
    rows = run.config.reset_trajectories * run.config.reset_points * run.config.group_size
    simulator.reset(rows, torch.Generator().manual_seed(0))
    random = [(simulator.snapshot(), 2 * torch.rand(40, rows, 3) - 1)]
    raw = {name: open_loop(walked, size.threads) for name, walked in (("same", run.stretches()), ("random", random))}
    found: dict[str, list[float]] = {"one": [], "side": [], "processor": [], **{name: [] for name in raw}}
    with ExitStack() as stack:
        others = [stack.enter_context(child("beside", size)) for _ in range(size.threads)]
        assert all(tell(other) == "ready" for other in others)
        before = clocks()
        for _ in range(size.iterations):
            found["one"].append(run.rate())
            for name, rate in raw.items():
                found[name].append(rate())
            for other in others:
                print(file=other.stdin, flush=True)
            rates, seconds = zip(*(map(float, tell(other).split()) for other in others))
            found["side"].append(sum(rates))
            found["processor"].append(sum(seconds))
        wall, own, busy = clocks() - before
    torch.set_num_threads(size.threads)
    foreign = max(0.0, (busy - own - sum(found["processor"])) / wall)
    whole = {"one": f"one run, {size.threads} threads", "side": f"{size.threads} runs of one thread each"}
    loops = {"same": "the open loop of the same steps", "random": "MuJoCo's open loop"}
    for (name, who), (bar, what) in product(whole.items(), loops.items()):
        ratio = float(np.median(np.divide(found[name], found[bar])))
        ours, other = float(np.median(found[name])), float(np.median(found[bar]))
        yield line(
            "small", f"whole iterations at scale small, {who}, against {what}", ours, other, ratio, "steps/s", foreign
        )


def child(job: str, size: Size) -> subprocess.Popen[str]:
    """This program once more, for one of `JOBS`."""
    command = [sys.executable, __file__, "--child", job, "--threads", str(size.threads)]
    return subprocess.Popen(
        command + ["--quick"] * (size.walks < 512), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def tell(process: subprocess.Popen[str]) -> str:
    """The next line that a child prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


JOBS = {"memory": peak_of_two, "beside": beside}
ROWS = {function.__name__: function for function in (rollout, parts, physics, iteration, gemm, walks, memory, small)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Ratios to what the machine can do, and to naive code.")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), help="which to measure")
    parser.add_argument("--quick", action="store_true", help="as little as possible: the numbers mean nothing")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of physics and network")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/speed.csv"), help="CSV to write")
    parser.add_argument("--child", choices=list(JOBS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = quick(options.threads) if options.quick else Size(threads=options.threads)
    if options.child:
        JOBS[options.child](size)
        return
    table = []
    for row in options.rows:
        for found in ROWS[row](size):
            print("  ".join(f"{value!s:<{width}}" for value, width in zip(found.values(), (9, 80, 9, 9, 8, 9, 4))))
            table.append(found)
    write(options.out, table)


if __name__ == "__main__":
    main()
