import io

import pytest

from dtune.experiments.live import Live

EVERYTHING = {
    "time/env_steps_per_second": 12345.6,
    "eval/return": 1234.56,
    "eval/normalized_score": 78.9,
    "train/ratio_mean": 1.0012,
    "train/ratio_max": 1.25,
    "train/clip_fraction": 0.125,
    "train/kl": 0.00321,
    "train/entropy": -3.5,
    "train/entropy_target": -4.0,
    "rollout/dropped": 0.4,
}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")


def plain(updates, *, iterations=10, start=0, seconds=10.0) -> list[str]:
    stream, clock = io.StringIO(), Clock()
    with Live("grpo/hopper", iterations, start, stream=stream, clock=clock) as live:
        for iteration, metrics in updates:
            clock.now += seconds
            live.update(iteration, metrics)
    return stream.getvalue().splitlines()


def test_a_line_says_everything():
    (line,) = plain([(4, EVERYTHING)], seconds=40.0)
    assert line == (
        "grpo/hopper 4/10  ETA 0:01:00  env steps/s 12,346  return 1234.6  score 78.9  ratio mean 1.001  "
        "ratio max 1.250  clipped 12.5%  KL 0.00321  entropy -3.5  entropy target -4  dropped 40.0%"
    )


def test_what_is_missing_is_left_out():
    (line,) = plain([(10, {"train/kl": 0.5, "rollout/return": 3.0})])
    assert line == "grpo/hopper 10/10  return 3.0  KL 0.5"
    assert plain([(10, {})]) == ["grpo/hopper 10/10"]


def test_an_evaluation_stays_until_the_next():
    lines = plain([(1, {"eval/return": 5.0, "rollout/return": 1.0}), (2, {"rollout/return": 2.0})])
    assert "return 5.0" in lines[1]


def test_the_rest_is_estimated_from_this_process_alone():
    (line,) = plain([(101, {})], iterations=200, start=100, seconds=2.0)
    assert "ETA 0:03:18" in line  # 99 left at 2 s


def test_plain_lines_are_throttled_and_the_last_is_always_there():
    lines = plain([(i, {}) for i in range(1, 31)], iterations=30, seconds=1.0)
    assert [line.split()[1] for line in lines] == [
        "1/30",
        "6/30",
        "11/30",
        "16/30",
        "21/30",
        "26/30",
        "30/30",
    ]
    lines = plain([(i, {}) for i in range(1, 4)], iterations=30, seconds=1.0)  # stopped early
    assert [line.split()[1] for line in lines] == ["1/30", "3/30"]


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_no_control_characters_outside_a_terminal(monkeypatch, variable):
    monkeypatch.setenv(variable, "1")  # as some build servers set
    lines = plain([(i, EVERYTHING) for i in range(1, 11)])
    assert all(line.isprintable() for line in lines)


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Live("x", 2, stream=stream) as live:
        live.update(2, {"train/kl": 1.0})
    assert stream.getvalue() == "x 2/2  KL 1\n"


def test_a_terminal_gets_a_panel():
    stream = Terminal()
    with Live("grpo/hopper", 10, stream=stream) as live:
        live.update(4, EVERYTHING)
        live.say("a [bold] warning")
    text = stream.getvalue()
    assert "\x1b[" in text
    for part in (
        "grpo/hopper",
        "4/10",
        "12,346",
        "1234.6",
        "78.9",
        "1.250",
        "12.5%",
        "40.0%",
        "a [bold] warning",
    ):
        assert part in text


def test_a_panel_ends_when_training_fails():
    stream = Terminal()
    with pytest.raises(ZeroDivisionError), Live("x", 10, stream=stream):
        raise ZeroDivisionError
    assert stream.getvalue().endswith("\x1b[?25h")  # the cursor is back


def test_sentences_between_plain_lines():
    stream = io.StringIO()
    with Live("x", 1, stream=stream) as live:
        live.say("a [bold] warning")
        live.update(1, {})
    assert stream.getvalue() == "a [bold] warning\nx 1/1\n"


def test_standard_output_is_the_default(capsys):
    with Live("x", 1) as live:
        live.update(1, {"train/kl": 1.0})
    assert capsys.readouterr().out == "x 1/1  KL 1\n"


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_quiet_is_quiet(stream):
    with Live("x", 3, quiet=True, stream=stream) as live:
        live.say("a warning")
        live.update(1, EVERYTHING)
        live.update(2, EVERYTHING)
    assert stream.getvalue() == ""
