"""What an environment's Python side remembers, as text and as numbers: plain attributes, found by walking it.

Nothing read back can run: numbers, text, arrays, containers of them and states of random generators.
"""

import json
import logging
import random
from base64 import b64decode, b64encode
from collections import deque
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec
from jaxtyping import Float64

from dtune.errors import SimulatorError

Frozen = Any
"""What `json.dumps` takes, and gives back as it was."""
Leaves = dict[str, dict[str, Frozen]]
"""By the path of an object, its attributes by name."""

_GONE = {"gone": True}  # an attribute that is not there; no frozen value is written like it
_MOST_OBJECTS = 10_000
_CLOSED = (
    BuiltinFunctionType, EnvSpec, FunctionType, MethodType, ModuleType, logging.Logger, logging.Handler, partial, type,
)  # fmt: skip
_BYTES = 6  # of text in one float64, which holds whole numbers below 2^53
_WEIGHTS = 256.0 ** np.arange(_BYTES)


class NotPlainError(TypeError):
    """A value that numbers and text do not say."""


def freeze(value: Any) -> Frozen:
    """A plain value in JSON's terms, exact to the last bit and with its type.

    Raises:
        NotPlainError: if it is, or holds, something else.
    """
    kind = type(value)
    if kind in (bool, int, float, str, type(None)):
        return value
    if kind is list:
        return [freeze(item) for item in value]
    if kind in (tuple, set, frozenset):
        return {kind.__name__: [freeze(item) for item in value]}
    if kind is dict:
        return {"dict": [[freeze(key), freeze(item)] for key, item in value.items()]}
    if kind is deque:
        return {"deque": [[freeze(item) for item in value], value.maxlen]}
    if (kind is np.ndarray or isinstance(value, np.generic)) and value.dtype.kind in "biufcSU":
        name = "array" if kind is np.ndarray else "scalar"
        return {name: [value.dtype.str, list(value.shape), b64encode(value.tobytes()).decode()]}
    if isinstance(value, np.random.Generator):
        return {"generator": freeze(value.bit_generator.state)}
    if isinstance(value, np.random.RandomState):
        return {"random_state": freeze(value.get_state(legacy=False))}
    if kind is random.Random:
        return {"random": freeze(value.getstate())}
    raise NotPlainError(kind.__qualname__)


def thaw(frozen: Frozen, current: Any = None) -> Any:
    """The inverse of `freeze`. Generators that are in `current` already are set, so that they stay shared."""
    if isinstance(frozen, list):
        olds = current if type(current) is list and len(current) == len(frozen) else [None] * len(frozen)
        return [thaw(item, old) for item, old in zip(frozen, olds)]
    if not isinstance(frozen, dict):
        return frozen
    ((kind, content),) = frozen.items()
    if kind in ("tuple", "set", "frozenset"):
        return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](map(thaw, content))
    if kind == "dict":
        old = current if type(current) is dict else {}
        pairs = ((thaw(key), item) for key, item in content)
        return {key: thaw(item, old.get(key)) for key, item in pairs}
    if kind == "deque":
        return deque(map(thaw, content[0]), content[1])
    if kind in ("array", "scalar"):
        dtype, shape, data = content
        array = np.frombuffer(b64decode(data), dtype).reshape(shape).copy()
        return array if kind == "array" else array[()]
    return _thaw_generator(kind, thaw(content), current)


def _thaw_generator(kind: str, state: Any, current: Any) -> Any:
    if kind == "random":
        python = current if type(current) is random.Random else random.Random()
        python.setstate(state)
        return python
    if kind == "random_state":
        legacy = current if isinstance(current, np.random.RandomState) else np.random.RandomState()
        legacy.set_state(state)
        return legacy
    name = state["bit_generator"]
    known = {kind.__name__: kind for kind in np.random.BitGenerator.__subclasses__()}
    same = isinstance(current, np.random.Generator) and current.bit_generator.state["bit_generator"] == name
    generator = current if same else np.random.Generator(known[name]())
    generator.bit_generator.state = state
    return generator


def to_text(value: Any) -> str:
    """A plain value as JSON.

    Raises:
        NotPlainError: if it is something else.
    """
    return json.dumps(freeze(value), separators=(",", ":"))


def from_text(text: str) -> Any:
    """The inverse of `to_text`."""
    return thaw(json.loads(text))


def pack(text: str, width: int) -> Float64[np.ndarray, "width"]:
    """Text as `width` whole numbers below 2^48, the first its length in bytes.

    Raises:
        SimulatorError: if it is too long.
    """
    data = text.encode()
    if len(data) > _BYTES * (width - 1):
        raise SimulatorError(
            f"the environment remembers {len(data)} bytes, more than the {_BYTES * (width - 1)} that a snapshot has "
            "room for, twice of what was seen when it was made: give get_state and set_state that keep to one size."
        )
    padded = np.frombuffer(data.ljust(_BYTES * (width - 1), b"\0"), np.uint8)
    return np.concatenate(([len(data)], padded.reshape(-1, _BYTES) @ _WEIGHTS))


def unpack(row: Float64[np.ndarray, "width"]) -> str:
    """The inverse of `pack`."""
    data = np.ascontiguousarray(row[1:].astype("<i8")).view(np.uint8).reshape(-1, 8)[:, :_BYTES]
    return data.tobytes()[: int(row[0])].decode()


def width_for(text: str) -> int:
    """Numbers to keep `text` in, and as much again."""
    return 2 * -(-len(text.encode()) // _BYTES) + 32


class Attributes:
    """The attributes of an object and of all that it holds, compared with how they were when this was made.

    Values that are no plain ones (functions, windows, worlds of a physics engine) are left as they are.

    Args:
        root: an environment, with its wrappers, just after a reset with a fixed seed.
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self._rest = {path: leaves for path, (_, leaves) in self._walk().items()}
        self._texts = {path: _dump(leaves) for path, leaves in self._rest.items()}

    def save(self) -> str:
        """What differs from the rest, as JSON."""
        changes: Leaves = {}
        for path, (_, leaves) in self._walk().items():
            rest, texts = self._rest.get(path, {}), self._texts.get(path, {})
            changed = {key: value for key, value in leaves.items() if json.dumps(value) != texts.get(key)}
            changed |= dict.fromkeys(rest.keys() - leaves.keys(), _GONE)
            if changed:
                changes[path] = changed
        return json.dumps(changes, separators=(",", ":"))

    def load(self, text: str) -> None:
        """Makes all attributes what they were at `save`, also if that was another copy's.

        Raises:
            SimulatorError: if something appeared or went since that numbers do not bring back.
        """
        changes: Leaves = json.loads(text)
        nodes = self._walk()
        for path in changes.keys() - nodes.keys():
            raise _lost(path)
        for path, (holder, leaves) in nodes.items():
            wanted = self._rest.get(path, {}) | changes.get(path, {})
            if path not in self._rest and path not in changes:
                continue  # an object the snapshot does not know: whoever holds it will let it go
            for key in [key for key in leaves if wanted.get(key, _GONE) == _GONE]:
                if isinstance(holder, list):
                    raise _lost(f"{path}.{key}")
                holder.pop(key)
            for key, value in wanted.items():
                if value != _GONE and json.dumps(value) != json.dumps(leaves.get(key, _GONE)):
                    _write(holder, path, key, value)

    def named(self) -> dict[str, str]:
        """Every plain attribute, as text, under a name to tell a user."""
        found = {}
        for path, (_, leaves) in self._walk().items():
            for key, value in leaves.items():
                found[_title(path, key, value)] = json.dumps(value)
        return found

    def _walk(self) -> dict[str, tuple[Any, dict[str, Frozen]]]:
        """By path, each object's attributes: where they are written to, and what they hold."""
        nodes: dict[str, tuple[Any, dict[str, Frozen]]] = {}
        seen, waiting = {id(self._root)}, [("", self._root)]
        while waiting and len(nodes) < _MOST_OBJECTS:
            path, value = waiting.pop()
            holder = _holder(value)
            leaves: dict[str, Frozen] = {}
            items = enumerate(holder) if isinstance(holder, list) else holder.items()
            for key, held in items:
                try:
                    leaves[str(key)] = freeze(held)
                except NotPlainError:
                    leaves[str(key)] = {"object": type(held).__qualname__}
                    if id(held) not in seen and _holder(held) is not None:
                        seen.add(id(held))
                        waiting.append((f"{path}.{key}" if path else str(key), held))
            nodes[path] = (holder, leaves)
        return nodes


def _holder(value: Any) -> Any:
    """The list or dict that keeps what an object holds; None where it must not be looked into."""
    if type(value) is list:
        return value
    if type(value) is tuple:  # never written to, but what is in it may be
        return {str(index): held for index, held in enumerate(value)}
    if type(value) is dict:
        return value if all(type(key) is str for key in value) else None
    found = getattr(value, "__dict__", None)
    return found if type(found) is dict and not isinstance(value, _CLOSED) else None


def _write(holder: Any, path: str, key: str, value: Frozen) -> None:
    if isinstance(value, dict) and "object" in value:
        raise _lost(f"{path}.{key}")
    if isinstance(holder, list):
        holder[int(key)] = thaw(value, holder[int(key)])
    else:
        holder[key] = thaw(value, holder.get(key))


def _lost(path: str) -> SimulatorError:
    return SimulatorError(f"the object in {short(path)} comes and goes, and numbers cannot bring it back.")


def _dump(leaves: dict[str, Frozen]) -> dict[str, str]:
    return {key: json.dumps(value) for key, value in leaves.items()}


def short(path: str) -> str:
    """A path as a user would say it: without wrappers and leading underscores."""
    names = [name.strip("_") for name in path.strip(".").split(".")]
    while len(names) > 1 and names[0] == "env":
        names.pop(0)
    return ".".join(names)


def _title(path: str, key: str, value: Frozen) -> str:
    name = short(f"{path}.{key}")
    if isinstance(value, dict) and value.keys() & {"generator", "random_state", "random"}:
        return f"random generator {name}"
    if key == "t" or any(word in key for word in ("elapsed", "clock", "time", "step", "count")):
        return f"clock {name}"
    return f"attribute {name}"
