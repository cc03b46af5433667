"""Records in `results/`: what is written is read again, and what is damaged is refused."""

import re
from pathlib import Path

import numpy as np
import pytest
from invented import curve

from dtune.errors import DataError
from dtune.experiments.reports.results import parse_name, read_curve, read_results, write_curve

README = Path(__file__).parents[3] / "README.md"
DEMO = README.parent / "results" / "demo"
GOOD = "iteration,env_steps,return,normalized_score,seed\n0,,1.5,2.5,0\n10,100,2,3,0\n"


def test_a_record_is_read_as_it_was_written(tmp_path):
    written = curve("door-human-v1", "grpo+relabel", 7, scores=[0.1, 1 / 3, -2.0], ratio_peak=[np.nan, 2.5, 1e8])
    path = write_curve(written, tmp_path)
    read = read_curve(path)
    assert (read.dataset, read.method, read.seed) == ("door-human-v1", "grpo+relabel", 7)
    assert read.columns.keys() == written.columns.keys()
    for name, values in written.columns.items():
        np.testing.assert_array_equal(read.columns[name], values)
    assert b"\r" not in path.read_bytes()


def test_the_final_score_is_of_three_evaluations_and_the_best_of_all():
    run = curve(scores=[9.0, 1.0, 2.0, 6.0])
    assert (run.final, run.best) == (3.0, 9.0)
    assert curve(scores=[4.0]).final == 4.0
    assert curve(scores=[4.0, 1.0, 2.0]).final == 1.5  # that before training counts where there is no other


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ant-medium-replay-v2_odt_td3_seed12.csv", ("ant-medium-replay-v2", "odt_td3", 12)),
        ("pen-human-v1_grpo+eval30_seed0.csv", ("pen-human-v1", "grpo+eval30", 0)),
        ("worlds.csv", None),
        ("hopper_grpo_seed.csv", None),
    ],
)
def test_the_name_says_what_ran(name, said):
    assert parse_name(name) == said


def test_counts_begin_at_zero(tmp_path):
    path = tmp_path / "hopper-random-v2_ppo_seed0.csv"
    path.write_text(GOOD)
    assert read_curve(path).column("env_steps").tolist() == [0.0, 100.0]
    assert np.isnan(read_curve(path).column("seconds")).all()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "names the columns"),
        (b"a,b\n1,2\n", "names the columns"),
        (b"iteration,return\n", "no evaluation"),
        (GOOD.replace("2,3,0\n", "2,3\n").encode(), "line 3"),
        (GOOD.replace("1.5", "nan").encode(), "line 2: return is 'nan'"),
        (GOOD.replace("1.5", "high").encode(), "line 2: return is 'high'"),
        (GOOD.replace("\n10,", "\n0,").encode(), "out of order"),
        (GOOD.replace("3,0\n", "3,1\n").encode(), "seed 0"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path, content, said):
    path = tmp_path / "hopper-random-v2_ppo_seed0.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as refused:
        read_curve(path)
    assert str(path) in str(refused.value)


def test_names_that_cannot_be_told_apart_are_refused(tmp_path):
    with pytest.raises(DataError, match="no underscore"):
        write_curve(curve("my_own", "grpo"), tmp_path)


def test_what_lies_together_is_compared(tmp_path):
    write_curve(curve(seed=1), tmp_path / "small")
    write_curve(curve(seed=0), tmp_path / "small")
    write_curve(curve(), tmp_path)
    (tmp_path / "benchmarks.csv").write_text("anything\n")
    groups = read_results(tmp_path)
    assert {name: [run.seed for run in runs] for name, runs in groups.items()} == {"": [0], "small": [0, 1]}


def test_the_demo_in_git_is_what_the_readme_says():
    (runs,) = read_results(DEMO).values()
    scores = {(run.method, run.seed): (round(run.final, 1), round(run.best, 1)) for run in runs}
    rows = re.findall(r"^\| (\d) ((?:\| [\d. M]+ ){8})\|$", README.read_text(), re.MULTILINE)
    said = {}
    for seed, cells in rows:
        of_grpo, of_ppo = (cells.split("|")[first : first + 2] for first in (1, 5))
        said["grpo", int(seed)] = tuple(map(float, of_grpo))
        said["ppo", int(seed)] = tuple(map(float, of_ppo))
    assert len(said) == 6
    assert scores == said
    assert not any(b"\r" in path.read_bytes() for path in DEMO.glob("*.csv"))
