import pytest
import torch

from dtune.data.buffers import Fifo
from dtune.data.steps import Steps, empty_steps


def numbers(*values: float) -> dict[str, torch.Tensor]:
    x = torch.tensor(values, dtype=torch.float32)
    return {"x": x, "y": torch.stack([x, 10 * x], dim=-1)}


def test_rows_are_oldest_first():
    fifo = Fifo(5)
    fifo.extend(numbers(1, 2))
    fifo.extend(numbers(3))
    assert fifo.rows["x"].tolist() == [1, 2, 3]
    assert fifo.rows["y"].tolist() == [[1, 10], [2, 20], [3, 30]]
    assert len(fifo) == 3


def test_the_oldest_rows_leave_first():
    fifo = Fifo(3)
    fifo.extend(numbers(1, 2))
    fifo.extend(numbers(3, 4))
    assert fifo.rows["x"].tolist() == [2, 3, 4]
    fifo.extend(numbers(5, 6, 7))
    assert fifo.rows["x"].tolist() == [5, 6, 7]


def test_more_rows_than_capacity_keep_the_newest():
    fifo = Fifo(2)
    fifo.extend(numbers(1))
    fifo.extend(numbers(2, 3, 4, 5))
    assert fifo.rows["x"].tolist() == [4, 5]
    assert len(fifo) == 2


def test_memory_stays_that_of_the_rows_held():
    fifo = Fifo(4)
    for _ in range(3):
        fifo.extend({"x": torch.zeros(100, 7)})
    assert fifo.rows["x"].untyped_storage().nbytes() == 4 * 7 * 4


def test_an_empty_buffer_has_length_zero_and_no_rows():
    fifo = Fifo(2)
    assert len(fifo) == 0
    assert fifo.rows == {}
    fifo.extend(numbers())
    assert len(fifo) == 0


def test_extending_by_no_rows_changes_nothing():
    fifo = Fifo(2)
    fifo.extend(numbers(1, 2))
    fifo.extend(numbers())
    assert fifo.rows["x"].tolist() == [1, 2]


def test_take_gives_rows_in_the_order_asked_for():
    fifo = Fifo(3)
    fifo.extend(numbers(1, 2, 3, 4))
    taken = fifo.take(torch.tensor([2, 0, 0]))
    assert taken["x"].tolist() == [4, 2, 2]
    assert taken["y"].tolist() == [[4, 40], [2, 20], [2, 20]]


def test_stored_rows_are_the_buffers_own():
    fifo = Fifo(3)
    given = numbers(1, 2)
    fifo.extend(given)
    given["x"].zero_()
    assert fifo.rows["x"].tolist() == [1, 2]
    held = fifo.rows["x"]
    fifo.extend(numbers(3, 4))
    assert held.tolist() == [1, 2]


def test_loaded_rows_are_the_buffers_own():
    fifo, given = Fifo(3), numbers(1, 2)
    fifo.load_state_dict({"capacity": 3, "rows": given})
    given["x"].zero_()
    assert fifo.rows["x"].tolist() == [1, 2]


def test_steps_go_in_and_come_out():
    fifo = Fifo(4)
    fifo.extend(vars(empty_steps(batch=3, time=5, observation_dim=2, action_dim=1)))
    assert Steps(**fifo.take(torch.tensor([1, 2]))).observations.shape == (2, 5, 2)


@pytest.mark.parametrize(
    "rows",
    [
        {"x": torch.zeros(1)},
        {**numbers(1), "z": torch.zeros(1)},
        {"x": torch.zeros(1), "y": torch.zeros(1, 3)},
        {"x": torch.zeros(1, dtype=torch.long), "y": torch.zeros(1, 2)},
        {"x": torch.zeros(2), "y": torch.zeros(1, 2)},
        {"x": torch.tensor(0.0), "y": torch.zeros(1, 2)},
        {},
    ],
    ids=["name missing", "name added", "row shape", "dtype", "row counts", "scalar", "nothing"],
)
def test_rows_of_another_kind_are_refused_and_nothing_changes(rows: dict[str, torch.Tensor]):
    fifo = Fifo(3)
    fifo.extend(numbers(1, 2))
    with pytest.raises(ValueError, match="Fifo"):
        fifo.extend(rows)
    assert fifo.rows["x"].tolist() == [1, 2]


def test_a_capacity_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Fifo(0)


@pytest.mark.parametrize("values", [(), (1, 2), (1, 2, 3, 4)], ids=["empty", "part full", "overfull"])
def test_a_loaded_state_continues_as_if_never_interrupted(values: tuple[float, ...]):
    fifo, loaded = Fifo(3), Fifo(3)
    if values:
        fifo.extend(numbers(*values))
    state = fifo.state_dict()
    loaded.extend(numbers(8, 9))
    loaded.load_state_dict(state)
    for buffer in (fifo, loaded):
        buffer.extend(numbers(5, 6))
    assert loaded.rows.keys() == fifo.rows.keys()
    assert all(torch.equal(loaded.rows[name], fifo.rows[name]) for name in fifo.rows)
    assert loaded.state_dict()["capacity"] == 3


def test_a_saved_state_is_not_changed_by_what_follows():
    fifo = Fifo(3)
    fifo.extend(numbers(1, 2))
    state = fifo.state_dict()
    fifo.extend(numbers(3, 4))
    assert state["rows"]["x"].tolist() == [1, 2]


def test_a_state_of_another_capacity_is_refused():
    with pytest.raises(ValueError, match="capacity"):
        Fifo(2).load_state_dict(Fifo(3).state_dict())
