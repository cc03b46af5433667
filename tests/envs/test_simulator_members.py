"""What lacks a member of a simulator is told which, before anything walks."""

import pytest
from pointmass import PointMass

from dtune.envs.simulator import check_members
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
