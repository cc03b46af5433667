"""States to save, and what it means that two are the same."""

import struct
from pathlib import Path

import torch
from torch import nn

from dtune.experiments.encoding import decode, encode


def same(a, b) -> bool:
    """Equal in structure, types and bits."""
    if isinstance(a, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return a.contiguous().view(-1).view(torch.uint8).equal(b.contiguous().view(-1).view(torch.uint8))
    if isinstance(a, float):
        return isinstance(b, float) and ((a != a and b != b) or struct.pack("d", a) == struct.pack("d", b))
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def make_state(seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(2, 3, generator=generator))
    optimiser = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    matrix = torch.randn(4, 5, generator=generator)
    return {
        "algorithm": {
            "policy": layer.state_dict(),
            "optimiser": optimiser.state_dict(),  # keys of int, a tuple of betas, a shared nothing
            "replay": [{"rewards": torch.randn(n, dtype=torch.float64, generator=generator)} for n in (1, 3)],
        },
        "generator": generator.get_state(),
        "dtypes": {
            "bool": torch.tensor([True, False]),
            "int64": torch.tensor([2**62, -1]),
            "int32": torch.tensor(-7, dtype=torch.int32),
            "uint8": torch.arange(256, dtype=torch.uint8),
            "bfloat16": matrix.bfloat16(),
            "float16": matrix.half(),
            "scalar": torch.tensor(0.1),
            "special": torch.tensor([float("nan"), float("inf"), -0.0, 5e-324], dtype=torch.float64),
            "empty": torch.zeros(0, 3),
        },
        "views": [matrix, matrix.T, matrix[:, 1], matrix.expand(2, 4, 5), matrix[0, 0]],
        "floats": [0.1, 1.0, -0.0, 1e308, 5e-324, float("inf"), float("-inf"), float("nan"), 1 / 3],
        "others": [True, False, None, 0, -(2**80), "text\n\ud83d", "", [], {}, (), ((1,), [2])],
        "odd keys": {"$tensor": "mine", "a/b": torch.ones(1), "~": 1},
    }


def plain(state):
    """OrderedDicts as dicts."""
    return decode(*encode(state))


def names(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").iterdir()}
