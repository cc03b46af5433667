"""Seconds and memory of loading a million steps, beside what h5py needs to read the same arrays.

python benchmarks/load_dataset.py [--steps 1000000] [--repeats 5]   writes results/benchmarks/load_dataset.csv

Both are measured in the same run, in turns, each in a process of its own: the first reading of each process is timed,
with the file in the system's cache, and its memory is the most the process had beyond what it had before. Seconds are
those of the processor, the system's included, which other work on the machine disturbs least; the best of the repeats
counts.
"""

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np

RESULTS = Path(__file__).parents[1] / "results" / "benchmarks" / "load_dataset.csv"
OBSERVED, ACTED = 11, 3  # Hopper
COLUMNS = ("observations", "actions", "rewards", "terminals", "timeouts")

READERS = {
    "h5py": """
import h5py, numpy, torch
from dtune.experiments.loading import load_dataset  # imported here, too: only the reading differs
def read(path):
    with h5py.File(path) as file:
        return [file[key][()] for key in {columns}]
""",
    "dtune": """
from dtune.experiments.loading import load_dataset
def read(path):
    return load_dataset(path)
""",
}

MEASURE = """
import json, sys, time
from pathlib import Path
def most():
    return 1024 * next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l)
Path("/proc/self/clear_refs").write_text("5")
before, began = most(), time.process_time()
held = read(sys.argv[1])
seconds = time.process_time() - began
print(json.dumps({"seconds": seconds, "bytes": most() - before}))
"""


def write(path: Path, steps: int, compression: str | None) -> int:
    """A file of Hopper's sizes; the bytes of the arrays that are read from it."""
    chance, row = np.random.default_rng(0), np.arange(steps)
    columns = {
        "observations": chance.normal(size=(steps, OBSERVED)).astype(np.float32),
        "actions": np.tanh(chance.normal(size=(steps, ACTED))).astype(np.float32),
        "rewards": chance.normal(size=steps).astype(np.float32),
        "terminals": row % 700 == 699,
        "timeouts": row % 1000 == 999,
    }
    with h5py.File(path, "w") as file:
        for key, value in columns.items():
            file.create_dataset(key, data=value, compression=compression)
    return sum(value.nbytes for value in columns.values())


def measure(reader: str, path: Path) -> dict[str, float]:
    """One reading in a fresh process."""
    code = READERS[reader].format(columns=COLUMNS) + MEASURE
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, env=environment, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rows = []
    for compression in (None, "gzip"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "data.hdf5"
            size = write(path, options.steps, compression)
            found: dict[str, list[dict[str, float]]] = {reader: [] for reader in READERS}
            for _ in range(options.repeats):
                for reader in READERS:
                    found[reader].append(measure(reader, path))
        seconds = {reader: min(one["seconds"] for one in all_) for reader, all_ in found.items()}
        memory = {reader: statistics.median(one["bytes"] for one in all_) for reader, all_ in found.items()}
        rows.append(
            {
                "storage": compression or "plain",
                "steps": options.steps,
                "array_megabytes": round(size / 1e6, 1),
                "h5py_seconds": round(seconds["h5py"], 3),
                "dtune_seconds": round(seconds["dtune"], 3),
                "seconds_ratio": round(seconds["dtune"] / seconds["h5py"], 2),
                "h5py_megabytes": round(memory["h5py"] / 1e6, 1),
                "dtune_megabytes": round(memory["dtune"] / 1e6, 1),
                "memory_ratio": round(memory["dtune"] / size, 2),
                "repeats": options.repeats,
                "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            }
        )
        print(rows[-1])
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
