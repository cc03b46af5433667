"""What is too large is told, once, and only after the iterations that it takes."""

import torch
from pointmass import PointMass

from dtune.experiments.alarms import ALARMS, PATIENCE, Alarms
from dtune.experiments.loop import Schedule, train

WELL = {"train/fresh_ratio_error": 1e-6, "train/ratio_max": 9.0, "rollout/dropped": 0.85, "eval/return": 1e9}


def test_nothing_is_said_of_a_run_that_is_well_or_has_no_such_metrics():
    alarms = Alarms()
    assert not [said for row in [WELL, {}] * 10 for said in alarms.heard(row)]


def test_an_untrue_ratio_is_told_at_once_and_once():
    alarms = Alarms()
    (said,) = alarms.heard(WELL | {"train/fresh_ratio_error": 0.25})
    assert "off by 0.25" in said
    assert "dtune.check_policy" in said
    assert not list(alarms.heard({"train/fresh_ratio_error": 0.5}))


def test_what_may_happen_now_and_then_is_told_after_some_on_end():
    for alarm, said in zip(ALARMS[1:], ("now to 50: the policy moves far", "now 5000%"), strict=True):
        alarms, bad = Alarms(), WELL | {alarm.key: 50.0}
        rows = [bad] * (PATIENCE - 1) + [WELL] + [bad] * PATIENCE + [WELL] + [bad] * (PATIENCE + 1)
        heard = [list(alarms.heard(row)) for row in rows]
        assert [len(sentences) for sentences in heard] == [0] * (2 * PATIENCE - 1) + [1] + [0] * (PATIENCE + 2)
        assert said in heard[2 * PATIENCE - 1][0]


class Untrue:
    """An algorithm whose ratios are wrong."""

    policy = torch.nn.Linear(1, 1)

    def iterate(self, simulator):
        return {"train/fresh_ratio_error": 0.5}

    def state_dict(self):
        return {}

    def load_state_dict(self, state): ...


def test_a_run_says_it(capsys):
    train(Untrue(), PointMass(), Schedule(iterations=3))
    assert capsys.readouterr().out.count("are off by 0.5") == 1
