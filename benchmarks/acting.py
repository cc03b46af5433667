"""Group rollouts by us and by `naive.py`, from the same states: what `speed.py` measures of acting."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from unittest.mock import patch

import numpy as np
import torch
from naive import NaiveGroups, NaiveTransformer
from worlds import clocks

from dtune.data.steps import empty_steps
from dtune.envs import rollout as rollouts
from dtune.envs.episodes import ResetPoints
from dtune.envs.mujoco import MujocoSimulator
from dtune.envs.rollout import Rollout
from dtune.envs.tasks import make_simulator
from dtune.models.decision_transformer import DecisionTransformer, DecisionTransformerConfig

GOAL = 3600.0
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Line = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured."""

    threads: int
    walks: int = 512
    steps: int = 6
    rounds: int = 7
    layers: int = 4
    width: int = 512
    update_rows: int = 256
    counts: tuple[int, ...] = (64, 256, 512, 1024, 2048, 4096)
    iterations: int = 3
    episode: int = 1000

    def transformer(self, context: int = 1) -> DecisionTransformer:
        return DecisionTransformer(
            DecisionTransformerConfig(
                observation_dim=11, action_dim=3, context_length=context, layers=self.layers, width=self.width
            )
        )


def quick(threads: int) -> Size:
    return Size(
        threads=threads, walks=16, steps=20, rounds=3, layers=1, width=64, update_rows=8, counts=(16, 32),
        iterations=1, episode=30,
    )  # fmt: skip


def hoppers(threads: int, horizon: int = 1000) -> MujocoSimulator:
    """Hoppers that may lie down."""
    task = make_simulator("hopper").task
    task = replace(task, healthy_height=(-inf, inf), healthy_angle=(-inf, inf), healthy_state=inf)
    simulator = MujocoSimulator(task, threads)
    simulator.horizon = horizon
    return simulator


def in_turns(contestants: dict[str, Callable[[], object]], rounds: int) -> tuple[dict[str, float], float]:
    """Median seconds of each, and the cores that others took meanwhile."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()
    before = clocks()
    for turn in range(rounds):
        names = list(contestants)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            contestants[name]()
            seconds[name].append(time.perf_counter() - start)
    wall, own, busy = clocks() - before
    return {name: float(np.median(times)) for name, times in seconds.items()}, max(0.0, (busy - own) / wall)


def line(row: str, what: str, ours: float, other: float, ratio: float, unit: str, foreign: float) -> Line:
    """One line of the table."""
    numbers = {"dtune": f"{ours:.4g}", "other": f"{other:.4g}", "ratio": f"{ratio:.3f}"}
    return {"row": row, "what": what, **numbers, "unit": unit, "foreign_cores": f"{foreign:.2f}"}


class Groups:
    """Walks from the same reset points, by us and naively."""

    def __init__(self, size: Size, walks: int, threads: int) -> None:
        self.policy, self.simulator, self.steps = size.transformer(), hoppers(threads), size.steps
        self.simulator.reset(walks, torch.Generator().manual_seed(0))
        snapshots = torch.from_numpy(self.simulator.snapshot())
        goal, clock = torch.full((walks,), GOAL), torch.zeros(walks, dtype=torch.long)
        self.points = ResetPoints(snapshots, goal, clock, empty_steps(walks, 0, 11, 3))
        nq, nv = self.simulator.model.nq, self.simulator.model.nv
        self.qpos, self.qvel = np.split(snapshots.numpy()[:, 1 : 1 + nq + nv], (nq,), axis=1)

    def sampled(self) -> None:
        rollout = Rollout.resume(self.policy, self.simulator, self.points)
        rollout.advance(self.steps, generator=torch.Generator().manual_seed(1))

    def scored(self, dtype: torch.dtype = torch.float32, *, begin: bool = False) -> None:
        """The mean action; `begin`: only all that is done before the first step."""
        rollout = Rollout.resume(self.policy, self.simulator, self.points)
        rollout.advance(0 if begin else self.steps, log_probs=False, dtype=dtype)


def rollout_times(size: Size, extra: dict[str, Callable[[], object]]) -> tuple[dict[str, float], float, str]:
    """Seconds of a whole group rollout of each kind (as many steps as the paper's, all alike), and of `extra`."""
    groups = Groups(size, size.walks, size.threads)
    model = NaiveTransformer(11, 3, size.width, size.layers)
    naive = NaiveGroups(model, size.walks)
    seconds, foreign = in_turns(
        {
            "naive": lambda: naive.walk(groups.qpos, groups.qvel, size.steps, GOAL),
            "sampled": groups.sampled,
            **{name: partial(groups.scored, dtype) for name, dtype in DTYPES.items()},
            **{f"{name} begin": partial(groups.scored, dtype, begin=True) for name, dtype in DTYPES.items()},
            **extra,
        },
        size.rounds,
    )
    begin = seconds["float32 begin"]
    first = begin + 15 / size.steps * (seconds["sampled"] - begin)
    whole = {"naive": 415 / size.steps * seconds["naive"]}
    for name in DTYPES:
        begin = seconds[f"{name} begin"]
        whole[name] = first + begin + 400 / size.steps * (seconds[name] - begin)
    return whole | {name: seconds[name] for name in extra}, foreign, model.kind


def rollout(size: Size) -> Iterator[Line]:
    whole, foreign, kind = rollout_times(size, {})
    for name in DTYPES:
        what = f"group rollout, lookahead in {name}, against naive ({kind})"
        yield line("rollout", what, whole[name], whole["naive"], whole["naive"] / whole[name], "s", foreign)


def walks(size: Size) -> Iterator[Line]:
    for threads in dict.fromkeys((1, size.threads)):
        torch.set_num_threads(threads)
        for count in size.counts:
            groups = Groups(size, count, threads)
            rows = torch.rand(size.steps, count, 3) * 2 - 1

            def stepped(groups: Groups = groups, rows: torch.Tensor = rows) -> None:
                groups.simulator.restore(groups.points.snapshots.numpy())
                for actions in rows:
                    groups.simulator.step(actions)

            seconds, foreign = in_turns(
                {"ours": groups.scored, "begin": partial(groups.scored, begin=True), "physics": stepped},
                max(size.rounds // 2, 1),
            )
            seconds["ours"] -= seconds["begin"]
            each = {name: value / count / size.steps * 1e6 for name, value in seconds.items()}
            what = f"a step of each of {count} walks, {threads} threads, against its physics"
            ratio = each["physics"] / each["ours"]
            yield line("walks", what, each["ours"], each["physics"], ratio, "µs a walk", foreign)
    torch.set_num_threads(size.threads)


def parts(size: Size) -> Iterator[Line]:
    """Steps by the mean action: walks in one part, or in one for each thread."""
    for layers, width in ((size.layers, size.width), (size.layers, size.width // 2), (2, size.width // 8)):
        groups = Groups(replace(size, layers=layers, width=width), size.walks, size.threads)

        def run(apart: bool, groups: Groups = groups) -> None:
            with patch.object(rollouts, "is_large", return_value=apart):
                groups.scored()

        seconds, foreign = in_turns({"whole": partial(run, False), "parts": partial(run, True)}, size.rounds)
        what = f"walks in {size.threads} parts against one, {size.walks} walks, {layers} blocks of width {width}"
        yield line("parts", what, seconds["parts"], seconds["whole"], seconds["whole"] / seconds["parts"], "s", foreign)
