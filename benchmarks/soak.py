"""Whether a long run grows: memory and open files of GRPO-DT on Hopper at scale `small`, a line every few seconds.

python benchmarks/soak.py --minutes 120 --out results/benchmarks/soak.csv

The run is a process of its own, `dtune finetune grpo/hopper-random-v2 --scale small` with more iterations than it can
do, in a folder that is made for it; it is stopped by SIGTERM and must say so. Memory is its resident set in MB, files
are its open file descriptors, threads its threads. Growth is counted from the first row after `--settle` minutes.
"""

import argparse
import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COLUMNS = ("minutes", "iteration", "memory_mb", "files", "threads")
GROWTH_LIMIT = 50.0
"""MB that the memory may grow after it has settled."""
METHOD = "grpo/hopper-random-v2"


def sample(pid: int) -> dict[str, float]:
    """What the process holds now."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "memory_mb": int(status["VmRSS"].split()[0]) / 1024,
        "files": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(status["Threads"]),
    }


def iteration(run: Path) -> int:
    """Rows the run has recorded."""
    path = run / "metrics.csv"
    return max(0, path.read_bytes().count(b"\n") - 2) if path.exists() else 0


def soak(minutes: float, every: float, out: Path, folder: Path, more: list[str]) -> tuple[list[dict[str, float]], int]:
    """Runs and watches; the rows, and how the run ended."""
    command = [sys.executable, "-m", "dtune", "finetune", METHOD, "--scale", "small", "--iterations", "1000000",
               "--threads", "1", "--out", "run", *more]  # fmt: skip
    rows = []
    with (folder / "log").open("w") as log, out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        began = None
        while process.poll() is None and (began is None or time.monotonic() - began < 60 * minutes):
            time.sleep(every)
            done = iteration(folder / "run")
            if not done or process.poll() is not None:
                continue  # pretraining, where no policy was given
            began = began or time.monotonic()
            row = {"minutes": (time.monotonic() - began) / 60, "iteration": done, **sample(process.pid)}
            writer.writerow({key: round(value, 2) for key, value in row.items()})
            file.flush()
            rows.append(row)
        process.send_signal(signal.SIGTERM)
        return rows, process.wait()


def grown(rows: list[dict[str, float]]) -> tuple[float, float]:
    """MB by which memory was ever above the first row's, and files that were opened behind it and stayed so.

    A file that is only being written is open in a row, and not in those behind it.
    """
    last = rows[-min(len(rows), 10) :]
    return (
        max(row["memory_mb"] for row in rows) - rows[0]["memory_mb"],
        min(row["files"] for row in last) - rows[0]["files"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120.0, help="of finetuning")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between rows")
    parser.add_argument("--settle", type=float, default=10.0, help="minutes after which growth is counted")
    parser.add_argument(
        "--policy", type=Path, help="run folder or checkpoint to begin with; pretrained where none is given"
    )
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/soak.csv"))
    chosen = parser.parse_args()
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    more = ["--policy", str(chosen.policy.resolve())] if chosen.policy else []
    with tempfile.TemporaryDirectory(prefix="dtune-soak-") as folder:
        rows, code = soak(chosen.minutes, chosen.every, chosen.out.resolve(), Path(folder), more)
        if code != 75:
            sys.exit(f"the run ended with {code} instead of 75: {(Path(folder) / 'log').read_text()[-2000:]}")
    settled = [row for row in rows if row["minutes"] >= min(chosen.settle, chosen.minutes / 2)]
    growth, files = grown(settled)
    print(
        f"{rows[-1]['iteration']:.0f} iterations in {rows[-1]['minutes']:.1f} minutes:"
        f" memory {settled[0]['memory_mb']:.0f} MB, growth {growth:.1f} MB (limit {GROWTH_LIMIT:.0f});"
        f" open files {settled[0]['files']:.0f}, growth {files:.0f}"
    )
    sys.exit(0 if growth <= GROWTH_LIMIT and files <= 0 else 1)


if __name__ == "__main__":
    main()
