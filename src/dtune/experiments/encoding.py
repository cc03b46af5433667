"""A nested state as JSON and named tensors, and back, to the last bit.

JSON cannot tell a tuple from a list, has no infinities and only text for keys. Four tags carry the rest, each
a dict of one key; a user's own dict whose keys begin with `$` is stored as `$items`, so nothing is ambiguous:

    {"$tensor": "algorithm/policy/head.weight"}   a tensor, stored elsewhere under that name
    {"$float": "-inf"}                            nan, inf, -inf
    {"$tuple": [0.9, 0.999]}
    {"$items": [[0, ...], [1, ...]]}              a dict with a key that is not text, or begins with $
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def encode(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """Splits `state` into JSON and tensors.

    Args:
        state: dicts (keys: text or int), lists and tuples of tensors, int, float, bool, str and None.

    Returns:
        A value that `json` takes, and the tensors by path: keys joined by `/`, with `~` in a key written
        `~0` and `/` written `~1`. Each tensor is a copy of its own on the CPU, whatever memory it shared.

    Raises:
        TypeError: for anything else in `state`, naming its path.
    """
    tensors: dict[str, Tensor] = {}
    return _encode(state, (), tensors), tensors


def decode(document: Any, tensors: dict[str, Tensor]) -> Any:
    """The state that `encode` split.

    Raises:
        ValueError: for an unknown tag, a malformed one, or a tensor that is not there.
    """
    if isinstance(document, list):
        return [decode(value, tensors) for value in document]
    if not isinstance(document, dict):
        return document
    tags = [key for key in document if key.startswith("$")]
    if not tags:
        return {key: decode(value, tensors) for key, value in document.items()}
    if len(document) != 1 or tags[0] not in _DECODERS:
        raise ValueError(f"unknown tag {tags[0]!r}")
    return _DECODERS[tags[0]](document[tags[0]], tensors)


def _encode(value: Any, path: tuple[str, ...], tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, Tensor):
        return {"$tensor": _store(value, path, tensors)}
    if isinstance(value, list | tuple):
        items = [_encode(item, (*path, str(i)), tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, dict):
        return _encode_dict(value, path, tensors)
    raise TypeError(
        f"a checkpoint cannot hold {type(value).__name__} (at {'/'.join(path) or 'its root'}): "
        "turn it into tensors, numbers, text, lists and dicts in state_dict()."
    )


def _encode_dict(value: dict[Any, Any], path: tuple[str, ...], tensors: dict[str, Tensor]) -> Any:
    for key in value:
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise TypeError(f"a checkpoint's keys are text or int, not {key!r} (at {'/'.join(path)}).")
    encoded = [(key, _encode(item, (*path, str(key)), tensors)) for key, item in value.items()]
    if all(isinstance(key, str) and not key.startswith("$") for key in value):
        return dict(encoded)
    return {"$items": [[key, item] for key, item in encoded]}


def _store(tensor: Tensor, path: tuple[str, ...], tensors: dict[str, Tensor]) -> str:
    name = "/".join(part.replace("~", "~0").replace("/", "~1") for part in path)
    if name in tensors or name in ("", "__metadata__"):  # the last is safetensors' own
        raise TypeError(f"a checkpoint cannot name a tensor {name!r}: rename its key in state_dict().")
    tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return name


def _tensor(name: Any, tensors: dict[str, Tensor]) -> Tensor:
    if not isinstance(name, str) or name not in tensors:
        raise ValueError(f"tensor {name!r} is not there")
    return tensors[name]


def _float(text: Any, _tensors: dict[str, Tensor]) -> float:
    if text not in ("nan", "inf", "-inf"):
        raise ValueError(f"{text!r} is no special float")
    return float(text)


def _tuple(items: Any, tensors: dict[str, Tensor]) -> tuple[Any, ...]:
    if not isinstance(items, list):
        raise ValueError("a $tuple holds a list")
    return tuple(decode(item, tensors) for item in items)


def _items(pairs: Any, tensors: dict[str, Tensor]) -> dict[Any, Any]:
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise ValueError("$items holds pairs")
    if not all(isinstance(key, str | int) for key, _ in pairs):
        raise ValueError("a key is text or int")
    return {key: decode(item, tensors) for key, item in pairs}


_DECODERS: dict[str, Callable[[Any, dict[str, Tensor]], Any]] = {
    "$tensor": _tensor,
    "$float": _float,
    "$tuple": _tuple,
    "$items": _items,
}
