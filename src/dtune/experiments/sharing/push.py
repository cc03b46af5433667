"""What of a run goes to the hub: the policy, the settings, the record, and a card."""

import json
import os
import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from dtune.errors import ConfigError, DataError
from dtune.experiments import checkpoint, disk
from dtune.experiments.folder import read_config, sha256
from dtune.experiments.methods import ALGORITHMS, Method
from dtune.experiments.policies import find_checkpoint, load_policy, read_about
from dtune.experiments.record import read_rows
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
        DataError: if a file is damaged, a link leads out of the run folder, or the server refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        gather(path, repository, Path(folder), license=license)
        return hub.push(Path(folder), repository, private=private)


def gather(path: str | Path, repository: str, out: Path, *, license: str = "mit") -> None:
    """Writes what a repository is to hold into the folder `out`, which is empty or not there.

    Raises:
        ConfigError: if there is something in `out`, or no policy at `path`.
        DataError: if a file is damaged, or a link leads out of the run folder.
    """
    hub.check_name(repository)
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty: choose another folder")
    source, run = _locate(Path(path))
    place = out / hub.PLACE
    place.mkdir(parents=True)
    for name, data in checkpoint.policy_files(source).items():
        disk.write(place / name, data)
    for name in ("config.json", "metrics.csv"):
        if _is_file(run / name):
            disk.write(out / name, (run / name).read_bytes())
    disk.write(out / "README.md", model_card(collect_facts(source, run, repository, license)).encode())


def collect_facts(source: Path, run: Path, repository: str, license: str) -> Facts:
    """What a checkpoint and the run folder around it say of a policy.

    Raises:
        DataError: if a file is damaged, or is a link.
    """
    about = read_about(source)
    config = read_config(run) if _is_file(run / "config.json") else {}
    history = _history(run)
    meta = history[0]
    before = _meta_before(meta)
    algorithm = config.get("algorithm", {})
    method = _method(algorithm)
    of_data = before or (meta if method is None or method.offline else {})  # else the hash is of a policy
    return Facts(
        repository=repository,
        kind=type(load_policy(source)).__name__,
        method=method.name if method else "pretraining" if algorithm else None,
        dataset=about.get("dataset"),
        return_to_go=about.get("return_to_go"),
        data_file=Path(str(of_data["dataset"])).name if of_data.get("dataset") else None,
        data_hash=of_data.get("dataset_sha256"),
        commands=_commands([before, *history]),
        versions=meta.get("versions", {}),
        rows=read_rows(run / "metrics.csv") if _is_file(run / "metrics.csv") else [],
        episodes=config.get("evaluation_episodes"),
        license=license,
    )


def _locate(path: Path) -> tuple[Path, Path]:
    """The checkpoint meant by a path, and its run folder, which no link in it may lead out of.

    Raises:
        ConfigError: if there is no policy.
        DataError: if a link leads elsewhere: somebody else's folder would send what is not theirs.
    """
    found = Path(os.path.abspath(find_checkpoint(path)))
    source, run = found.resolve(), _run_folder(found)
    alone = run == found
    leads_out = found.is_symlink() if alone else not source.is_relative_to(run.resolve())
    if leads_out:
        raise DataError(
            f"{found} leads to {source}, and a link out of its folder is not followed: give that path if it is meant."
        )
    return source, _run_folder(source) if alone else run.resolve()


def _is_file(path: Path) -> bool:
    """Whether there is a file.

    Raises:
        DataError: if there is a link or anything else: what it leads to would be sent.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode):
        raise DataError(f"{path} is not a regular file, and nothing else is sent: put the file itself there.")
    return True


def _run_folder(source: Path) -> Path:
    """The run that a checkpoint is of: runs/x of runs/x/checkpoints/best."""
    return source.parent.parent if source.parent.name == "checkpoints" else source


def _history(run: Path) -> list[dict[str, Any]]:
    """How a run was begun, empty where that is not known, and each time it was continued."""
    if not _is_file(run / "meta.json"):
        return [{}]
    try:
        meta = json.loads((run / "meta.json").read_bytes())
        return [dict(meta["begun"]), *(one for one in meta["continued"] if isinstance(one, dict))]
    except (OSError, ValueError, KeyError, TypeError):
        return [{}]


def _meta_before(meta: dict[str, Any]) -> dict[str, Any]:
    """How the run was begun whose checkpoint another began from; empty where it began from the data themselves.

    The place is a stranger's word: it is believed where the checkpoint there has the hash recorded with it.
    """
    place = meta.get("dataset")
    if not isinstance(place, str) or not os.path.isdir(place):
        return {}
    try:
        checkpoint.verify(Path(place))  # or the hash could be asked of a whole disk
        known = sha256(Path(place)) == meta.get("dataset_sha256")
    except (OSError, DataError):
        return {}
    return _history(_run_folder(Path(place)))[0] if known else {}


def _method(algorithm: dict[str, Any]) -> Method | None:
    """The method of finetuning whose settings these are; None for those of pretraining."""
    of = (method for kind, method in ALGORITHMS.items() if {field.name for field in fields(kind)} == set(algorithm))
    return next(of, None)


def _commands(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Their command lines, in order, each once."""
    said = [tuple(_command(one["command"])) for one in found if one.get("command")]
    return [list(words) for words in dict.fromkeys(said)]


def _command(words: list[str]) -> list[str]:
    """The words typed, without the place of the program and the name of a home."""
    home = str(Path.home())
    return [Path(words[0]).name, *(word.replace(home, "~", 1) if word.startswith(home) else word for word in words[1:])]
