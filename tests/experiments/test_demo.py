"""The demo: what it runs, what it says at the end, and that it continues."""

from dataclasses import replace

import pytest

from dtune.envs.tasks import normalized_score
from dtune.errors import ConfigError, DtuneError
from dtune.experiments import demo, presets
from dtune.experiments.demo import DemoConfig, draw_curves, final, run_demo, standing_still


def judged(iteration, mean, std, score):
    return {
        "iteration": iteration,
        "eval/return": mean,
        "eval/return_std": std,
        "eval/normalized_score": score,
        "eval/normalized_score_std": 0.0,
        "eval/length": 10.0,
        "count/env_steps": 100.0 * iteration,
        "time/seconds": 1.0 * iteration,
    }


def test_the_final_score_is_of_the_last_three_evaluations_together():
    rows = [judged(0, 900.0, 0.0, 90.0), {"iteration": 1}, judged(2, 1.0, 2.0, 1.0), judged(3, 2.0, 2.0, 2.0)]
    end = final([*rows, judged(4, 6.0, 2.0, 6.0)])
    assert end["eval/return"] == pytest.approx(3)
    assert end["eval/normalized_score"] == pytest.approx(3)
    assert end["eval/return_std"] == pytest.approx((4 + (4 + 1 + 9) / 3) ** 0.5)  # within and between evaluations
    assert end["best"] == 90
    assert final(rows[:3])["eval/return"] == 1  # that before training counts where there is no other
    assert final(rows[:2])["eval/return"] == 900


def test_standing_still_earns_one_a_step():
    assert standing_still("hopper-random-v2") == pytest.approx(normalized_score("hopper", 1000.0))
    assert standing_still("hopper-random-v2") == pytest.approx(31.35, abs=0.01)


def test_curves_are_a_picture(tmp_path):
    rows = [judged(0, 1.0, 0.0, 1.0), judged(5, 2.0, 0.0, 2.0)]
    draw_curves({"GRPO-DT": rows, "PPO-DT": rows}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A pretraining of seconds; the finetunings are the presets' own, cut to one iteration."""
    whole = presets.pretraining

    def short(*arguments, **options):
        config = whole(*arguments, **options)
        algorithm = replace(config.algorithm, updates_per_iteration=2)
        return replace(config, algorithm=algorithm, iterations=1, random_episodes=20, evaluation_episodes=2)

    monkeypatch.setattr(demo.presets, "pretraining", short)
    monkeypatch.setenv("DTUNE_DATA", str(tmp_path / "data"))
    return DemoConfig(out=tmp_path / "demo", iterations=1)


def test_the_demo_goes_all_the_way_and_again_only_shows_the_results(tiny, capfd):
    run_demo(tiny)
    first = capfd.readouterr().out
    folder = tiny.out / "hopper-random-v2" / "seed0"
    for expected in ("DT", "GRPO-DT", "PPO-DT", "curves.png", str(folder), "per step"):
        assert expected in first
    metrics = [(folder / name / "metrics.csv").read_bytes() for name in ("pretrain", "grpo", "ppo")]
    run_demo(tiny)
    assert metrics == [(folder / name / "metrics.csv").read_bytes() for name in ("pretrain", "grpo", "ppo")]
    lines = [line for line in first.splitlines() if line.startswith(" GRPO-DT ")]
    assert lines
    assert lines == [line for line in capfd.readouterr().out.splitlines() if line.startswith(" GRPO-DT ")]


@pytest.mark.parametrize(
    ("setting", "said"),
    [({"iterations": -1}, "iterations must be at least 0, got -1"), ({"seed": -1}, r"seed must be in \[0, 2\^63\)")],
)
def test_what_cannot_work_is_refused_before_anything_is_done(tiny, tmp_path, setting, said):
    with pytest.raises(ConfigError, match=said):
        run_demo(replace(tiny, **setting))
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_says_why(tiny, monkeypatch):
    monkeypatch.setattr(demo, "_command", lambda *_: ("cheese",))
    with pytest.raises(DtuneError, match=r"stopped \(2\): dtune: there is no command 'cheese'"):
        run_demo(tiny)
