"""What ranks do in tests; each job gives something that JSON can hold."""

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from learners import LEARNERS, grpo
from pointmass import PointMass

import dtune
from dtune import parallel
from dtune.cli import main
from dtune.errors import DataError
from dtune.experiments import together
from dtune.experiments.encoding import encode

torch.set_num_threads(1)


def listed(rows: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Tensors as text of their bytes, and how many rows there are."""
    return {name: [row.contiguous().numpy().tobytes().hex() for row in value] for name, value in rows.items()}


def make(name: str, changes: dict[str, Any]) -> Any:
    return (grpo if name == "grpo" else LEARNERS[name])(changes.pop("context", 1), seed=3, **changes)


def learn(name: str, iterations: int, **changes: Any) -> dict[str, Any]:
    """Iterates; what was walked in the first iteration, and what came of all of them."""
    with parallel.begun():
        algorithm, simulator = make(name, changes), PointMass(box=1.3)
        rows, first = [], {}
        for _ in range(iterations):
            rows.append(algorithm.iterate(simulator))
            first = first or {
                "members": listed(algorithm.buffer.rows) if "grpo" in name else {},
                "replay": listed(algorithm.replay.rows) if name in ("grpo", "ppo") else {},
            }
        parameters = torch.cat([p.detach().flatten() for p in algorithm.policy.parameters()]).tolist()
        held = sum(v.untyped_storage().nbytes() for v in algorithm.buffer.rows.values()) if "grpo" in name else 0
        state = sorted(encode(algorithm.state_dict())[1].items())
        return {
            "rows": rows,
            **first,
            "parameters": parameters,
            "held": held,
            "stepped": sum(simulator.stepped),
            "state": [(key, value.double().flatten().tolist()) for key, value in state if "replay" not in key],
        }


class Slow(PointMass):
    """A point mass that takes its time, or breaks."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__(box=1.3)
        self.seconds = seconds

    def step(self, actions: torch.Tensor) -> Any:
        time.sleep(self.seconds)
        return super().step(actions)


def finetune(folder: str, iterations: int, seconds: float = 0.0, own: bool = False, **changes: Any) -> list[Any]:
    """`dtune.finetune` with a run folder, or one for each rank: then nothing is shared but what is sent."""
    directory = Path(folder) / os.environ["RANK"] if own else Path(folder)
    return dtune.finetune(
        make("grpo", changes), Slow(seconds), iterations=iterations, directory=directory, evaluate_every=2,
        evaluation_episodes=3, quiet=False,
    )  # fmt: skip


def command(
    arguments: list[str], folder: str, links: dict[str, dict[str, str]] | None = None, own: Sequence[str] = ()
) -> Any:
    """`dtune …`, in a folder that each rank has for itself; exit code.

    `links` are put there by rank and name; `own` is the last argument of each rank.
    """
    rank = os.environ["RANK"]
    place = Path(folder) / rank
    place.mkdir()
    os.chdir(place)
    for name, target in (links or {}).get(rank, {}).items():
        Path(name).symlink_to(target)
    try:
        with open("out", "w") as out, open("err", "w") as err, redirect_stdout(out), redirect_stderr(err):
            main([*arguments, *own[int(rank) : int(rank) + 1]])
    except SystemExit as end:
        return end.code
    return 0


def unlike(me: int) -> dict[str, list[torch.nn.Parameter]]:
    """Parameters that are others on the other ranks, though all bits together come to the same."""
    first = torch.tensor([1.0, 2.0, 3.0])
    bits = first.view(torch.int32)
    others = {
        "ulps": (bits + torch.tensor([1, -1, 0], dtype=torch.int32)).view(torch.float32),
        "more ulps": (bits + torch.tensor([1, -2, 1], dtype=torch.int32)).view(torch.float32),
        "order": first[[1, 0, 2]],
    }
    return {name: [torch.nn.Parameter((other if me else first).clone())] for name, other in others.items()}


def collectives() -> dict[str, Any]:
    """Everything in `parallel` once, on values that say whose they are."""
    with parallel.begun():
        me, many = parallel.rank(), parallel.ranks()
        count = 2 * many - 1  # the last rank has one row
        own = parallel.share(count)
        rows = {
            "wide": torch.arange(count * 6, dtype=torch.float64).view(count, 2, 3)[own],
            "flag": (torch.arange(count) % 2 == 0)[own],
            "narrow": torch.zeros(count, 4, 0)[own],
        }
        gathered = parallel.gather_rows(rows, parallel.counts(count))
        lonely = torch.full((1, 3), 7.5) if me == 1 else torch.zeros(0, 0)  # the others do not know its width
        parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
        parameters[0].grad = torch.full((2,), float(me))
        if me == 1:
            parameters[1].grad = torch.full((2,), 5.0)
        told = parallel.sum_gradients(parameters, torch.tensor([1.0, float(me)]))
        other = unlike(me)
        return {
            "shares": [[part.start, part.stop] for part in (parallel.share(5, of) for of in range(many))],
            "owners": parallel.owners(5).tolist(),
            "wide": gathered["wide"].tolist(),
            "flag": gathered["flag"].tolist(),
            "narrow": list(gathered["narrow"].shape),
            "lonely": parallel.gather_rows({"x": lonely}, [int(of == 1) for of in range(many)])["x"].tolist(),
            "grads": [None if p.grad is None else p.grad.tolist() for p in parameters],
            "told": told.tolist(),
            "largest": parallel.largest(torch.tensor([float(me), -float(me)])).tolist(),
            "bytes": parallel.bytes_from_first(bytes([me] * (3 - me % 3))).hex(),
            "empty": parallel.bytes_from_first(b"" if not me else b"x").hex(),
            "same": parallel.same_from_first(parameters),
            "unlike": {name: parallel.same_from_first(values) for name, values in other.items()},
            "made alike": [values[0].tolist() for values in other.values()],
            "traffic": dict(parallel.traffic),
        }


def silence(seconds: float, variables: dict[str, str]) -> Any:
    """The last rank does not answer."""
    os.environ.update(variables)
    with parallel.begun():
        if parallel.rank() == parallel.ranks() - 1:
            time.sleep(seconds)
        return parallel.total(torch.ones(1)).tolist()


def refused() -> Any:
    """The first rank cannot read what all need."""

    def read() -> Any:
        raise DataError("the first rank's file is damaged")

    with parallel.begun():
        return together.from_first(read)


if __name__ == "__main__":  # started by torchrun
    many = os.environ["WORLD_SIZE"]
    print(finetune(**json.loads(sys.argv[1])) and f"finished, ranks={many}")
