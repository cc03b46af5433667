"""Puts the learning curves of `dtune demo` runs into one CSV a run.

`python benchmarks/collect_demo.py runs/demo results/demo`
"""

import csv
import sys
from pathlib import Path

from dtune.experiments.demo import METHODS, read_record

COLUMNS = {
    "iteration": "iteration",
    "env_steps": "count/env_steps",
    "gradient_steps": "count/gradient_steps",
    "seconds": "time/seconds",
    "return": "eval/return",
    "return_std": "eval/return_std",
    "normalized_score": "eval/normalized_score",
    "length": "eval/length",
    "ratio_max": "train/ratio_max",
    "fresh_ratio_error": "train/fresh_ratio_error",
}


def collect(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for run in sorted(source.glob("*/seed*")):
        for method in METHODS:
            judged = [row for row in read_record(run / method) if "eval/return" in row]
            path = target / f"{run.parent.name}_{method}_{run.name}.csv"
            with path.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow([*COLUMNS, "seed"])
                for row in judged:
                    writer.writerow([row.get(key, "") for key in COLUMNS.values()] + [run.name.removeprefix("seed")])


if __name__ == "__main__":
    collect(Path(sys.argv[1]), Path(sys.argv[2]))
