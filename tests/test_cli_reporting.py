"""The commands about results: collect, report, figures, record."""

import pytest
from invented import learning
from tiny import GRPO

from dtune.cli import main
from dtune.experiments.reports.results import read_curve, write_curve


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    for method, end in (("ppo", 90.0), ("grpo", 80.0), ("grpo+relabel", 10.0)):
        for seed in (0, 1):
            write_curve(learning("hopper-random-v2", method, seed, end, 5), folder / "small")
    return folder


def fails(arguments, code, capsys) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == code
    return capsys.readouterr().err


def test_a_run_becomes_a_record_and_a_page(pretrained, tmp_path, capsys, one_thread):
    run = tmp_path / "runs/grpo+wide/hopper-random-v2/small/seed2"
    main(
        [
            *GRPO,
            "--iterations",
            "2",
            "--evaluate-every",
            "2",
            "--seed",
            "2",
            "--policy",
            str(pretrained),
            "--out",
            str(run),
        ]
    )
    main(["collect", str(tmp_path / "runs"), "--out", str(tmp_path / "results")])
    assert "1 record in" in capsys.readouterr().out
    found = read_curve(tmp_path / "results/hopper-random-v2_grpo+wide_seed2.csv")
    assert found.column("iteration").tolist() == [0, 2]
    assert found.column("env_steps_lookahead")[-1] > 0
    parts = ("trajectories", "subtrajectories", "lookahead")
    assert sum(found.column(f"env_steps_{part}")[-1] for part in parts) == found.column("env_steps")[-1]
    assert found.column("seconds")[-1] > 0
    assert found.data.endswith((".hdf5", ".h5", ".npz"))
    main(["report", str(tmp_path / "runs"), "--only", run.name, "--format", "csv"])
    assert "grpo+wide" in capsys.readouterr().out
    assert "no records" in fails(["report", str(tmp_path / "runs"), "--only", "elsewhere"], 3, capsys)
    main(["report", str(run), "--html", str(run / "report.html")])
    assert "eval/normalized_score" in (run / "report.html").read_text()
    main(["report", str(pretrained), "--html", str(tmp_path / "pretrained.html")])
    assert (tmp_path / "pretrained.html").exists()


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("terminal", "small: normalised scores"),
        ("markdown", "| Ho-R-v2 | final |"),
        ("latex", r"\begin{tabular}"),
        ("csv", "small,MuJoCo (random),hopper-random-v2,grpo,2,"),
    ],
)
def test_the_report_has_four_forms(results, capsys, form, expected):
    main(["report", str(results), "--format", form])
    assert expected in capsys.readouterr().out


def test_folders_without_the_methods_asked_for_are_left_out(results, tmp_path, capsys):
    for folder, method in (("one", "grpo"), ("two", "ppo"), ("two", "grpo")):
        write_curve(learning("hopper-random-v2", method, 0, 9.0, 3), tmp_path / folder)
    main(["report", str(tmp_path), "--methods", "ppo"])
    said = capsys.readouterr().out
    assert "two: normalised scores" in said
    assert "one: normalised scores" not in said


def test_columns_and_score_can_be_chosen(results, capsys):
    main(["report", str(results), "--methods", "grpo", "grpo+relabel", "--score", "best"])
    said = capsys.readouterr().out
    assert "GRPO-DT + relabel" in said
    assert "PPO-DT" not in said
    assert "iql" in fails(["report", str(results), "--methods", "iql"], 2, capsys)


def test_variants_without_a_column_are_named(results, capsys):
    main(["report", str(results), "--format", "markdown"])
    said = capsys.readouterr()
    assert "left out: grpo+relabel (--methods says which to show)" in said.err
    assert "relabel" not in said.out
    main(["report", str(results), "--methods", "grpo"])
    assert "left out" not in capsys.readouterr().err


def test_a_page_of_results(results, tmp_path, capsys):
    main(["report", str(results), "--html", str(tmp_path / "x.html")])
    assert str(tmp_path / "x.html") in capsys.readouterr().out
    assert "Fig. 1: hindsight" in (tmp_path / "x.html").read_text()


def test_figures_that_cannot_be_drawn_are_named(results, tmp_path, capsys):
    main(["figures", str(results), "--out", str(tmp_path), "--figure", "3", "2a"])
    said = capsys.readouterr().out
    assert (tmp_path / "small/figure_3.pdf").exists()
    assert "small: no records for Fig. 2a" in said
    assert "none asked for" in fails(["figures", str(results), "--out", str(tmp_path), "--figure", "2a"], 2, capsys)


def test_a_folder_without_records_is_refused(tmp_path, capsys):
    assert "holds no records" in fails(["report", str(tmp_path)], 3, capsys)
    assert "no finetuning run" in fails(["collect", str(tmp_path), "--out", str(tmp_path / "x")], 3, capsys)
    assert "holds no policy" in fails(["record", str(tmp_path), "--out", "x.gif"], 2, capsys)


@pytest.mark.parametrize(
    ("command", "option", "said"),
    [
        ("report", "--html=x.html --format=csv", "--html is a page of its own: leave out --format, or --html"),
        ("report", "--html=folder", "--html is to be a file, and folder is a folder: name another file"),
        ("report", "--html=text/x.html", "--html needs text to be a folder, and text is a file: choose another --html"),
        ("figures", "--out=text", "--out needs text to be a folder, and text is a file: choose another --out"),
        ("figures", "--out=text/x", "--out needs text/x to be a folder, and text is a file: choose another --out"),
        ("collect", "--out=text", "--out needs text to be a folder, and text is a file: choose another --out"),
    ],
)
def test_where_nothing_can_be_written_is_told_before_the_work(tmp_path, monkeypatch, capsys, command, option, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("text")
    assert fails([command, "nowhere", *option.split()], 2, capsys) == f"dtune: {said}\n"
