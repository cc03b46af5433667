"""Figures: which curves belong to which, means over seeds, and the files."""

import numpy as np
import pytest
from invented import ablations, curve, learning

from dtune.errors import ConfigError
from dtune.experiments.reports.drawing import AXES, COLOURS, colour, dash, draw_all, draw_panels
from dtune.experiments.reports.figures import FIGURES, apart, band, curve_label, curves_of
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


def test_only_panels_of_one_dataset_share_their_vertical_axis(tmp_path, monkeypatch):
    names = ["hopper-random-v2", "ant-random-v2", "pen-human-v1", "door-human-v1"]
    curves = [
        learning(name, method, 0, 10.0 * 10**place, 4) for place, name in enumerate(names) for method in ("dt", "grpo")
    ]
    shown = _axes(monkeypatch)
    draw_all(curves, tmp_path, ["3"])
    tops = [axes.get_ylim()[1] for axes in shown if axes.get_visible()]
    assert len(tops) == 12
    assert len(set(tops)) == 4
    shown.clear()
    draw_all(curves[:4], tmp_path, ["3"])  # a row a dataset
    assert len(shown) == 6
    assert len({axes.get_ylim() for axes in shown[:3]}) == 1
    assert shown[0].get_ylim() != shown[3].get_ylim()


def test_iterations_are_whole_numbers(tmp_path, monkeypatch):
    """On a level axis and on a logarithmic one, which has numbers between its powers of ten where it spans but one."""
    shown = _axes(monkeypatch)
    short = {"grpo": band([curve(scores=[1.0, 2.0, 3.0])], "iteration", "normalized_score")}
    far = {
        "odt": band(
            [curve(method="odt", scores=[float(number) for number in range(41)])], "iteration", "normalized_score"
        )
    }
    draw_panels(
        [("", AXES[0], short), ("", AXES[0], short | far)], tmp_path / "x", columns=2, names={"grpo": "", "odt": ""}
    )
    level, logarithmic = ([text.get_text() for text in axes.get_xticklabels(which="both")] for axes in shown)
    assert all(text.isdigit() for text in level)
    assert {text for text in logarithmic if text} >= {"1", "10"}
    assert all(text.isdigit() for text in logarithmic if text)


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


def test_a_logarithmic_axis_shows_nothing_before_the_first_evaluation_of_every_seed(tmp_path, monkeypatch):
    """Seeds judged at 0 and then at 4,000 and 5,000 steps: the line begins at 5,000, and so does its band."""
    seeds = [
        curve(seed=seed, scores=[1.0, 20.0, 30.0], env_steps=[0.0, first, 90_000.0])
        for seed, first in enumerate((4_000.0, 5_000.0))
    ]
    short = curve(method="odt", scores=[1.0, 2.0, 3.0], env_steps=[0.0, 100.0, 200.0])
    runs = {
        "grpo": band(seeds, "env_steps", "normalized_score"),
        "odt": band([short], "env_steps", "normalized_score"),
    }
    (axes,) = _drawn(monkeypatch, tmp_path, [("", AXES[1], runs)], {"grpo": "", "odt": ""})
    assert axes.get_xscale() == "log"
    long, other = axes.get_lines()
    assert list(long.get_xdata()) == [5_000, 90_000]
    assert list(other.get_xdata()) == [100, 200]
    assert axes.get_xlim()[0] == 100
    assert axes.collections[0].get_paths()[0].vertices[:, 0].min() == 5_000


def test_a_policy_that_does_not_learn_is_level_on_a_logarithmic_axis(tmp_path, monkeypatch):
    runs = {
        method: band([learning("x", method, 0, 9.0, 4)], "env_steps", "normalized_score") for method in ("grpo", "odt")
    } | {"dt": band([curve(method="dt", scores=[3.0])], "env_steps", "normalized_score")}
    (axes,) = _drawn(monkeypatch, tmp_path, [("", AXES[1], runs)], dict.fromkeys(runs, ""))
    assert axes.get_xscale() == "log"
    assert list(axes.get_lines()[2].get_ydata()) == [3, 3]


def test_one_evaluation_of_what_learns_is_a_point_on_a_logarithmic_axis(tmp_path, monkeypatch):
    once = band([curve(method="ppo", scores=[1.0, 5.0], env_steps=[0.0, 383.0])], "env_steps", "normalized_score")
    runs = {"grpo": band([curve(env_steps=[0.0, 9e3, 2e4, 9e4])], "env_steps", "normalized_score"), "ppo": once}
    (axes,) = _drawn(monkeypatch, tmp_path, [("", AXES[1], runs)], {"grpo": "", "ppo": ""})
    assert axes.get_xscale() == "log"
    (line,) = [line for line in axes.get_lines() if line.get_label() == "ppo"]
    assert (list(line.get_xdata()), list(line.get_ydata()), line.get_marker()) == ([383], [5], "o")
    assert axes.get_xlim()[0] <= 383


def test_seeds_without_a_common_range_are_drawn_singly(tmp_path, monkeypatch):
    """One ends at 300 steps, the other is first measured at 400; the figure says what thin lines are."""
    seeds = [
        curve(seed=0, scores=[1.0, 2.0, 3.0], ratio_peak=[np.nan, 8.0, 4.0], env_steps=[0.0, 200.0, 300.0]),
        curve(seed=1, scores=[1.0, 2.0, 3.0], ratio_peak=[np.nan, 9.0, 5.0], env_steps=[0.0, 400.0, 600.0]),
    ]
    assert band(seeds, "env_steps", "ratio_peak", logarithmic=True) is None
    runs = {"grpo": apart(seeds, "env_steps", "ratio_peak", logarithmic=True)}
    (axes,) = _drawn(monkeypatch, tmp_path, [("", AXES[1], runs)], {"grpo": "GRPO"}, logarithmic=True)
    assert [list(line.get_xdata()) for line in axes.get_lines()] == [[200, 300], [400, 600]]
    np.testing.assert_allclose([line.get_ydata() for line in axes.get_lines()], [[8, 4], [9, 5]])
    (legend,) = axes.figure.legends
    assert "thin lines: seeds singly" in legend.get_title().get_text()
    assert [text.get_text() for text in legend.get_texts()] == ["GRPO"]


def test_a_mean_that_only_0_made_a_line_is_seeds_singly_on_a_logarithmic_axis(tmp_path, monkeypatch):
    """From 0 to 300 there are both, the second by interpolation towards 40,000: above 0 they share nothing."""
    seeds = [
        curve(seed=seed, scores=[1.0, 2.0, 3.0], env_steps=steps)
        for seed, steps in enumerate(([0.0, 200.0, 300.0], [0.0, 40_000.0, 60_000.0]))
    ]
    other = band([curve(method="ppo", env_steps=[0.0, 10.0, 20.0, 9_000.0])], "env_steps", "normalized_score")
    runs = {"grpo": band(seeds, "env_steps", "normalized_score"), "ppo": other}
    (axes,) = _drawn(monkeypatch, tmp_path, [("", AXES[1], runs)], {"grpo": "", "ppo": ""})
    assert [list(line.get_xdata()) for line in axes.get_lines()[:2]] == [[200, 300], [40_000, 60_000]]


def test_every_curve_with_numbers_is_in_every_panel(tmp_path, monkeypatch):
    peaks = [np.nan, 5.0, 6.0, 7.0]
    curves = [
        curve(method=method, seed=seed, ratio_peak=peaks, env_steps=scale * np.arange(4.0))
        for method in ("grpo", "grpo+relabel")
        for seed, scale in enumerate((1.0, 100.0))
    ]
    shown = _axes(monkeypatch)
    draw_all(curves, tmp_path, ["1"])
    assert len(shown) == 6
    assert all({line.get_label() for line in axes.get_lines()} == {"grpo", "grpo+relabel"} for axes in shown)


def _drawn(monkeypatch, folder, panels, names, **options):
    """The panels, after drawing."""
    shown = _axes(monkeypatch)
    draw_panels(panels, folder / "x", columns=1, names=names, **options)
    return shown


def _axes(monkeypatch):
    """A list of the panels of the figures drawn from now on."""
    from matplotlib.figure import Figure

    shown, save = [], Figure.savefig

    def keep(self, path, **options):
        if path.suffix == ".png":
            shown.extend(self.axes)
        save(self, path, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return shown
