"""The report: what stands in its tables, in every format."""

import csv
import io
import time

import numpy as np
import pytest
from invented import TABLE_1, curve, whole_table
from rich.console import Console

from dtune.experiments.reports import collect
from dtune.experiments.reports.formats import Grid, Line, Word, latex, markdown, page, terminal
from dtune.experiments.reports.report import report, scores_csv
from dtune.experiments.reports.scores import score_table

RUNS = [
    curve("hopper-random-v2", method, seed, scores=[0.0, score + seed, score + seed, score + seed])
    for method, score in (("ppo", 100.0), ("grpo", 95.0), ("dt", 1.0))
    for seed in (0, 1, 2)
]
METHODS = ["dt", "ppo", "grpo"]


@pytest.fixture(scope="module")
def grids() -> list[Grid]:
    return report(RUNS, METHODS)


def test_the_papers_numbers_stand_below_ours(grids):
    words = [[word.text for word in line.words] for line in grids[0].lines]
    assert words == [
        ["Ho-R-v2", "final", "2.00 ± 1.00", "101.00 ± 1.00", "96.00 ± 1.00"],
        ["", "best", "2.00", "101.00", "96.00"],
        ["", "paper", "2.13", "106.97 ± 0.96", "99.20 ± 3.80"],
    ]
    assert [word.mark for word in grids[0].lines[0].words] == ["", "", "", "best", "near"]
    assert grids[0].lines[2].dim
    assert grids[0].lines[2].last


def test_the_mean_of_the_best_is_marked_where_it_is_asked_for():
    first = report(RUNS, METHODS, score="best")[0].lines
    assert [line.words[1].text for line in first] == ["best", "final", "paper"]


def test_intervals_and_costs_follow(grids):
    assert grids[1].lines[1].words[0].text == "PPO-DT"
    assert "101.0 [" in grids[1].lines[1].words[1].text
    assert list(grids[2].header[:6]) == ["", "runs", "iterations", "trajectories", "sub-trajectories", "lookahead"]
    cost = {line.words[0].text: [word.text for word in line.words[1:]] for line in grids[2].lines}
    assert cost["GRPO-DT"][:5] == ["3", "30", "1,200,000", "600,000", "5,400,000"]
    assert "not an iteration of another" in grids[2].notes[0]


def test_the_same_records_give_the_same_report(grids):
    assert report(RUNS, METHODS) == grids


def test_which_data_were_used_is_said():
    known = [type(run)(**{**vars(run), "data": "hopper.standin.hdf5"}) for run in RUNS]
    assert "Data: hopper-random-v2: hopper.standin.hdf5." in report(known, METHODS)[0].notes
    assert not any(note.startswith("Data") for note in report(RUNS, METHODS)[0].notes)


SAMPLE = Grid(
    title="A & B",
    header=["", "x_1", "<y>"],
    lines=[
        Line(words=[Word("a|b"), Word("1 ± 2", "best"), Word("3", "near")], last=True),
        Line(words=[Word("c"), Word("–"), Word("")], dim=True),
    ],
    notes=["10 % of it"],
)


def test_markdown():
    assert markdown(SAMPLE).splitlines() == [
        "### A & B",
        "",
        "|  | x_1 | <y> |",
        "| --- | ---: | ---: |",
        "| a\\|b | **1 ± 2** | <u>3</u> |",
        "| c | – |  |",
        "",
        "10 % of it",
    ]


def test_latex():
    lines = latex(SAMPLE).splitlines()
    assert r"\caption{A \& B. 10 \% of it}" in lines
    assert r" & x\_1 & <y> \\" in lines
    assert r"a|b & \textbf{1 $\pm$ 2} & \underline{3} \\" in lines
    assert r"\textcolor{gray}{c} & \textcolor{gray}{--} &  \\" in lines
    assert lines.count(r"\midrule") == 2


def test_html_is_escaped():
    text = page(SAMPLE)
    assert "<h3>A &amp; B</h3>" in text
    assert "&lt;y&gt;" in text
    assert '<td class="number"><b>1 ± 2</b></td>' in text


def test_a_narrow_terminal_loses_nothing():
    console = Console(width=40, record=True, file=io.StringIO())
    console.print(terminal(report(RUNS, METHODS)[0]))
    said = console.export_text()
    assert "…" not in said
    assert "106.97" in said


def test_the_csv_has_full_precision():
    rows = list(csv.DictReader(io.StringIO(scores_csv(score_table(RUNS, METHODS), METHODS, "small"))))
    found = {row["method"]: row for row in rows}
    assert found["ppo"]["folder"] == "small"
    assert float(found["ppo"]["final"]) == np.mean([100.0, 101.0, 102.0])
    assert (found["ppo"]["paper"], found["ppo"]["paper_std"], found["dt"]["paper_std"]) == ("106.97", "0.96", "")
    assert found["grpo"]["mark"] == "near"


def test_three_hundred_records_take_seconds(tmp_path):
    assert whole_table(tmp_path, evaluations=21) == 306
    began = time.process_time()
    (curves,) = collect.load(tmp_path).values()
    assert len(report(curves, TABLE_1)[0].lines) == 3 * (17 + 4)
    assert time.process_time() - began < 10  # s; the whole command may take 30
