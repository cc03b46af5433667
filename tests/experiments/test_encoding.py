import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from states import same

from dtune.experiments.encoding import decode, encode

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
keys = st.text(max_size=3) | st.integers(-3, 3)


@settings(derandomize=True, deadline=None, database=None)
@given(
    st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(keys, inner, max_size=3)
        ),
        max_leaves=12,
    )
)
def test_any_structure_survives_json(state):
    document, tensors = encode(state)
    assert same(decode(json.loads(json.dumps(document, allow_nan=False)), tensors), state)


@pytest.mark.parametrize("value", [{1, 2}, 1j, b"bytes", object(), torch.float32, {1.5: 1}, {True: 1}])
def test_what_cannot_be_stored_is_refused_with_its_path(value):
    with pytest.raises(TypeError, match=r"here/0"):
        encode({"here": [value]})


@pytest.mark.parametrize("state", [{"$tensor": "x"}, {"$tuple": [1]}, {"$items": {}, "a": 1}, {"": {"$": None}}])
def test_a_key_that_looks_like_a_tag_is_a_key(state):
    assert same(decode(*encode(state)), state)


def test_two_tensors_never_share_a_name():
    with pytest.raises(TypeError, match="'a/0'"):
        encode({"a": {0: torch.ones(1), "0": torch.zeros(1)}})
    one, two = torch.zeros(1), torch.ones(1)
    state = {"a/b": one, "a": {"b": two}, "a~1b": two}
    assert same(decode(*encode(state)), state)


def test_changing_a_tensor_after_encoding_changes_nothing():
    tensor = torch.zeros(3)
    _, tensors = encode({"x": tensor})
    tensor += 1
    assert tensors["x"].equal(torch.zeros(3))
