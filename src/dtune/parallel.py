"""One run over many processes: the few calls of `torch.distributed`, and whose share is whose.

Every rank (process) holds the policy and runs the same program with the same generator; what differs is which rows it
computes. Where torchrun has not started several there is one rank, and all that is here gives back what it was given.

A collective is a call that all ranks make together: whoever makes it alone waits until `DTUNE_TIMEOUT`. Numbers and
tensors travel, objects never: nothing that arrives can run.
"""

import hashlib
import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from dtune.errors import ConfigError, DtuneError

TIMEOUT = "DTUNE_TIMEOUT"
"""Environment variable: seconds after which a rank that does not answer ends the run; 1800 by default."""

traffic: Counter[str] = Counter()
"""Bytes that this rank has put into collectives, by their kind: payload, whatever the network makes of it."""


class ParallelError(DtuneError, RuntimeError):
    """Ranks that have lost each other."""


def ranks() -> int:
    """How many processes make this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0: the one that reads, writes and speaks for all."""
    return dist.get_rank() if ranks() > 1 else 0


def asked_for() -> int:
    """How many processes torchrun, or whoever sets its variables, has started."""
    text = os.environ.get("WORLD_SIZE", "1") if "RANK" in os.environ else "1"
    if not text.isdecimal() or not int(text):
        raise ConfigError(f"$WORLD_SIZE counts processes, got {text!r}: start them by torchrun, or unset it")
    return int(text)


@contextmanager
def begun() -> Iterator[None]:
    """Joins the other ranks while it lasts, where there are any; a group that is there already is left alone.

    CPU tensors travel by gloo, those of a GPU by NCCL.

    Raises:
        ParallelError: if they cannot be reached.
    """
    if asked_for() == 1 or ranks() > 1:
        yield
        return
    with _together("begin"):
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        limit = timedelta(seconds=_timeout())
        store, me, many = next(dist.rendezvous("env://", timeout=limit))
        store = dist.PrefixStore(_meet(store, me, many), store)
        dist.init_process_group(backend, store=store, rank=me, world_size=many, timeout=limit)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _meet(store: dist.Store, me: int, many: int) -> str:
    """A name that rank 0 gives to this meeting, and all present have.

    torchrun keeps its store when it starts ranks again, and in it the addresses of those that died. So each rank asks
    with a number that nobody had before, and rank 0 answers whatever is asked until all of its present ones are there.
    """
    if me:
        asked = os.urandom(8).hex()
        store.set(f"dtune/asked/{me}", asked)
        name = store.get(f"dtune/answer/{asked}").decode()
        store.set(f"dtune/{name}/{me}", "here")
        return name
    name, missing, began = os.urandom(8).hex(), set(range(1, many)), time.monotonic()
    while missing:
        for other in missing:
            if store.check([f"dtune/asked/{other}"]):
                store.set(f"dtune/answer/{store.get(f'dtune/asked/{other}').decode()}", name)
        missing = {other for other in missing if not store.check([f"dtune/{name}/{other}"])}
        if time.monotonic() - began > _timeout():
            raise RuntimeError(f"ranks {sorted(missing)} have not come")
        time.sleep(0.01)
    return name


def _timeout() -> float:
    text = os.environ.get(TIMEOUT, "1800")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ConfigError(f"${TIMEOUT} is a number of seconds above 0, got {text!r}: unset it for 1800")
    return seconds


@contextmanager
def _together(what: str, payload: Tensor | None = None) -> Iterator[None]:
    """Counts what is sent, and turns what the network says into a sentence."""
    if payload is not None:
        traffic[what] += payload.numel() * payload.element_size()
    who = f"rank {os.environ.get('RANK', '?')} of {os.environ.get('WORLD_SIZE', '?')}"
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if isinstance(error, DtuneError):
            raise
        said = re.sub(r"^\[\S+\] ", "", " ".join(str(error).split())).split(". ")[0]
        raise ParallelError(
            f"{who} has lost the others ({what}: {said}): one of them ended, or did not answer within ${TIMEOUT};"
            " the same command, or torchrun's --max-restarts, goes on from the last checkpoint"
        ) from error


# ---- shares


def share(count: int, of: int | None = None) -> slice:
    """The rows among `count` that are computed by rank `of` (None: this one): consecutive, and as even as can be."""
    who = rank() if of is None else of
    each, more = divmod(count, ranks())
    start = who * each + min(who, more)
    return slice(start, start + each + (who < more))


def owners(count: int) -> Tensor:
    """The rank that computes each of `count` rows, by `share`: `[count]`, never falling."""
    return torch.arange(ranks()).repeat_interleave(torch.tensor(counts(count)))


def counts(count: int) -> list[int]:
    """Rows of each rank, by `share`."""
    return [part.stop - part.start for part in (share(count, of) for of in range(ranks()))]


# ---- collectives


def total(values: Tensor) -> Tensor:
    """The sum over all ranks."""
    return _reduced("sum", values, dist.ReduceOp.SUM)


def largest(values: Tensor) -> Tensor:
    """The largest on any rank, element by element."""
    return _reduced("max", values, dist.ReduceOp.MAX)


def _reduced(what: str, values: Tensor, how: dist.ReduceOp.RedOpType) -> Tensor:
    if ranks() == 1:
        return values
    result = values.detach().clone()
    with _together(what, result):
        dist.all_reduce(result, how)
    return result


def from_first(values: Tensor) -> Tensor:
    """What rank 0 has; on the others `values` say shape and type."""
    if ranks() == 1:
        return values
    result = values.detach().clone()
    with _together("broadcast", None if rank() else result):
        dist.broadcast(result, 0)
    return result


def bytes_from_first(data: bytes) -> bytes:
    """What rank 0 has, whatever the others have."""
    if ranks() == 1:
        return data
    length = int(from_first(torch.tensor(len(data))))
    room = torch.zeros(length, dtype=torch.uint8)
    if rank() == 0 and length:
        room = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return from_first(room).numpy().tobytes()


def gather_rows(rows: Mapping[str, Tensor], counts: Sequence[int]) -> dict[str, Tensor]:
    """The rows of all ranks, those of rank 0 first; to the last bit.

    Args:
        rows: of this rank, by name; all ranks have the same names, types and numbers of dimensions.
        counts: rows of each rank.
    """
    if ranks() == 1 or not rows:
        return dict(rows)
    # a rank without rows may not know how wide they are
    widths = largest(torch.tensor([size for value in rows.values() for size in value.shape[1:]], dtype=torch.long))
    sizes, shapes = iter(widths.tolist()), {}
    for name, value in rows.items():
        shapes[name] = [next(sizes) for _ in value.shape[1:]]
    flat = [
        value.reshape(len(value), math.prod(shapes[name])).contiguous().view(torch.uint8)
        for name, value in rows.items()
    ]
    own = torch.zeros(max(counts), sum(part.shape[1] for part in flat), dtype=torch.uint8)
    own[: counts[rank()]] = torch.cat(flat, 1)
    everyone = _gather(own, [of for of, count in enumerate(counts) if count])
    joined = torch.cat([part[:count] for part, count in zip(everyone, counts, strict=True)])
    columns = joined.split([part.shape[1] for part in flat], 1)
    return {
        name: column.flatten().clone().view(rows[name].dtype).view(len(joined), *shapes[name])
        for (name, column) in zip(rows, columns, strict=True)
    }


def _gather(own: Tensor, holders: list[int]) -> list[Tensor]:
    """What each rank has; where few have anything, only they send."""
    many = 2 * len(holders) > ranks()
    everyone = [torch.zeros_like(own) for _ in range(ranks())]
    with _together("gather", own if many or rank() in holders else None):
        if many:
            dist.all_gather(everyone, own)
            return everyone
        everyone[rank()] = own
        for of in holders:
            dist.broadcast(everyone[of], of)
    return everyone


def sum_gradients(parameters: Sequence[Tensor], told: Tensor) -> Tensor:
    """Makes every gradient the sum over all ranks, in one collective.

    Args:
        parameters: whose gradients; one that has none on any rank has none afterwards either.
        told: numbers to sum with them.

    Returns:
        The sum of `told`.
    """
    if ranks() == 1:
        return told.detach()
    device = parameters[0].device
    there = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=device)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    parts = [grad.flatten() for grad in grads] + [there, told.detach().to(device)]
    summed = total(torch.cat(parts)).split([len(part) for part in parts])
    for parameter, value, present in zip(parameters, summed, summed[-2].tolist(), strict=False):
        parameter.grad = value.view_as(parameter) if present else None
    return summed[-1].to(told.device)


@torch.no_grad()
def same_from_first(parameters: Sequence[Tensor]) -> bool:
    """Gives all ranks the parameters of rank 0 where theirs differ: other processors round otherwise.

    Returns:
        Whether any differed. To find out costs two numbers, to send them all of them.
    """
    if ranks() == 1:
        return False
    flat = torch.cat([parameter.detach().flatten() for parameter in parameters])
    sha256 = hashlib.sha256(flat.cpu().view(torch.uint8).numpy().data).digest()
    digest = int.from_bytes(sha256[:8], signed=True)
    low, high = largest(torch.tensor((~digest, digest))).tolist()  # the largest ~x is the smallest x
    if ~low == high:
        return False
    for parameter, value in zip(parameters, from_first(flat).split([p.numel() for p in parameters]), strict=True):
        parameter.copy_(value.view_as(parameter))
    return True
