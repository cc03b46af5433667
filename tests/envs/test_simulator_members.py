"""What lacks a member of a simulator is told which, before anything walks."""

import pytest
from pointmass import PointMass

from dtune.envs.simulator import check_members, restorable
from dtune.errors import ConfigError


class Methods:
    """What one writes who has read of three methods alone."""

    horizon = 5

    def reset(self, count, generator): ...
    def step(self, actions): ...


def test_the_missing_members_are_named():
    with pytest.raises(ConfigError, match=r"^Methods has no observation_dim, action_dim, keep: a simulator has"):
        check_members(Methods())
    check_members(PointMass())


class Wrapper:
    """Passes everything on."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)


def test_a_wrapper_that_passes_everything_on_is_a_simulator():
    world = Wrapper(PointMass())
    check_members(world)
    assert restorable(world) is world
