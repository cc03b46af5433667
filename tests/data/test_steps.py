"""The container: windows, padding, concatenation."""

import math
from dataclasses import fields

import pytest
import torch

from dtune.data.steps import Steps, concatenate, empty_steps

FIELDS = [field.name for field in fields(Steps)]


def numbered(batch, time, observation_dim=3, action_dim=2):
    """Steps whose every number tells row and time, 100·row + time + 1, its field and its column; every other masked."""
    place = 100.0 * torch.arange(batch)[:, None] + torch.arange(time) + 1

    def columns(count, offset):
        return place[..., None] + offset + 0.01 * torch.arange(count)

    return Steps(
        observations=columns(observation_dim, 0.1),
        raw_actions=columns(action_dim, 0.2),
        actions=columns(action_dim, 0.3),
        rewards=place + 0.4,
        returns_to_go=place + 0.5,
        log_probs=place + 0.6,
        timesteps=place.long(),
        mask=place.long() % 2 == 1,
    )


def assert_same(ours, theirs):
    for name in FIELDS:
        assert getattr(ours, name).dtype == getattr(theirs, name).dtype, name
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def at(steps, row, time):
    """One step as a row of one."""
    return steps.map(lambda x: x[row : row + 1, time : time + 1])


def test_map_reaches_every_tensor_and_leaves_the_original_alone():
    steps = numbered(2, 3)
    doubled = steps.map(lambda x: x + x)
    assert_same(steps, numbered(2, 3))
    for name in FIELDS:
        assert torch.equal(getattr(doubled, name), getattr(steps, name) + getattr(steps, name))


@pytest.mark.parametrize(
    ("bounds", "times"), [((2,), [2, 3, 4]), ((1, 3), [1, 2]), ((0, 0), []), ((-2,), [3, 4]), ((0, -4), [0])]
)
def test_slice_time_cuts_time_and_not_rows(bounds, times):
    steps = numbered(2, 5)
    cut = steps.slice_time(*bounds)
    assert cut.mask.shape == (2, len(times))
    assert_same(cut, steps.map(lambda x: x[:, times]))


@pytest.mark.parametrize("length", [1, 2, 4, 5])
def test_windows_are_all_runs_of_a_length_row_by_row(length):
    steps = numbered(3, 5)
    windows = steps.windows(length)
    runs = [steps.map(lambda x: x[row : row + 1, t : t + length]) for row in range(3) for t in range(6 - length)]  # noqa: B023
    assert_same(windows, concatenate(runs, 0))
    assert windows.observations.shape == (3 * (6 - length), length, 3)


def test_windows_of_a_history_and_its_steps_end_on_those_steps_in_their_order():
    """What the update relies on: with c - 1 steps before, one window a step, which is its last."""
    context, history, own = 3, numbered(2, 2), numbered(2, 4)
    windows = concatenate([history, own], 1).windows(context)
    assert_same(windows.map(lambda x: x[:, -1].unflatten(0, (2, 4))), own)


def test_windows_do_not_go_beyond_the_row():
    with pytest.raises(RuntimeError):
        numbered(2, 3).windows(4)


def test_gather_picks_steps_of_rows_in_the_order_asked_for():
    steps = numbered(3, 5)
    picked = steps.gather(torch.tensor([2, 0, 2]), torch.tensor([[4, 0], [1, 2], [3, 3]]))
    expected = [(2, 4), (2, 0), (0, 1), (0, 2), (2, 3), (2, 3)]
    rows = [concatenate([at(steps, *a), at(steps, *b)], 1) for a, b in zip(expected[::2], expected[1::2])]
    assert_same(picked, concatenate(rows, 0))


def test_gather_pads_with_zeros_and_mask_false_where_the_index_is_negative():
    steps = numbered(2, 5)
    assert steps.mask[:, 0].all()  # what stands at 0 must not shine through
    picked = steps.gather(torch.tensor([1, 0]), torch.tensor([[-2, -1, 0], [-1, 0, 1]]))
    assert_same(picked.slice_time(0, 1), empty_steps(2, 1, 3, 2))
    assert_same(picked.map(lambda x: x[:1, :2]), empty_steps(1, 2, 3, 2))
    assert_same(picked.map(lambda x: x[:1, 2:]), at(steps, 1, 0))
    assert_same(picked.map(lambda x: x[1:, 1:]), steps.map(lambda x: x[:1, :2]))


def test_padding_is_zero_also_beside_broken_numbers():
    steps = numbered(1, 2)
    steps.rewards[:] = math.nan
    steps.observations[:] = math.inf
    padding = steps.gather(torch.tensor([0]), torch.tensor([[-1, -7]]))
    assert_same(padding, empty_steps(1, 2, 3, 2))


def test_gather_of_no_time_is_an_empty_history():
    picked = numbered(2, 5).gather(torch.tensor([1, 1, 0]), torch.zeros(3, 0, dtype=torch.long))
    assert_same(picked, empty_steps(3, 0, 3, 2))


def test_empty_steps_are_zeros_masked_and_share_no_memory():
    steps = empty_steps(4, 3, 5, 2)
    shapes = {name: tuple(getattr(steps, name).shape) for name in FIELDS}
    flat = dict.fromkeys(("rewards", "returns_to_go", "log_probs", "timesteps", "mask"), (4, 3))
    assert shapes == flat | {"observations": (4, 3, 5), "raw_actions": (4, 3, 2), "actions": (4, 3, 2)}
    dtypes = {name: getattr(steps, name).dtype for name in FIELDS}
    assert dtypes == dict.fromkeys(FIELDS, torch.float32) | {"timesteps": torch.int64, "mask": torch.bool}
    for name in FIELDS:
        assert not getattr(steps, name).any()
        getattr(steps, name).fill_(1)
        filled = [other for other in FIELDS if getattr(steps, other).any()]
        assert filled == [name]
        getattr(steps, name).fill_(0)


def test_concatenate_joins_rows_or_time():
    steps = numbered(3, 5)
    top, bottom = steps.map(lambda x: x[:1]), steps.map(lambda x: x[1:])
    assert_same(concatenate([top, bottom], 0), steps)
    assert_same(concatenate([steps.slice_time(0, 2), steps.slice_time(2, 3), steps.slice_time(3)], 1), steps)
    assert_same(concatenate([steps.slice_time(0, 0), steps], 1), steps)
