"""`dtune demo`: the whole way from random data to a hopping decision transformer, in minutes on two cores."""

import signal
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from dtune.envs.tasks import normalized_score, task_info
from dtune.errors import ConfigError, DtuneError
from dtune.experiments import presets, run
from dtune.experiments.record import read_run
from dtune.experiments.reports.collect import Identity, make_curve
from dtune.experiments.reports.drawing import draw_panels
from dtune.experiments.reports.figures import AXES, band
from dtune.experiments.reports.results import FINAL_EVALUATIONS
from dtune.experiments.sweeps.jobs import Change, Job, LocalEngine, last_words

Rows = list[dict[str, float]]

METHODS = {"grpo": "GRPO-DT", "ppo": "PPO-DT"}


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Records random data, pretrains on them, finetunes with GRPO-DT and PPO-DT side by side, and compares."""

    dataset: str = "hopper-random-v2"
    """A random dataset."""
    seed: int = 0
    """Of the data, the pretraining and both finetunings."""
    out: Path = Path("runs/demo")
    """Where the run folders go."""
    iterations: int | None = None
    """Iterations of each method; the preset's where not given."""


def run_demo(config: DemoConfig) -> None:
    """Does all of it; the same call again continues, or only shows the results.

    Raises:
        ConfigError: if a setting cannot work.
        DtuneError: if one of the two runs fails, with its message.
    """
    folder = config.out / config.dataset / f"seed{config.seed}"
    pretraining = presets.pretraining(config.dataset, "small", seed=config.seed)
    if config.iterations is not None and config.iterations < 0:
        raise ConfigError(f"iterations must be at least 0, got {config.iterations}")
    chosen = {m: presets.finetuning(m, config.dataset, "small", iterations=config.iterations) for m in METHODS}
    lengths = {method: preset.iterations for method, preset in chosen.items()}
    began = time.monotonic()
    run.pretrain_preset(pretraining, folder / "pretrain")
    commands = {method: _command(config, folder, method) for method in METHODS}
    _side_by_side(commands, folder, lengths)
    records = {METHODS[method]: read_run(folder / method) for method in METHODS}
    figure = folder / "curves.png"
    draw_curves(records, figure)
    console = Console()
    console.print(_results(read_run(folder / "pretrain"), records, config.dataset))
    print(
        f"score: normalised as D4RL's; standing still for 1,000 steps would score {standing_still(config.dataset):.1f}"
    )
    print(f"after finetuning: all episodes of the last {FINAL_EVALUATIONS} evaluations together; ± over episodes;")
    print("best: the best single evaluation; steps: of the environment, in finetuning; seconds: of training")
    console.print(
        f"learning curves: {figure}\nrun folders:     {folder}/{{pretrain,{','.join(METHODS)}}}", soft_wrap=True
    )
    console.print(f"this call took {time.monotonic() - began:.0f} s")


def _command(config: DemoConfig, folder: Path, method: str) -> tuple[str, ...]:
    policy, out = folder / "pretrain" / "checkpoints" / "last", folder / method
    command = ["finetune", f"{method}/{config.dataset}", "--scale", "small"]
    command += ["--seed", str(config.seed), "--policy", str(policy), "--out", str(out)]
    return (*command, *([] if config.iterations is None else ["--iterations", str(config.iterations)]))


def _side_by_side(commands: dict[str, tuple[str, ...]], folder: Path, lengths: dict[str, int]) -> None:
    """Runs the commands at once, a core each, and shows how they get on."""
    console, printed, ended = Console(), time.monotonic(), dict[str, Change]()
    with closing(LocalEngine(len(commands), retries=0)) as engine:
        for method, arguments in commands.items():
            engine.submit(Job(key=method, arguments=arguments, log=folder / f"{method}.log"))
        try:
            with Live(console=console, refresh_per_second=2, transient=True) as live:
                while len(ended) < len(commands):
                    ended |= {change.key: change for change in engine.poll(0.5) if change.state != "running"}
                    if time.monotonic() - printed < (2 if console.is_terminal else 10):
                        continue  # reading the records takes processor time from those who write them
                    printed = time.monotonic()
                    progress = {method: read_run(folder / method) for method in commands}
                    if console.is_terminal:
                        live.update(_progress(progress, lengths))
                        continue
                    for method, rows in progress.items():
                        print(_line(method, rows, lengths[method]), flush=True)
        finally:
            engine.stop(signal.SIGTERM)
    for method, change in ended.items():
        if change.state == "failed":
            said = last_words(folder / f"{method}.log")
            raise DtuneError(f"{METHODS[method]} stopped ({change.code}): {said}")


SHOWN = (
    ("env steps", "count/env_steps", "{:,.0f}"),
    ("steps/s", "time/env_steps_per_second", "{:,.0f}"),
    ("return", "eval/return", "{:.0f}"),
    ("score", "eval/normalized_score", "{:.1f}"),
    ("length", "eval/length", "{:.0f}"),
    ("ratio mean", "train/ratio_mean", "{:.3f}"),
    ("ratio max", "train/ratio_max", "{:.1f}"),
    ("clipped", "train/clip_fraction", "{:.0%}"),
    ("KL", "train/kl", "{:.3f}"),
    ("entropy", "train/entropy", "{:.2f}"),
    ("target", "train/entropy_target", "{:.0f}"),
    ("dropped", "rollout/dropped", "{:.0%}"),
)
"""Label, metric key and format of what is shown while it works."""


def _newest(rows: Rows, length: int) -> list[tuple[str, str]]:
    """How far a run of `length` iterations is, and the newest value of each thing shown."""
    newest: dict[str, float] = {}
    for row in rows[-40:]:
        newest.update(row)
    done, seconds = int(newest.get("iteration", 0)), newest.get("time/seconds", 0.0)
    left = f"{seconds / done * (length - done):.0f} s" if done else ""
    values = [(label, form.format(newest[key]) if key in newest else "") for label, key, form in SHOWN]
    return [("iteration", f"{done}/{length}"), ("ETA", left), *values]


def _progress(records: dict[str, Rows], lengths: dict[str, int]) -> Table:
    table = Table("", "iteration", "ETA", *[label for label, _, _ in SHOWN], padding=(0, 1, 0, 0), box=box.SIMPLE_HEAD)
    for method, rows in records.items():
        table.add_row(METHODS[method], *[value for _, value in _newest(rows, lengths[method])])
    return table


def _line(method: str, rows: Rows, length: int) -> str:
    shown = [f"{label} {value}" for label, value in _newest(rows, length) if value]
    return f"{METHODS[method]:8} " + "  ".join(shown)


def final(rows: Rows) -> dict[str, float]:
    """The last evaluations after training put together: means, and the deviation over all their episodes."""
    judged = [row for row in rows if "eval/return" in row]
    last = ([row for row in judged if row["iteration"] > 0] or judged)[-FINAL_EVALUATIONS:]
    result = {key: float(np.mean([row[key] for row in last])) for key in judged[-1] if key.startswith("eval/")}
    for key in ("eval/return", "eval/normalized_score"):
        within = np.mean([row[f"{key}_std"] ** 2 for row in last])
        result[f"{key}_std"] = float(np.sqrt(within + np.var([row[key] for row in last])))
    result["best"] = max(row["eval/normalized_score"] for row in judged)
    return result


def standing_still(dataset: str) -> float:
    """Score of earning the healthy reward of 1 to the end of the episode, and nothing else."""
    return normalized_score(dataset, float(task_info(dataset).horizon))


def _results(start: Rows, records: dict[str, Rows], dataset: str) -> Table:
    names = ("", "return", "score", "best", "length", "per step", "steps", "seconds")
    table = Table(*names, title=f"{dataset}, episodes of mean actions", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name, rows in {"DT": start[-1:], **records}.items():
        end, last = final(rows), rows[-1]
        table.add_row(
            name,
            f"{end['eval/return']:.0f} ± {end['eval/return_std']:.0f}",
            f"{end['eval/normalized_score']:.1f} ± {end['eval/normalized_score_std']:.1f}",
            f"{end['best']:.1f}",
            f"{end['eval/length']:.0f}",
            f"{end['eval/return'] / end['eval/length']:.2f}",
            f"{last.get('count/env_steps', 0):,.0f}",
            f"{last.get('time/seconds', 0):.0f}",
        )
    return table


def draw_curves(records: dict[str, Rows], path: Path) -> None:
    """Draws the normalised scores against environment steps and against seconds, as a PNG."""
    names = {method: name for method, name in METHODS.items() if name in records}
    curves = {method: make_curve(Identity("", method, 0), records[name], "") for method, name in names.items()}
    panels = []
    for axis in AXES[1:]:
        found = {method: band([curve], axis.column, "normalized_score") for method, curve in curves.items()}
        panels.append(("", axis, {method: one for method, one in found.items() if one is not None}))
    draw_panels(panels, path.with_suffix(""), columns=2, names=names)
