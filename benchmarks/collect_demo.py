"""Puts the learning curves of `dtune demo` runs into one CSV a run: `dtune collect` under its old name.

`python benchmarks/collect_demo.py runs/demo results/demo`
"""

import sys
from pathlib import Path

from dtune.experiments.collect import write_results

if __name__ == "__main__":
    for path in write_results(Path(sys.argv[1]), Path(sys.argv[2]))[0]:
        print(path)
