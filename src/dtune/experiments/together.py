"""One run of many ranks: the first of them reads, writes and speaks; what it reads, all have."""

import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from dtune import parallel
from dtune.errors import ConfigError, DtuneError
from dtune.experiments import checkpoint
from dtune.experiments.encoding import decode, encode
from dtune.experiments.folder import locked, plain
from dtune.experiments.policies import DOCUMENT, StoredPolicy, assemble, describe, load_policy


@contextmanager
def joined(directory: Path | None, config: Any = None) -> Iterator[None]:
    """Joins the ranks of this run while it lasts; the first holds the run folder, which the others need not see.

    Args:
        directory: the run folder; None for none.
        config: settings that all must have been started with.
    """
    with parallel.begun():
        check_same(config)
        if directory is None or parallel.rank():
            yield
        else:
            with locked(directory):
                yield


def refuse_many(what: str, way_out: str) -> None:
    """Makes sure that this process is alone.

    Raises:
        ConfigError: if torchrun has started several.
    """
    if parallel.asked_for() > 1:
        raise ConfigError(f"{what} is done by one process, and torchrun has started {parallel.asked_for()}: {way_out}")


def from_first(read: Callable[[], Any]) -> Any:
    """What `read` gives on rank 0; the others do not call it.

    Args:
        read: gives dicts, lists and tuples of tensors, numbers, text and None.

    Raises:
        DtuneError: what `read` raises, on rank 0.
        ParallelError: then, on the others.
    """
    if parallel.ranks() == 1:
        return read()
    refused, data = None, b""
    if not parallel.rank():
        try:
            data = pack(read())
        except DtuneError as error:
            refused = error
    data = parallel.bytes_from_first(data)
    if refused is not None:
        raise refused
    if not data:
        raise parallel.ParallelError("rank 0 could not begin, and says why: put that right, and start all ranks again")
    return unpack(data)


def pack(state: Any) -> bytes:
    """A nested state as bytes: the length of its JSON, the JSON, its tensors as safetensors."""
    document, tensors = encode(state)
    text = json.dumps(document).encode()
    return struct.pack("<q", len(text)) + text + safetensors.torch.save(tensors)


def unpack(data: bytes) -> Any:
    """The inverse of `pack`."""
    (length,) = struct.unpack_from("<q", data)
    start = 8 + length
    return decode(json.loads(data[8:start]), safetensors.torch.load(data[start:]))


def load_last(directory: Path) -> checkpoint.Loaded | None:
    """As `checkpoint.load_last` of the first rank's folder, on every rank."""

    def read() -> dict[str, Any] | None:
        found = checkpoint.load_last(directory)
        return None if found is None else {**found._asdict(), "path": str(found.path)}

    if parallel.ranks() == 1:
        return checkpoint.load_last(directory)
    found = from_first(read)
    return None if found is None else checkpoint.Loaded(**{**found, "path": Path(found["path"])})


def policy_at(path: Path) -> StoredPolicy:
    """The policy at `path`, which the first rank reads, on every rank."""

    def read() -> dict[str, Any]:
        policy = load_policy(path)
        return {**describe(policy)[DOCUMENT], "weights": policy.state_dict()}

    return load_policy(path) if parallel.ranks() == 1 else assemble(**from_first(read))


def check_same(config: Any) -> None:
    """Makes sure that all ranks were started with the same settings.

    Raises:
        ConfigError: on the ranks whose settings are not those of rank 0.
    """
    text = json.dumps(plain(config), sort_keys=True).encode()
    mine = torch.frombuffer(bytearray(hashlib.sha256(text).digest()), dtype=torch.uint8)
    if not parallel.from_first(mine).equal(mine):
        raise ConfigError(
            f"rank {parallel.rank()} of {parallel.ranks()} was started with other settings than rank 0: give all hosts"
            " the same command"
        )
