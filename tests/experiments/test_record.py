import os
import struct
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtune.errors import DataError, DtuneError
from dtune.experiments import record
from dtune.experiments.record import Record, read_columns, read_rows


def metrics(iteration: int) -> dict[str, float]:
    evaluation = {"eval/return": iteration / 3} if iteration % 2 else {}
    timing = {"time/seconds": iteration * 0.1} if iteration else {}
    return {"count/env_steps": 100 * iteration} | evaluation | timing


def fill(directory, iterations, *, after=None, **options) -> None:
    with Record(directory, after=after, tensorboard=False, **options) as rows:
        for iteration in iterations:
            rows.append(iteration, metrics(iteration))


def test_a_row_an_iteration(tmp_path):
    fill(tmp_path / "new" / "run", range(1, 4))
    text = (tmp_path / "new" / "run" / "metrics.csv").read_text()
    assert text == ("iteration,count/env_steps,eval/return\n1,100,0.3333333333333333\n2,200,\n3,300,1.0\n")
    assert (tmp_path / "new" / "run" / "timing.csv").read_text().startswith("iteration,time/seconds\n1,0.1\n")


def test_no_clock_in_the_metrics(tmp_path):
    for name, seconds in (("a", 1.0), ("b", 2.0)):
        with Record(tmp_path / name, tensorboard=False) as rows:
            rows.append(1, {"eval/return": 0.1, "time/seconds": seconds, "time/env_steps_per_second": 5.0})
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == (tmp_path / "b" / "metrics.csv").read_bytes()
    assert (tmp_path / "a" / "timing.csv").read_bytes() != (tmp_path / "b" / "timing.csv").read_bytes()


@settings(derandomize=True, deadline=None, database=None)
@given(value=st.floats() | st.integers())
def test_numbers_come_back_exactly(tmp_path_factory, value):
    directory = tmp_path_factory.mktemp("run")
    with Record(directory, tensorboard=False) as rows:
        rows.append(0, {"x": value})
    back = read_rows(directory / "metrics.csv")[0]["x"]
    assert type(back) is type(value)
    assert back != back if value != value else back == value
    if isinstance(value, float) and value == value:
        assert struct.pack("d", back) == struct.pack("d", value)


def test_a_missing_key_is_an_empty_cell(tmp_path):
    with Record(tmp_path, ["eval/return", "train/kl", "time/seconds"], tensorboard=False) as rows:
        rows.append(1, {"train/kl": 0.5})
        rows.append(2, {"train/kl": 0.25, "eval/return": 7.0, "time/seconds": 1.0})
    path = tmp_path / "metrics.csv"
    assert path.read_text() == "iteration,eval/return,train/kl\n1,,0.5\n2,7.0,0.25\n"
    assert read_rows(path) == [
        {"iteration": 1, "train/kl": 0.5},
        {"iteration": 2, "eval/return": 7.0, "train/kl": 0.25},
    ]
    columns = read_columns(path)
    assert columns["iteration"] == [1, 2]
    assert columns["eval/return"][0] != columns["eval/return"][0]
    assert columns["eval/return"][1] == 7.0
    assert (tmp_path / "timing.csv").read_text() == "iteration,time/seconds\n1,\n2,1.0\n"


def test_a_new_key_becomes_a_column_empty_in_the_rows_before(tmp_path):
    with Record(tmp_path, tensorboard=False) as rows:
        rows.append(0, {"b": 0.5})
        rows.append(1, {"a": 1.0, "time/seconds": 2.0})
        rows.append(2, {"b": 3.0, "a": 2.0})
    assert (tmp_path / "metrics.csv").read_text() == "iteration,b,a\n0,0.5,\n1,,1.0\n2,3.0,2.0\n"
    assert (tmp_path / "timing.csv").read_text() == "iteration,time/seconds\n0,\n1,2.0\n2,\n"


def test_given_columns_are_the_only_ones(tmp_path):
    with Record(tmp_path, ["a"], tensorboard=False) as rows:
        rows.append(1, {"a": 1.0})
        with pytest.raises(DtuneError, match=r"iteration 2 reports b, for which .*metrics\.csv has no column"):
            rows.append(2, {"a": 1.0, "b": 2.0})
        with pytest.raises(DtuneError, match=r"time/x.*timing\.csv"):
            rows.append(2, {"a": 1.0, "time/x": 2.0})


def test_rows_are_in_order(tmp_path):
    with Record(tmp_path, tensorboard=False) as rows:
        rows.append(5, {"a": 1.0})
        with pytest.raises(DtuneError, match="iteration 5 came after 5"):
            rows.append(5, {"a": 1.0})
    with (
        Record(tmp_path, after=5, tensorboard=False) as rows,
        pytest.raises(DtuneError, match="4 came after 5"),
    ):
        rows.append(4, {"a": 1.0})


def test_interrupted_anywhere_the_record_is_that_of_a_run_never_interrupted(tmp_path):
    fill(tmp_path / "whole", range(5))
    whole = {name: (tmp_path / "whole" / name).read_bytes() for name in ("metrics.csv", "timing.csv")}
    for length in range(0, len(whole["metrics.csv"]) + 1, 2):
        run = tmp_path / f"cut{length}"
        run.mkdir()
        (run / "metrics.csv").write_bytes(whole["metrics.csv"][:length])
        (run / "timing.csv").write_bytes(whole["timing.csv"][: length // 2])
        rows = min(len(read_rows(run / "metrics.csv")), len(read_rows(run / "timing.csv")))
        checkpoint = min(2, rows - 1)  # never ahead of the record
        fill(run, range(checkpoint + 1, 5), after=checkpoint if rows else None)
        for name, expected in whole.items():
            assert (run / name).read_bytes() == expected, length


def test_a_run_from_the_start_forgets_rows_without_a_checkpoint(tmp_path):
    fill(tmp_path, range(1, 4))
    with Record(tmp_path, tensorboard=False) as rows:
        rows.append(1, {"other": 1.0})
    assert (tmp_path / "metrics.csv").read_text() == "iteration,other\n1,1.0\n"
    assert (tmp_path / "timing.csv").read_text() == "iteration\n1\n"


def test_garbage_at_the_end_is_dropped(tmp_path):
    fill(tmp_path, range(1, 4))
    good = (tmp_path / "metrics.csv").read_bytes()
    for garbage in (b"\0" * 50, b"\xff\xfe\n4,1,2\n", b"4,1\n", b"x,1.0,2\n"):
        (tmp_path / "metrics.csv").write_bytes(good + garbage)
        Record(tmp_path, after=9, tensorboard=False)
        assert (tmp_path / "metrics.csv").read_bytes() == good


def test_a_kill_while_truncating_loses_no_row(tmp_path, monkeypatch):
    fill(tmp_path, range(1, 7))
    before = (tmp_path / "metrics.csv").read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, killed)
            with pytest.raises(KeyboardInterrupt):
                Record(tmp_path, after=3, tensorboard=False)
        assert (tmp_path / "metrics.csv").read_bytes() == before


def test_a_row_is_synced_before_append_returns(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(record.os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    rows = Record(tmp_path, tensorboard=False)
    rows.append(1, {"a": 1.0})
    assert (tmp_path / "metrics.csv").stat().st_size in synced


def test_a_line_being_written_is_not_read(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("iteration,a\n1,2.0\n2,3")
    assert read_rows(path) == [{"iteration": 1, "a": 2.0}]
    path.write_text("iteration,a")
    assert read_rows(path) == []
    assert read_columns(path) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "first column must be `iteration`"),
        ("iteration,a\n1,2,3\n", "line 2"),
        ("iteration,a\n1,2\n2,x\n", "line 3.*'x'"),
    ],
)
def test_another_table_is_refused(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / "t.csv")


def test_no_table_is_a_sentence(tmp_path):
    with pytest.raises(DataError, match=r"metrics\.csv of a run folder"):
        read_rows(tmp_path / "none.csv")


def events(directory) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(directory))
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in tags}


def test_tensorboard_never_doubles_a_curve(tmp_path):
    with Record(tmp_path) as rows:
        for iteration in range(1, 6):
            rows.append(iteration, {"eval/return": float(iteration), "time/seconds": 0.5})
    with Record(tmp_path, after=3) as rows:
        for iteration in (4, 5):
            rows.append(iteration, {"eval/return": -float(iteration), "time/seconds": 0.5})
    curves = events(tmp_path)
    assert curves["eval/return"] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, -4.0), (5, -5.0)]
    assert len(curves["time/seconds"]) == 5
    with Record(tmp_path) as rows:
        rows.append(1, {"eval/return": 9.0})
    assert events(tmp_path)["eval/return"] == [(1, 9.0)]


def test_tensorboard_doubles_no_curve_where_a_clock_went_back(tmp_path, monkeypatch):
    """TensorBoard reads files of events in the order of the times in their names."""
    with Record(tmp_path) as rows:
        for iteration in range(1, 6):
            rows.append(iteration, {"eval/return": float(iteration), "time/seconds": 0.5})
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    with Record(tmp_path, after=3) as rows:
        for iteration in (4, 5):
            rows.append(iteration, {"eval/return": -float(iteration), "time/seconds": 0.5})
    curves = events(tmp_path)
    assert curves["eval/return"] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, -4.0), (5, -5.0)]
    assert len(curves["time/seconds"]) == 5


@pytest.mark.parametrize("bad", ['2,"2.0', "2," + "9" * 200_000, ""])
def test_a_line_that_is_none_takes_no_other_with_it(tmp_path, bad):
    with Record(tmp_path, tensorboard=False) as rows:
        for iteration in (1, 2, 3):
            rows.append(iteration, {"a": float(iteration)})
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text().replace("2,2.0", bad))
    with pytest.raises(DataError, match=r"metrics\.csv, line 3"):
        read_rows(path)
    with Record(tmp_path, after=3, tensorboard=False):
        assert path.read_text() == "iteration,a\n1,1.0\n"


def test_a_number_without_end_is_no_iteration(tmp_path):
    fill(tmp_path, [1])
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("9" * 5000 + "\n")
    before = (tmp_path / "metrics.csv").read_text().splitlines()
    with Record(tmp_path, after=3, tensorboard=False):
        assert (tmp_path / "metrics.csv").read_text().splitlines() == before[:-1]


def test_tensorboard_is_imported_only_where_wanted(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    fill(tmp_path, [1])
    with Record(tmp_path) as rows, pytest.raises(ImportError):
        rows.append(1, {"a": 1.0})
    assert not list(tmp_path.glob("events*"))
