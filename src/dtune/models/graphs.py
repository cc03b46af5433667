"""Many small calls as one: on a GPU, what a function launches is recorded once and replayed, as a CUDA graph."""

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Outputs = tuple[Tensor, ...]
Record = Callable[[Callable[[], Outputs]], Callable[[], Outputs]]
"""Runs a function of tensors that stay where they are, and gives what repeats it: into the same outputs each time."""

UNRECORDED = 8
"""Calls that are made without a recording."""
WARM_UP = 3
"""Calls before recording, in which libraries choose and allocate what a recording must not."""


class Replayed:
    """A row-wise `function` of tensors, replayed for any number of rows up to the largest yet.

    The first calls are made as they are: who asks a few times only, waits for no recording. After them one is made for
    as many rows as there are, compared with a call, and used if it says the same; a call with more rows makes another.
    With fewer, the others are computed as well, of what stood there, and left out. Outputs hold until the next call.

    Args:
        function: row i of its outputs depends on row i of its inputs alone; it takes inputs from anywhere, and of
            those on its device it neither waits nor draws random numbers.
        device: where it computes.
        record: by default, as a CUDA graph.
    """

    def __init__(self, function: Callable[..., Outputs], device: torch.device, record: Record | None = None) -> None:
        self.function, self.device = function, device
        self.record = record or partial(cuda_graph, device)
        self.calls, self.rows, self._inputs = 0, 0, tuple[Tensor, ...]()

    def __call__(self, *inputs: Tensor) -> Outputs:
        """`function(*inputs)`."""
        rows, self.calls = len(inputs[0]), self.calls + 1
        if self.calls <= UNRECORDED:
            return self.function(*inputs)
        if rows > self.rows:
            held_inputs = tuple(x.to(self.device, copy=True) for x in inputs)
            self._replay = self._record(partial(self.function, *held_inputs))
            self.rows, self._inputs = rows, held_inputs
        else:
            for held, given in zip(self._inputs, inputs, strict=True):
                held[:rows].copy_(given, non_blocking=True)
        return tuple(x[:rows] for x in self._replay())

    def _record(self, function: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """What repeats `function`; the function itself where that cannot be recorded, or says something else."""
        try:
            replay = self.record(function)
            same = all(torch.allclose(*pair, rtol=1e-4, atol=1e-5) for pair in zip(replay(), function(), strict=True))
            why = "its recording says something else"
        except RuntimeError as error:
            same, why = False, str(error)
        if same:
            return replay
        warnings.warn(f"this network cannot be recorded as a graph and acts without: {why}", stacklevel=3)
        return function


_failures: list[str] = []
"""Why a recording by CUDA broke off, which leaves its allocator in doubt: no other is begun in this process."""


def cuda_graph(device: torch.device, function: Callable[[], Outputs]) -> Callable[[], Outputs]:
    """A `Record` by CUDA, once it is told the device.

    Raises:
        RuntimeError: where it cannot be recorded, or one before it could not.
    """
    if _failures:
        raise RuntimeError(_failures[0])
    try:
        with torch.cuda.device(device):
            return _cuda_graph(function)
    except RuntimeError as error:
        _failures.append(str(error))
        raise


def _cuda_graph(function: Callable[[], Outputs]) -> Callable[[], Outputs]:
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    before = torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, stream=aside):  # its default stream may be another device's
            outputs = function()
    finally:
        torch.cuda.set_stream(before)  # a recording that cannot be ended leaves the one aside

    def replay() -> Outputs:
        graph.replay()
        return outputs

    return replay
