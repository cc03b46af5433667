"""Steps a second of every world, observations and rewards included.

There are two bars: MuJoCo's open loop at the same number of threads (the faster of `Batch.step` with recorded
controls and `Batch.rollout`), and Gymnasium's SyncVectorEnv.

`python benchmarks/worlds.py [--worlds hopper ...] [--rounds 15] [--out results/benchmarks/worlds.csv]`

All of them start from the same states and take the same random actions, in short blocks by turns, so that what else
runs on the machine hits them alike; a ratio is the median over the rounds. Between the rounds, episodes that have
ended start anew; SyncVectorEnv starts its own anew at once, which counts as a step. `foreign_cores` is what others
took of the machine meanwhile. Where it is above 0.1, threads wait for cores: believe `closed_to_open_cpu`, the ratio of
steps a second of processor time, which leaves out all waiting.
"""

import argparse
import csv
import importlib
import os
import platform
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import torch
from mujoco.batch import Batch

from dtune.envs.mujoco import MujocoSimulator
from dtune.envs.simulator import Outcome
from dtune.envs.tasks import TASKS, make_simulator
from dtune.errors import ConfigError

THREADS = (1, 2)
ROWS = (64, 512)
BLOCK = 2048  # environment steps between two turns, a fifth of a second
SYNC_ROWS = 32  # its rate does not rise with the number of environments
GYMNASIUM = {
    "hopper": "Hopper-v4",
    "walker2d": "Walker2d-v4",
    "ant": "Ant-v4",
    "door": "AdroitHandDoor-v1",
    "pen": "AdroitHandPen-v1",
    "hammer": "AdroitHandHammer-v1",
    "antmaze-umaze": "AntMaze_UMaze-v4",
}
STATE = mujoco.mjtState.mjSTATE_INTEGRATION
Contestant = Callable[[np.ndarray, torch.Tensor], np.ndarray]
"""Takes snapshots [rows, width] and actions [steps, rows, action]; gives rates, see `timed`."""


def timed(run: Callable[[], object], steps: int) -> np.ndarray:
    """Steps a second of the wall, and a second of the processor, all threads together."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return steps / np.array([time.perf_counter() - wall, time.process_time() - processor])


@dataclass(kw_only=True)
class Closed:
    """What is measured: one call a step, actions in, observations and rewards out."""

    simulator: MujocoSimulator
    ended: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def __call__(self, start: np.ndarray, actions: torch.Tensor) -> np.ndarray:
        self.simulator.restore(start)
        outcomes: list[Outcome] = []
        rates = timed(lambda: outcomes.extend(map(self.simulator.step, actions)), actions[..., 0].numel())
        self.ended = torch.stack([outcome.terminated | outcome.truncated for outcome in outcomes]).any(dim=0)
        return rates


def open_loops(simulator: MujocoSimulator, rows: int, threads: int) -> dict[str, Contestant]:
    """MuJoCo alone: controls in, nothing out."""
    task, width = simulator.task, mujoco.mj_stateSize(simulator.model, STATE)
    batch = Batch(simulator.model, rows, threads)
    expanded = {name: batch.expand(name) for name in task.expanded}
    controls = batch.bind("ctrl")

    def begin(start: np.ndarray, actions: torch.Tensor) -> np.ndarray:
        batch.state[:] = start[:, :width]
        task.configure(start[:, width:-1], expanded)
        return np.stack([task.controls(chosen) for chosen in actions.numpy()])

    def step(start: np.ndarray, actions: torch.Tensor) -> np.ndarray:
        recorded = begin(start, actions)

        def run() -> None:
            for chosen in recorded:
                controls[:] = chosen
                batch.step(nstep=task.frame_skip)

        return timed(run, len(recorded) * rows)

    def rollout(start: np.ndarray, actions: torch.Tensor) -> np.ndarray:
        recorded = begin(start, actions).swapaxes(0, 1).repeat(task.frame_skip, axis=1).astype(float)
        return timed(lambda: batch.rollout(recorded.shape[1], recorded, record=()), len(actions) * rows)

    return {"step": step, "rollout": rollout}


def sync(name: str, simulator: MujocoSimulator) -> Contestant | None:
    """Gymnasium's environments one after the other, with its own autoreset; None where they are not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are newer versions
        with suppress(ImportError):
            gymnasium.register_envs(importlib.import_module("gymnasium_robotics"))
        try:
            envs = gymnasium.make_vec(GYMNASIUM[name], SYNC_ROWS, vectorization_mode="sync")
        except gymnasium.error.Error:
            return None
    worlds = [getattr(env.unwrapped, "ant_env", env.unwrapped) for env in envs.envs]
    origin = [4.0, 4.0] if worlds[0] is not envs.envs[0].unwrapped else [0.0, 0.0]  # of AntMaze: centred
    for world in worlds:  # the same physics
        world.model.geom_margin[:] *= 0.5
        world.model.opt.timestep = simulator.model.opt.timestep
        world.model.actuator_gear[:] = simulator.model.actuator_gear
    nq, nv = simulator.model.nq, simulator.model.nv

    def run(start: np.ndarray, actions: torch.Tensor) -> np.ndarray:
        envs.reset(seed=0)
        for world, state in zip(worlds, start, strict=False):
            qpos = state[1 : 1 + nq].copy()
            qpos[:2] -= origin
            world.set_state(qpos, state[1 + nq : 1 + nq + nv])
        recorded = actions[:, :SYNC_ROWS].numpy()
        return timed(lambda: [envs.step(chosen) for chosen in recorded], len(recorded) * SYNC_ROWS)

    return run


def clocks() -> np.ndarray:
    """Seconds of the wall, of this process's threads, and of all cores' work (0 where /proc is not)."""
    busy = 0.0
    with suppress(OSError):
        ticks = [int(count) for count in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        busy = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")  # neither idle nor waiting
    return np.array([time.perf_counter(), time.process_time(), busy])


def compete(
    contestants: dict[str, Contestant], simulator: MujocoSimulator, rows: int, rounds: int
) -> tuple[dict[str, np.ndarray], float]:
    """Rates of every contestant, `[rounds, 2]` each, and the cores that others took meanwhile."""
    generator = torch.Generator().manual_seed(0)
    simulator.reset(rows, generator)
    fresh = start = simulator.snapshot()
    closed = contestants["closed"]
    assert isinstance(closed, Closed)
    rates: dict[str, list[np.ndarray]] = {name: [] for name in contestants}
    before = clocks()
    for turn in range(-5, rounds):  # five turns alone, so that episodes are of different ages
        actions = 2 * torch.rand(max(BLOCK // rows, 1), rows, simulator.action_dim, generator=generator) - 1
        if turn == 0:
            before = clocks()
        names = list(contestants) if turn >= 0 else ["closed"]
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            rate = contestants[name](start, actions)
            if name == "closed":
                following = np.where(closed.ended.numpy()[:, None], fresh, simulator.snapshot())
            if turn >= 0:
                rates[name].append(rate)
        start = following
    wall, own, busy = clocks() - before
    return {name: np.stack(values) for name, values in rates.items()}, max(0.0, (busy - own) / wall)


def measure(name: str, threads: int, rows: int, rounds: int) -> dict[str, object]:
    """One line of the table."""
    simulator = make_simulator(name, threads)
    contestants: dict[str, Contestant] = {"closed": Closed(simulator=simulator)}
    contestants |= open_loops(simulator, rows, threads)
    gymnasiums = sync(name, simulator)
    if gymnasiums:
        contestants["sync"] = gymnasiums
    rates, foreign = compete(contestants, simulator, rows, rounds)
    middle = {kind: np.median(values, axis=0) for kind, values in rates.items()}
    bar, bar_cpu = (max(("step", "rollout"), key=lambda kind: middle[kind][clock]) for clock in (0, 1))
    return {
        "world": name,
        "threads": threads,
        "rows": rows,
        "closed_loop": round(middle["closed"][0]),
        "open_loop": round(middle[bar][0]),
        "open_loop_by": bar,
        "sync_vector_env": round(middle["sync"][0]) if gymnasiums else "",
        "closed_to_open": f"{np.median(rates['closed'][:, 0] / rates[bar][:, 0]):.3f}",
        "closed_to_open_cpu": f"{np.median(rates['closed'][:, 1] / rates[bar_cpu][:, 1]):.3f}",
        "closed_to_sync": f"{np.median(rates['closed'][:, 0] / rates['sync'][:, 0]):.2f}" if gymnasiums else "",
        "foreign_cores": f"{foreign:.2f}",
    }


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def write(path: Path, table: list[dict[str, object]]) -> None:
    """Puts the lines of a benchmark into a CSV, each with the machine, the day and the versions."""
    machine = {"machine": f"{processor()}, {os.cpu_count()} cores", "date": date.today().isoformat()}
    machine |= {package: version(package) for package in ("mujoco", "gymnasium", "numpy", "torch")}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*table[0], *machine])
        writer.writeheader()
        writer.writerows(line | machine for line in table)


def worlds() -> list[str]:
    """Names of the worlds that differ and can be built here."""
    built: dict[str, object] = {}
    for name, info in TASKS.items():
        if info.make is None:
            continue
        try:
            task = make_simulator(name).task
        except ConfigError as error:
            print(f"{name} is left out: {error}")
            continue
        if task not in built.values():
            built[name] = task
    return list(built)


def main() -> None:
    parser = argparse.ArgumentParser(description="Steps a second of every world.")
    parser.add_argument("--worlds", nargs="+", default=worlds(), help="names of tasks")
    parser.add_argument("--rounds", type=int, default=15, help="turns of every contestant")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/worlds.csv"), help="CSV to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = []
    for name in options.worlds:
        for threads in THREADS:
            for rows in ROWS:
                line = measure(name, threads, rows, options.rounds)
                if not table:
                    print("  ".join(f"{column:>18}" for column in line))
                print("  ".join(f"{value!s:>18}" for value in line.values()), flush=True)
                table.append(line)
    write(options.out, table)


if __name__ == "__main__":
    main()
