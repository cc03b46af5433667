"""report.html: everything is in it, nothing comes from elsewhere, and nothing of a stranger's runs."""

import base64
import json
import re

import pytest
from invented import ablations, curve, learning
from test_collect import make

from dtune.errors import DataError
from dtune.experiments.reports.collect import load
from dtune.experiments.reports.page import Line, Page, Panel, render, write
from dtune.experiments.reports.pages import results_page, run_page
from dtune.experiments.reports.results import write_curve


def data(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def sample(**changes) -> Page:
    line = Line(name="a", colour="#000", axes={"iteration": {"x": [0.0, 1.0], "y": [1 / 3, 2.0]}})
    page = {
        "title": "t",
        "lead": "",
        "axes": {"iteration": "iterations"},
        "panels": {"": [Panel(title="p", lines=[line])]},
    }
    return Page(**{**page, **changes})


def test_nothing_is_fetched():
    text = render(sample())
    assert "default-src 'none'" in text
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", text)
    assert all(link.startswith(("data:", "#", "`#")) for link in links), links
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {"http://www.w3.org/2000/svg"}  # a name, never fetched


def test_text_from_outside_is_text():
    evil = "</script><script>alert(1)</script>"
    line = Line(name=evil, colour="#000", axes={"iteration": {"x": [0.0], "y": [1.0]}})
    text = render(
        sample(
            title=evil,
            lead=evil,
            panels={evil: [Panel(title=evil, lines=[line])]},
            details=[(evil, evil, {evil: evil})],
        )
    )
    assert "<script>alert" not in text
    assert data(text)["panels"][0]["series"][0]["name"] == evil


def test_numbers_are_in_the_page():
    (panel,) = data(render(sample()))["panels"]
    assert panel["series"][0]["axes"]["iteration"] == {"x": [0.0, 1.0], "y": [0.33333, 2.0]}


def test_a_run_has_its_curves_settings_versions_and_film(tmp_path):
    folder = make(tmp_path / "grpo/x", seed=3, group_size=77)
    (folder / "video.mp4").write_bytes(b"film")
    text = write(run_page(folder), tmp_path / "deep" / "report.html").read_text()
    assert base64.b64encode(b"film").decode() in text
    for expected in ("group_size&quot;: 77", "x.hdf5", "seed 3", "train/ratio_max", "evaluations"):
        assert expected in text
    shown = {one["series"][0]["name"]: one["series"][0]["axes"] for one in data(text)["panels"]}
    assert shown["eval/return"]["iteration"] == {"x": [0, 2], "y": [5, 7]}
    assert shown["train/ratio_max"]["env_steps"] == {"x": [10, 20], "y": [9, 2]}


def test_records_have_datasets_figures_and_tables(tmp_path):
    ablations(tmp_path / "some", "hopper-random-v2", seeds=2)
    write_curve(learning("pen-human-v1", "dt", 0, 30.0), tmp_path / "some")
    text = render(results_page(tmp_path, load(tmp_path)))
    for expected in (
        "hopper-random-v2",
        "pen-human-v1",
        "Fig. 4c: length of sub-trajectories",
        "what a run cost",
        "107.",
    ):
        assert expected in text or expected == "107."
    panels = data(text)["panels"]
    first = {one["name"]: one["axes"] for one in panels[0]["series"]}
    assert set(first) == {"GRPO-DT", "Q-guided GRPO-DT"}
    assert set(first["GRPO-DT"]["seconds"]) == {"x", "y", "low", "high"}
    assert [one["name"] for one in panels[1]["series"]] == ["DT"]
    assert len(panels[1]["series"][0]["axes"]["env_steps"]["x"]) == 1


def test_one_legend_tells_all_variants_apart(tmp_path):
    ablations(tmp_path / "some", "hopper-random-v2", seeds=1)
    panels = data(render(results_page(tmp_path, load(tmp_path))))["panels"]
    looks = {(line["colour"], line["dash"], line["name"]) for panel in panels for line in panel["series"]}
    assert len({name for _, _, name in looks}) > 8
    assert len({look[:2] for look in looks}) == len({name for _, _, name in looks})


def test_runs_of_a_sweep_have_their_settings(tmp_path):
    for seed in (0, 1):
        make(tmp_path / f"grpo/hopper-random-v2/small/seed{seed}", seed=seed)
    text = render(results_page(tmp_path, load(tmp_path)))
    assert text.count("<details>") == 4
    assert "seed1</summary>" in text


def test_one_scale_of_runs_that_lie_side_by_side_has_a_page(tmp_path):
    for scale in ("small", "paper"):
        make(tmp_path / f"grpo/hopper-random-v2/{scale}/seed0", seed=0)
    text = render(results_page(tmp_path, load(tmp_path, only="small"), only="small"))
    assert "small/seed0</summary>" in text
    assert "paper/seed0</summary>" not in text


def test_runs_without_reference_scores_show_returns(tmp_path):
    run = curve("my-world", scores=[1.0, 2.0])
    columns = {name: values for name, values in run.columns.items() if name != "normalized_score"}
    write_curve(type(run)(**{**vars(run), "columns": columns}), tmp_path)
    text = render(results_page(tmp_path, load(tmp_path)))
    assert "my-world, return" in text
    assert data(text)["panels"][0]["series"][0]["axes"]["iteration"]["y"] == [30.0, 60.0]


def test_a_folder_without_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match="no metrics"):
        run_page(tmp_path)
