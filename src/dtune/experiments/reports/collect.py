"""From run folders to records for `results/`: what ran is read off the folder, its evaluations off `metrics.csv`."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dtune.errors import DataError
from dtune.experiments.folder import differences
from dtune.experiments.record import Row, read_run
from dtune.experiments.reports.results import COLUMNS, LABELS, Curve, parse_name, read_results, write_curve

KEYS = {
    "iteration": "iteration",
    "env_steps": "count/env_steps",
    "env_steps_trajectories": "count/env_steps_trajectories",
    "env_steps_subtrajectories": "count/env_steps_subtrajectories",
    "env_steps_lookahead": "count/env_steps_lookahead",
    "gradient_steps": "count/gradient_steps",
    "critic_steps": "count/critic_steps",
    "seconds": "time/seconds",
    "return": "eval/return",
    "return_std": "eval/return_std",
    "normalized_score": "eval/normalized_score",
    "success": "eval/success",
    "length": "eval/length",
    "ratio_max": "train/ratio_max",
    "fresh_ratio_error": "train/fresh_ratio_error",
}
"""Where a record's columns come from; `ratio_peak` is the largest `ratio_max` since the evaluation before."""

_OF_EACH_RUN = ("seed", "threads", "network_threads", "device")
"""Settings in which seeds of one method may differ."""

ARCHITECTURES = {"Reinformer": "reinformer"}
"""Networks that make a variant of a method, and what it is called."""


class Identity(NamedTuple):
    """What a run folder is the run of."""

    dataset: str
    method: str
    seed: int


def collect(source: Path, *, only: str | None = None) -> tuple[dict[Path, Curve], list[Path]]:
    """Reads the runs in a folder and below.

    Args:
        source: a run folder, or any folder above some.
        only: name of a folder that must be in a run's path, itself or with a dash and more behind it: `small` where
            scales lie side by side takes `small-reinformer`, too.

    Returns:
        The record of each finetuning run, by its folder, those not finished included, and the folders left out:
        pretrainings, runs whose method cannot be told, and runs not judged yet.

    Raises:
        DataError: if two folders hold runs of the same dataset, method and seed, or a metrics.csv is damaged.
    """
    found: dict[Path, Curve] = {}
    left_out = []
    owner: dict[Identity, Path] = {}
    for folder in find_runs(Path(source)):
        if only is not None and not any(part == only or part.startswith(f"{only}-") for part in folder.parts):
            continue
        who, rows = identify(folder), read_run(folder)
        judged = [row for row in rows if "eval/return" in row]
        if who is None or not judged:
            left_out.append(folder)
            continue
        if who in owner:
            raise DataError(
                f"{owner[who]} and {folder} are both runs of {who.method} on {who.dataset} with seed {who.seed}:"
                " call a variant's folder METHOD+VARIANT, or collect them apart (--only NAME)."
            )
        owner[who] = folder
        found[folder] = replace(make_curve(who, rows, trained_on(folder)), finished=finished(folder, rows))
    return found, left_out


def unlike_seeds(found: Mapping[Path, Curve]) -> Iterator[str]:
    """A sentence for each run of a method on a dataset whose settings, but for the seed, are not the first one's."""
    first: dict[tuple[str, str], Path] = {}
    for folder, curve in found.items():
        model = first.setdefault((curve.dataset, curve.method), folder)
        changed = differences(_document(model / "config.json"), _document(folder / "config.json"))
        lines = [line for name, line in changed.items() if name not in _OF_EACH_RUN]
        if lines:
            yield f"{folder} has not the settings of {model}: {'; '.join(lines)}"


def write_results(
    source: Path, out: Path, *, only: str | None = None, say: Callable[[str], object] = lambda _: None
) -> tuple[list[Path], list[Path]]:
    """Collects finished runs into CSVs in `out`: those written, and the folders left out; `say` is told what is odd.

    Raises:
        DataError: as `collect`, and if there is no finished finetuning run at all.
    """
    found, left_out = collect(source, only=only)
    whole = {folder: curve for folder, curve in found.items() if curve.finished}
    if not whole:
        raise DataError(
            f"{source} holds no finetuning run on a dataset of the paper that was judged and is finished"
            f"{f', in a folder {only}' if only else ''}: give a run folder, or one above some, and go on with what was"
            " stopped; a run from Python is known by its folder's name, hopper-random-v2_ppo_seed0 for example."
        )
    for sentence in unlike_seeds(whole):
        say(sentence)
    return [write_curve(curve, Path(out)) for curve in whole.values()], sorted({*left_out, *found} - {*whole})


def finished(folder: Path, rows: list[Row]) -> bool:
    """Whether a run has done the iterations, or used the time, that its settings give it."""
    config = _document(folder / "config.json")
    done, seconds = (max((row.get(key, 0.0) for row in rows), default=0.0) for key in ("iteration", "time/seconds"))
    iterations, limit = config.get("iterations"), config.get("time_limit")
    return (
        not isinstance(iterations, int) or done >= iterations or (isinstance(limit, int | float) and seconds >= limit)
    )


def load(
    path: Path, *, only: str | None = None, say: Callable[[str], object] = lambda _: None
) -> dict[str, list[Curve]]:
    """Records below a path by the folder they lie in: of CSVs or, where there are none, of run folders.

    Args:
        path: a folder.
        only: of run folders, as `collect` has it.
        say: is told what is odd about run folders.

    Raises:
        DataError: if there is neither, or one is damaged.
    """
    path = Path(path)
    groups = read_results(path) if path.exists() else {}
    if not groups and path.is_dir():
        found, _ = collect(path, only=only)
        groups = {"": list(found.values())} if found else {}
        for sentence in unlike_seeds(found):
            say(sentence)
    if not groups:
        raise DataError(
            f"{path} holds no records: give a folder of DATASET_METHOD_seedN.csv files, as `dtune collect` makes them,"
            " or of finetuning runs."
        )
    return groups


def find_runs(source: Path) -> Iterator[Path]:
    """Folders with a `metrics.csv`, in order."""
    return iter(sorted(path.parent for path in source.rglob("metrics.csv")))


def identify(folder: Path) -> Identity | None:
    """Dataset, method (with its variant) and seed of a run folder; None where it is no finetuning run.

    The folder's own name counts first, if it is that of a record; then the command and the settings it was begun
    with; a path part METHOD+VARIANT names the variant.
    """
    named = parse_name(f"{folder.name}.csv")
    if named is not None:
        return Identity(*named)
    config, command = _document(folder / "config.json"), begun(folder).get("command", [])
    preset = next((word for before, word in pairwise(command) if before == "finetune"), "")
    method, _, dataset = preset.partition("/")
    dataset, seed = config.get("dataset", dataset), config.get("seed")
    if "evaluate_every" not in config or not dataset or not isinstance(seed, int):
        return None  # a pretraining, or not ours
    parts = [part for part in reversed(folder.parts) if part.partition("+")[0] == method or not method]
    named_method = next((part for part in parts if part.partition("+")[0] in LABELS), method)
    if not named_method:
        return None
    return Identity(dataset, named_method + _architecture(folder, named_method), seed)


def make_curve(who: Identity, rows: list[Row], data: str) -> Curve:
    """The record of a run from all its rows: those judged, and the largest ratio since the one before."""
    peaks, peak, kept = [], math.nan, []
    for row in rows:
        peak = float(np.fmax(peak, row.get("train/ratio_max", math.nan)))
        if "eval/return" in row:
            kept.append(row)
            peaks.append(peak)
            peak = math.nan
    columns = {name: np.array([row.get(key, math.nan) for row in kept], float) for name, key in KEYS.items()}
    columns["ratio_peak"] = np.array(peaks, float)
    for name, key in KEYS.items():
        counted = key.startswith(("count/", "time/")) and kept[0]["iteration"] == 0
        if counted and (len(kept) == 1 or np.isfinite(columns[name]).any()):
            columns[name][0] = 0.0
    return Curve(
        dataset=who.dataset,
        method=who.method,
        seed=who.seed,
        data=data,
        columns={name: columns[name] for name in COLUMNS if not np.isnan(columns[name]).all()},
    )


def begun(folder: Path) -> dict[str, Any]:
    """How a run was begun, of its `meta.json`; empty where that is not known."""
    found = _document(folder / "meta.json").get("begun", {})
    return found if isinstance(found, dict) else {}


def trained_on(folder: Path, depth: int = 2) -> str:
    """Name of the data file of a run or, if it began with a checkpoint, of that one's run; "" where not known."""
    said = begun(folder).get("dataset")
    if not isinstance(said, str) or not depth:
        return ""
    path = Path(said)
    if path.suffix in (".hdf5", ".h5", ".npz"):
        return path.name
    runs = [parent for parent in (path, *path.parents) if (parent / "meta.json").is_file()]
    return trained_on(runs[0], depth - 1) if runs else ""


def _architecture(folder: Path, method: str) -> str:
    """`+reinformer` behind a method whose name does not say so."""
    for name in ("last", "best"):
        kind = _document(folder / "checkpoints" / name / "policy.json").get("kind")
        variant = ARCHITECTURES.get(str(kind))
        if variant:
            return "" if variant in method else f"+{variant}"
    return ""


def _document(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
