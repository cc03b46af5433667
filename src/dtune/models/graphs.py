"""Many small calls as one: on a GPU, what a function launches is recorded once and replayed, as a CUDA graph."""

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Outputs = tuple[Tensor, ...]
Record = Callable[[Callable[[], Outputs]], Callable[[], Outputs]]
"""Runs a function of tensors that stay where they are, and gives what repeats it: into the same outputs each time."""

WARM_UP = 3
"""Calls before recording, in which libraries choose and allocate what a recording must not."""


class Replayed:
    """A row-wise `function` of tensors, replayed for any number of rows up to the largest yet.

    Outputs hold until the next call. A call with more rows than any before records anew; with fewer, the others are
    computed as well, of what stood there, and left out.

    Args:
        function: row i of its outputs depends on row i of its inputs alone; it neither waits for the device nor
            draws random numbers.
        device: where it computes; inputs may come from elsewhere.
        record: by default, as a CUDA graph.
    """

    def __init__(self, function: Callable[..., Outputs], device: torch.device, record: Record | None = None) -> None:
        self.function, self.device = function, device
        self.record = record or partial(cuda_graph, device)
        self.rows, self._inputs = 0, tuple[Tensor, ...]()

    def __call__(self, *inputs: Tensor) -> Outputs:
        """`function(*inputs)`."""
        rows = len(inputs[0])
        if rows > self.rows:
            held_inputs = tuple(x.to(self.device, copy=True) for x in inputs)
            self._replay = self._record(partial(self.function, *held_inputs))
            self.rows, self._inputs = rows, held_inputs
        else:
            for held, given in zip(self._inputs, inputs, strict=True):
                held[:rows].copy_(given, non_blocking=True)
        return tuple(x[:rows] for x in self._replay())

    def _record(self, function: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """What repeats `function`; the function itself where it cannot be recorded."""
        try:
            return self.record(function)
        except RuntimeError as error:
            warnings.warn(f"this network cannot be recorded as a graph and acts without: {error}", stacklevel=2)
            return function


def cuda_graph(device: torch.device, function: Callable[[], Outputs]) -> Callable[[], Outputs]:
    """A `Record` by CUDA, once it is told the device."""
    with torch.cuda.device(device):
        return _cuda_graph(function)


def _cuda_graph(function: Callable[[], Outputs]) -> Callable[[], Outputs]:
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=aside):  # its default stream may be another device's
        outputs = function()

    def replay() -> Outputs:
        graph.replay()
        return outputs

    return replay
