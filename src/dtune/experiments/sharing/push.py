"""What of a run goes to the hub: the policy, the settings, the record, and a card."""

import json
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

from dtune.errors import ConfigError
from dtune.experiments import checkpoint, disk
from dtune.experiments.folder import read_config
from dtune.experiments.policies import find_checkpoint, load_policy, read_about
from dtune.experiments.record import read_rows
from dtune.experiments.run import ALGORITHMS
from dtune.experiments.sharing import hub
from dtune.experiments.sharing.card import Facts, model_card


def push_policy(path: str | Path, repository: str, *, license: str = "mit", private: bool = False) -> str:
    """Sends a policy to Hugging Face's hub, with a card; `load_policy("user/name")` reads it again.

    Args:
        path: a run folder (its best checkpoint) or a checkpoint.
        repository: user/name; made where there is none.
        license: of the policy, as Hugging Face abbreviates it.
        private: whether a new repository is for its owner only.

    Returns:
        The repository's address.

    Raises:
        ConfigError: if there is no policy at `path`, or huggingface_hub is not installed.
        DataError: if a file is damaged, or the server refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        gather(path, repository, Path(folder), license=license)
        return hub.push(Path(folder), repository, private=private)


def gather(path: str | Path, repository: str, out: Path, *, license: str = "mit") -> None:
    """Writes what a repository is to hold into the folder `out`, which is empty or not there.

    Raises:
        ConfigError: if there is something in `out`, or no policy at `path`.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty: choose another folder")
    source = find_checkpoint(Path(path)).resolve()
    run = _run_folder(source)
    place = out / hub.PLACE
    place.mkdir(parents=True)
    for name, data in checkpoint.policy_files(source).items():
        disk.write(place / name, data)
    for name in ("config.json", "metrics.csv"):
        if (run / name).is_file():
            disk.write(out / name, (run / name).read_bytes())
    disk.write(out / "README.md", model_card(collect_facts(source, repository, license)).encode())


def collect_facts(source: Path, repository: str, license: str) -> Facts:
    """What a checkpoint and the run folder around it say of a policy."""
    run, about = _run_folder(source), read_about(source)
    config = read_config(run) if (run / "config.json").is_file() else {}
    meta, before = _meta(run), {}
    if meta.get("dataset"):  # what the run began from: a checkpoint of another, or the data themselves
        before = _meta(_run_folder(Path(meta["dataset"])))
    origins = [found for found in (before, meta) if found]
    return Facts(
        repository=repository,
        kind=type(load_policy(source)).__name__,
        method=_method(config.get("algorithm", {})),
        dataset=about.get("dataset"),
        return_to_go=about.get("return_to_go"),
        data_hash=origins[0].get("dataset_sha256") if origins else None,
        commands=[_command(found["command"]) for found in origins if found.get("command")],
        versions=meta.get("versions", {}),
        rows=read_rows(run / "metrics.csv") if (run / "metrics.csv").is_file() else [],
        episodes=config.get("evaluation_episodes"),
        license=license,
    )


def _run_folder(source: Path) -> Path:
    """The run that a checkpoint is of: runs/x of runs/x/checkpoints/best."""
    return source.parent.parent if source.parent.name == "checkpoints" else source


def _meta(run: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((run / "meta.json").read_bytes())["begun"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _method(algorithm: dict[str, Any]) -> str | None:
    """What people call the algorithm whose settings these are."""
    for kind, method in ALGORITHMS.items():
        if {field.name for field in fields(kind)} == set(algorithm):
            return method.name
    return "pretraining" if algorithm else None


def _command(words: list[str]) -> list[str]:
    """The words typed, without the place of the program and the name of a home."""
    home = str(Path.home())
    return [Path(words[0]).name, *(word.replace(home, "~", 1) if word.startswith(home) else word for word in words[1:])]
