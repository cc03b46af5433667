"""Hugging Face's hub: folders go there and come back; what comes is read by those who verify it.

`$HF_ENDPOINT` names another server of the same API, `$HF_TOKEN` who is asking.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dtune.errors import ConfigError, DataError

PLACE = "checkpoints/best"
"""Where a policy lies in a repository: the repository looks like a run folder."""

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_repository(name: str) -> bool:
    """Whether a name can be one of a repository, and is no path on this machine: user/name, and no folder user."""
    return bool(_NAME.fullmatch(name)) and not Path(name.partition("/")[0]).exists()


def check_name(repository: str) -> None:
    """Raises `ConfigError` unless this can be the name of a repository."""
    if not _NAME.fullmatch(repository):
        raise ConfigError(f"a repository is called user/name, got {repository!r}")


def pull(repository: str) -> Path:
    """Fetches the policy of a repository, unless it was fetched before, and nothing else of it.

    Returns:
        A folder that holds `PLACE`.

    Raises:
        DataError: if there is no such repository, none that may be read, or no way to it.
        ConfigError: if huggingface_hub is not installed.
    """
    library = _library(f"{repository} is no folder here, and to ask Hugging Face for it")
    # files of its own: in the hub's cache they are links, which are refused in a checkpoint
    own = Path(library.constants.HF_HUB_CACHE).parent / "dtune" / repository
    what = f"{repository} is no folder here, and could not be fetched from Hugging Face"
    with _refusals(what, "check its name, your network, and whether it is public (else set HF_TOKEN)"):
        found = library.snapshot_download(
            repository, allow_patterns=[f"{PLACE}/*"], endpoint=_endpoint(), local_dir=own
        )
    return Path(found)


def push(folder: Path, repository: str, *, private: bool = False) -> str:
    """Makes what is in a folder the newest commit of a repository, which is made where there is none.

    Args:
        folder: what to send.
        repository: user/name.
        private: whether a new repository is for its owner only.

    Returns:
        The repository's address.

    Raises:
        DataError: if the server refuses, or cannot be reached.
        ConfigError: if the name is none, or huggingface_hub is not installed.
    """
    check_name(repository)
    library = _library("pushing")
    api = library.HfApi(endpoint=_endpoint())
    with _refusals(f"{repository} could not be pushed", "log in with `hf auth login` or set HF_TOKEN, and try again"):
        place = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="A policy of dtune")
    return str(place)


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")


def _library(what: str) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants  # the package alone does not have it
    except ImportError as error:
        raise ConfigError(f"{what}, huggingface_hub is needed: pip install 'dtune[hub]'") from error
    return huggingface_hub


@contextmanager
def _refusals(what: str, way_out: str) -> Iterator[None]:
    """Makes a sentence of whatever the library raises: it, and the client it speaks through, have many kinds."""
    try:
        yield
    except (AttributeError, ImportError, NameError):
        raise  # a fault of code, which no network mends
    except Exception as error:
        said = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise DataError(f"{what} ({said[:200].rstrip('. ')}): {way_out}") from error
