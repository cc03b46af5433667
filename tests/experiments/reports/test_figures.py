"""Figures: which curves belong to which, means over seeds, and the files."""

import numpy as np
import pytest
from invented import ablations, curve, learning

from dtune.errors import ConfigError
from dtune.experiments.reports.drawing import AXES, COLOURS, colour, dash, draw_all, draw_panels
from dtune.experiments.reports.figures import FIGURES, band, curve_label, curves_of
from dtune.experiments.reports.results import read_results


def test_every_figure_of_the_paper_is_there():
    assert list(FIGURES) == ["1", "2a", "2b", "2c", "2d", "2e", "3", "4a", "4b", "4c", "4d"]
    assert [axis.column for axis in AXES] == ["iteration", "env_steps", "seconds"]


def test_ablations_find_their_figures(tmp_path):
    ablations(tmp_path)
    (curves,) = read_results(tmp_path).values()
    shown = {name: list(curves_of(spec, curves).get("ant-medium-v2", {})) for name, spec in FIGURES.items()}
    assert shown == {
        "1": ["grpo", "grpo+relabel"],
        "2a": ["grpo", "grpo+full"],
        "2b": ["grpo", "grpo+mixed"],
        "2c": ["grpo", "grpo+token"],
        "2d": ["grpo", "grpo+uniform"],
        "2e": ["grpo", "grpo+geometric"],
        "3": [],
        "4a": ["grpo", "grpo+reinformer"],
        "4b": ["grpo", "q_guided"],
        "4c": ["grpo", "grpo+traj3", "grpo+traj50", "grpo+traj100"],
        "4d": ["grpo", "grpo+eval0", "grpo+eval30", "grpo+eval100"],
    }


def test_a_figure_without_its_own_curve_is_none():
    curves = [curve(method="grpo"), curve(method="ppo"), curve("pen-human-v1", "grpo+relabel")]
    assert not curves_of(FIGURES["1"], curves)
    assert list(curves_of(FIGURES["3"], curves)) == ["hopper-random-v2"]


def test_numbers_of_a_pattern_are_in_the_legend():
    assert curve_label(FIGURES["4c"], "grpo+traj50") == "GRPO-DT, 50 steps"
    assert curve_label(FIGURES["4c"], "grpo") == "GRPO-DT"
    assert curve_label(FIGURES["2c"], "grpo+token") == "GRPO-DT, token ratio"


def test_a_band_is_over_seeds_at_common_places():
    """One seed judged at 0, 10, 20, the other at 0, 20: at 10 it is between its two."""
    first = curve(scores=[0.0, 4.0, 6.0], every=10)
    second = curve(seed=1, scores=[2.0, 10.0], every=20)
    found = band([first, second], "iteration", "normalized_score")
    assert found
    np.testing.assert_allclose(found.across, [0, 10, 20])
    np.testing.assert_allclose(found.mean, [1, 5, 8])
    np.testing.assert_allclose(found.deviation, np.array([2, 2, 4]) / 2**0.5)


def test_a_band_ends_with_the_seed_that_ends_first():
    found = band([curve(scores=[1.0, 2.0, 3.0]), curve(seed=1, scores=[1.0, 2.0])], "iteration", "normalized_score")
    assert found
    assert found.across.max() == 10
    assert found.seeds == 2


def test_many_evaluations_are_thinned_and_one_has_no_deviation():
    found = band([curve(scores=np.arange(999.0))], "env_steps", "normalized_score", points=50)
    assert found
    assert len(found.across) == 50
    assert not found.deviation.any()
    assert found.mean[-1] == 998


def test_ratios_are_averaged_as_logarithms():
    runs = [curve(seed=seed, ratio_peak=[np.nan, peak, peak, peak]) for seed, peak in enumerate((10.0, 1000.0))]
    found = band(runs, "iteration", "ratio_peak", logarithmic=True)
    assert found
    np.testing.assert_allclose(found.mean, 2)  # 100, not 505
    assert found.across[0] == 10


def test_a_column_nobody_measured_has_no_band():
    assert band([curve()], "iteration", "success") is None


def test_colours_and_dashes_tell_curves_apart():
    assert len(set(COLOURS.values())) == len(COLOURS)
    order = ["grpo", "grpo+traj3", "grpo+traj50", "grpo+traj100"]
    assert len({colour(method, order) for method in order}) == 4
    assert len({str(dash(method, order)) for method in order}) == 4
    assert colour("ppo", ["ppo"]) == colour("ppo", ["grpo", "ppo"])  # the same in every figure


def test_figures_are_drawn_and_those_without_records_named(tmp_path):
    curves = [
        learning("hopper-random-v2", method, seed, 90.0, 6) for method in ("grpo", "grpo+relabel") for seed in (0, 1)
    ]
    written, skipped = draw_all(curves, tmp_path / "deep" / "figures", ["1", "2a"])
    names = ["figure_1.pdf", "figure_1.png", "figure_1_ratio.pdf", "figure_1_ratio.png"]
    assert [path.name for path in written] == names
    assert written[0].read_bytes().startswith(b"%PDF")
    assert written[1].read_bytes().startswith(b"\x89PNG")
    assert skipped == ["2a"]


def test_many_datasets_have_a_file_an_axis(tmp_path):
    names = ["hopper-random-v2", "ant-random-v2", "pen-human-v1", "door-human-v1"]
    curves = [learning(name, method, 0, 50.0, 4) for name in names for method in ("dt", "grpo")]
    written, _ = draw_all(curves, tmp_path, ["3"])
    assert [path.stem for path in written][::2] == ["figure_3_iteration", "figure_3_env_steps", "figure_3_seconds"]


def test_a_figure_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no figure 5: choose of 1, 2a"):
        draw_all([curve()], tmp_path, ["5"])


def test_axes_are_logarithmic_where_costs_are_far_apart(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    scales = []
    monkeypatch.setattr(Axes, "set_xscale", lambda self, kind: scales.append(kind))
    runs = {
        method: band([learning("x", method, 0, 9.0, 4)], "env_steps", "normalized_score") for method in ("grpo", "odt")
    }
    draw_panels([("", AXES[1], runs)], tmp_path / "x", columns=1, names={"grpo": "", "odt": ""})
    assert scales == ["log"]
    draw_panels([("", AXES[1], {"grpo": runs["grpo"]})], tmp_path / "x", columns=1, names={"grpo": ""})
    assert scales == ["log"]
