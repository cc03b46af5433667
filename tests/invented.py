"""Records of runs that never were, for tables and figures."""

from pathlib import Path

import numpy as np

from dtune.experiments.reports.results import LABELS, Curve, write_curve
from dtune.experiments.reports.scores import published

TABLE_1 = [method for method in LABELS if method != "q_guided"]
COSTS = {"grpo": (40_000, 200_000, 8), "ppo": (8_000, 0, 20)}


def curve(
    dataset="hopper-random-v2", method="grpo", seed=0, *, scores=(1.0, 2.0, 3.0, 4.0), every=10, **columns
) -> Curve:
    """A run whose evaluations had these scores."""
    scores = np.asarray(scores, float)
    iterations = every * np.arange(len(scores), dtype=float)
    walked, looked, updates = COSTS.get(method.partition("+")[0], (1_000, 0, 300))
    whole = {
        "iteration": iterations,
        "env_steps": iterations * (walked + looked),
        "env_steps_trajectories": iterations * walked,
        "env_steps_subtrajectories": iterations * looked * 0.1,
        "env_steps_lookahead": iterations * looked * 0.9,
        "gradient_steps": iterations * updates,
        "seconds": iterations * (2.0 + seed * 0.1),
        "return": scores * 30,
        "normalized_score": scores,
    } | {name: np.asarray(values, float) for name, values in columns.items()}
    return Curve(dataset=dataset, method=method, seed=seed, columns=whole)


def learning(dataset: str, method: str, seed: int, end: float, evaluations: int = 51) -> Curve:
    """A run that rises towards `end`, with noise."""
    if method == "dt":
        return curve(dataset, method, seed, scores=[end])
    generator = np.random.default_rng([seed, *(ord(letter) for letter in dataset + method)])
    time = np.linspace(0, 1, evaluations)
    noise = np.cumsum(generator.normal(size=evaluations)) * 0.04 * abs(end)
    start = 0.2 * end
    scores = start + (end - start) * (1 - np.exp(-generator.uniform(2, 6) * time)) + noise
    peaks = np.exp(np.abs(generator.normal(1.2, 0.4, evaluations)) * (3 if "relabel" in method else 1))
    return curve(dataset, method, seed, scores=scores, ratio_peak=peaks)


def whole_table(folder: Path, seeds: int = 3, evaluations: int = 51) -> int:
    """Every dataset and method of Table 1, about the paper's numbers: how many files."""
    count = 0
    for dataset, (_, _, cells) in published().items():
        for method in TABLE_1:
            for seed in range(seeds):
                write_curve(learning(dataset, method, seed, cells[method].mean, evaluations), folder)
                count += 1
    return count


def ablations(folder: Path, dataset: str = "ant-medium-v2", seeds: int = 3) -> None:
    """Every variant of the figures on one dataset."""
    variants = [
        "relabel", "full", "mixed", "token", "uniform", "geometric", "reinformer",
        "traj3", "traj50", "traj100", "eval0", "eval30", "eval100",
    ]  # fmt: skip
    for number, method in enumerate(["grpo", "q_guided", *(f"grpo+{variant}" for variant in variants)]):
        for seed in range(seeds):
            write_curve(learning(dataset, method, seed, 140.0 - 8 * number), folder)
