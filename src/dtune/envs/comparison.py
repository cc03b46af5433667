"""Walks of a simulator beside each other, and whether they are the same to the last bit."""

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from dtune.envs.simulator import Outcome
from dtune.findings import WrongError, require

Walked = list[tuple[Tensor, Outcome]]
"""By step, the rows still walking and what came of it."""


def going(outcome: Outcome) -> Int64[Tensor, "rows"]:
    """The rows that have not ended."""
    return (~(outcome.terminated | outcome.truncated)).nonzero().squeeze(1)


def take(outcome: Outcome, rows: list[int]) -> Outcome:
    """The outcome of some rows, in that order."""
    return Outcome(*(field[rows] for field in outcome))


def same(outcome: Outcome, other: Outcome) -> bool:
    """To the last bit; NaN equals NaN, as it is the fault of something else."""
    return all(np.array_equal(a.numpy(), b.numpy(), equal_nan=a.is_floating_point()) for a, b in zip(outcome, other))


def require_equal(walked: Walked, other: Walked, sentence: str) -> None:
    """Raises `WrongError` with the sentence, and from which step on, where two walks differ."""
    for step, ((rows, outcome), (others, again)) in enumerate(zip(walked, other), 1):
        require(torch.equal(rows, others) and same(outcome, again), f"{sentence} (from step {step} on)")


def require_rows(call: str, name: str, value: object, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raises `WrongError` where what `call` gave as `name` is no tensor of that shape and type."""
    if not isinstance(value, Tensor) or value.shape != shape or value.dtype != dtype:
        got = f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise WrongError(f"{name} of {call} have to be a tensor {shape} of {dtype}, and are {got}")
