"""What the checker says of right and wrong simulators."""

from functools import partial

import gymworlds as worlds
import numpy as np
import pytest
import torch
from pointmass import PointMass

import dtune
from dtune.envs.check import check_simulator
from dtune.envs.locomotion import HOPPER
from dtune.envs.mujoco import MujocoSimulator
from dtune.envs.simulator import Outcome

NAMES = ["reset", "step", "same seed", "keep", "outcomes", "actions", "faults", "horizon", "going back"]


class Point(PointMass):
    """A right one, except that it allows rows that have ended to be stepped on."""

    def step(self, actions):
        self.ended = torch.zeros_like(self.ended)
        return super().step(actions)


def only_wrong(simulator, name, match, **options):
    findings = check_simulator(simulator, steps=30, **options)
    wrong = [found for found in findings if not found.passed]
    assert [found.name for found in wrong] == [name], findings
    assert wrong[0].needed
    assert match in wrong[0].message, wrong


def here(environment, **options):
    return dtune.GymnasiumSimulator(environment, workers=0, **options)


@pytest.mark.parametrize(
    "make",
    [
        Point,
        partial(Point, box=1.0),
        partial(MujocoSimulator, HOPPER),
        partial(here, "Pendulum-v1"),
        partial(here, worlds.drift),
        partial(here, worlds.shifty),
    ],
    ids=["point", "box", "hopper", "pendulum", "own", "moving model"],
)
def test_nothing_is_wrong_with_right_ones(make):
    findings = check_simulator(make(), steps=30)
    assert [found.name for found in findings] == NAMES
    assert all(found.passed for found in findings), findings
    assert "bit for bit over" in findings[-1].message


def test_it_says_what_it_saw():
    said = {found.name: found.message for found in check_simulator(here("Pendulum-v1"), steps=30)}
    assert said["reset"] == "3 numbers seen, 1 in an action"
    assert "clipped" in said["actions"]
    assert "after 200 steps" in said["horizon"]
    assert "clock included" in said["going back"]


def of(outcome, **changes):
    return Outcome(**{**outcome._asdict(), **changes})


def flat_rewards(self, outcome):
    return of(outcome, rewards=outcome.rewards[:, None])


def single_precision(self, outcome):
    return of(outcome, observations=outcome.observations.float())


def both_at_once(self, outcome):
    return of(outcome, terminated=~outcome.terminated, truncated=~outcome.truncated)


def unseeded(self, outcome):
    return of(outcome, rewards=outcome.rewards + torch.rand(()))


def no_fault(self, outcome):
    return of(outcome, faulty=torch.zeros_like(outcome.faulty))


def all_at_fault(self, outcome):
    everywhere = outcome.faulty | outcome.faulty.any()
    return of(outcome, faulty=everywhere, terminated=outcome.terminated | everywhere)


def reused(self, outcome):
    if int(self.clock[0]) <= 1:
        self.buffer = outcome.rewards
    elif len(self.buffer) == len(outcome.rewards):
        self.buffer[:] = outcome.rewards
    return outcome


def early(self, outcome):
    return of(outcome, truncated=outcome.truncated | (self.clock == 7))


def endless(self, outcome):
    return of(outcome, truncated=torch.zeros_like(outcome.truncated))


@pytest.mark.parametrize(
    ("change", "name", "match"),
    [
        (flat_rewards, "step", "rewards of step have to be a tensor (6,) of torch.float64, and are (6, 1)"),
        (single_precision, "step", "observations"),
        (both_at_once, "step", "terminated and truncated at once"),
        (unseeded, "same seed", "from step 1 on"),
        (no_fault, "faults", "has to make its row faulty"),
        (all_at_fault, "faults", "changes others"),
        (reused, "outcomes", "give copies"),
        (early, "horizon", "truncated at step [7]"),
        (endless, "horizon", "go on after the horizon of 20"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_wrong_with_steps_is_found(change, name, match):
    class Wrong(Point):
        def step(self, actions):
            return change(self, super().step(actions))

    findings = check_simulator(Wrong(), steps=30)
    found = {found.name: found for found in findings}
    assert not found[name].passed
    assert match in found[name].message
    assert all(other.passed for other in findings[: findings.index(found[name])])


def test_numbers_that_break_without_a_cause_are_found():
    """Whoever finetunes there has 20 of 20 evaluation episodes broken."""
    findings = {found.name: found for found in check_simulator(Point(faults={2: 3}, broken=np.nan), steps=30)}
    assert not findings["same seed"].passed
    assert "a row is faulty though all of its actions lay in [-1, 1]" in findings["same seed"].message
    assert findings["same seed"].needed


def test_rows_that_are_mixed_up_are_found():
    class Wrong(Point):
        def keep(self, rows):
            super().keep(rows.sort().values)

    only_wrong(Wrong(), "keep", "mixed up")


def test_an_exception_is_a_finding():
    class Wrong(Point):
        def keep(self, rows):
            raise IndexError("of\nsomebody")

    findings = {found.name: found for found in check_simulator(Wrong(), steps=30)}
    assert findings["keep"].message == "raised IndexError: of somebody"


def test_nothing_goes_on_after_a_reset_that_is_wrong():
    class Wrong(Point):
        horizon = 0

    simulator = Wrong()
    simulator.horizon = 0
    (finding,) = check_simulator(simulator)
    assert "horizon has to be a whole number above 0, and is 0" in finding.message


# Going back


def test_without_the_clock():
    class Wrong(Point):
        def restore(self, snapshots):
            return super().restore(snapshots * [1, 1, 0])

        def snapshot(self):
            return super().snapshot() * [1, 1, 0]

    only_wrong(Wrong(), "going back", "misses the clock")


def test_without_the_order():
    class Wrong(Point):
        def restore(self, snapshots):
            return super().restore(snapshots[::-1].copy())

    only_wrong(Wrong(), "going back", "other observations")


class Without:
    """A MuJoCo simulator whose snapshots leave out some columns."""

    observation_dim, action_dim, horizon = 11, 3, 1000

    def __init__(self, columns):
        self.inner, self.columns = MujocoSimulator(HOPPER), columns

    def reset(self, count, generator):
        return self.inner.reset(count, generator)

    def step(self, actions):
        return self.inner.step(actions)

    def keep(self, rows):
        self.inner.keep(rows)

    def named(self):
        return self.inner.named()

    def snapshot(self):
        saved = self.inner.snapshot()
        saved[:, self.columns] = 0
        return saved

    def restore(self, snapshots):
        return self.inner.restore(snapshots)


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        (slice(13, 19), "warm start (qacc_warmstart)"),  # after time, 6 positions and 6 velocities
        (slice(-1, None), "the clock"),
    ],
    ids=["warm start", "clock"],
)
def test_the_missing_part_of_a_mujoco_state_is_named(columns, named):
    only_wrong(Without(columns), "going back", named)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (
            partial(here, worlds.hopper, get_state=worlds.get_half, set_state=worlds.set_half),
            "warm start (qacc_warmstart)",
        ),
        (
            partial(here, worlds.shifty, get_state=worlds.get_physics, set_state=worlds.set_physics),
            "model field body_pos",
        ),
        *(
            (
                partial(
                    here, worlds.drift, get_state=partial(worlds.get_drift, without=(left_out,)),
                    set_state=worlds.set_drift,
                ),
                said,
            )
            for left_out, said in (("random", "random generator np_random"), ("pushes", "attribute pushes"))
        ),
        (partial(here, worlds.mute), "cannot be deep-copied"),
    ],
    ids=["warm start", "model field", "random generator", "attribute", "not copied"],
)  # fmt: skip
def test_what_a_gymnasium_state_misses_is_named_and_rules_out_grpo_only(make, named):
    findings = check_simulator(make(), steps=30)
    assert [found.name for found in findings if not found.passed] == ["going back"]
    assert named in findings[-1].message
    assert not findings[-1].needed
    assert "rules out GRPO-DT" in findings[-1].message


def test_one_that_has_no_snapshots_is_reported_as_such():
    class Forward:
        observation_dim, action_dim, horizon = 2, 2, 20

        def __init__(self):
            self.point = Point()

        def reset(self, count, generator):
            return self.point.reset(count, generator)

        def step(self, actions):
            return self.point.step(actions)

        def keep(self, rows):
            self.point.keep(rows)

    *others, last = check_simulator(Forward(), steps=30)
    assert all(found.passed for found in others)
    assert (last.passed, last.needed) == (False, False)
    assert "no snapshot and restore" in last.message


def test_an_unseeded_gymnasium_environment_is_found():
    findings = {found.name: found for found in check_simulator(here(worlds.careless), steps=30)}
    assert "whatever is random must come from the generator" in findings["same seed"].message
    assert np.all([findings[name].passed for name in ("reset", "step", "outcomes", "horizon")])
