"""How closely recorded transitions are replayed: a line for each file that holds the simulator's states.

python benchmarks/replayed.py FOLDER [--out results/benchmarks/replayed.csv]

Every recorded state that another row follows is placed in dtune's world, the recorded action taken, and what comes out
compared with what was recorded: observations by the largest difference of a row, rewards by their difference. Files are
float32; what the physics have beside positions and velocities (the solver's warm start) is in none of them.
"""

import argparse
import csv
import sys
from pathlib import Path

import h5py
import numpy as np
import torch

from dtune.envs.tasks import DATASETS, make_simulator

COLUMNS = ("file", "rows", "median", "percentile_99", "largest", "below_1e-4", "reward_median", "reward_largest")


def replayed(path: Path, every: int = 1) -> dict[str, object]:
    """Differences of one file, of each `every`-th row."""
    with h5py.File(path) as file:
        going = ~(file["terminals"][:-1] | file["timeouts"][:-1]).astype(bool)
        rows = np.flatnonzero(going)[::every]
        infos = {key: values[:][rows].astype(np.float64) for key, values in file["infos"].items()}
        after, rewards, actions = file["observations"][:][rows + 1], file["rewards"][:][rows], file["actions"][:][rows]
    simulator = make_simulator(path.name.split(".")[0], threads=2)
    simulator.place(infos.pop("qpos"), infos.pop("qvel"), **infos)
    ours = simulator.step(torch.from_numpy(actions))
    sound = ~ours.faulty.numpy()
    missed = np.abs(ours.observations.numpy() - after[:, : simulator.observation_dim]).max(axis=1)[sound]
    lost = np.abs(ours.rewards.numpy() - rewards)[sound]
    return dict(zip(COLUMNS, (path.name, len(missed), np.median(missed), np.quantile(missed, 0.99), missed.max(),
                              (missed < 1e-4).mean(), np.median(lost), lost.max())))  # fmt: skip


def text(value: object) -> str:
    """Names and counts as they are, differences in three digits."""
    return str(value) if isinstance(value, str | int) else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="looked through for *.hdf5")
    parser.add_argument("--out", type=Path, help="a CSV of the lines")
    options = parser.parse_args()
    paths = [path for path in sorted(options.folder.rglob("*.hdf5")) if path.name.split(".")[0] in DATASETS]
    if not paths:
        sys.exit(f"{options.folder} holds no file named after one of {', '.join(DATASETS)}")
    lines = [{key: text(value) for key, value in replayed(path).items()} for path in paths]
    for line in lines:
        print(" ".join(f"{key} {value}" for key, value in line.items()))
    if options.out is not None:
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(lines)


if __name__ == "__main__":
    main()
