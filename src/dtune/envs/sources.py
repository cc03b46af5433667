"""Where the paper's seventeen datasets come from, and what Tables 2-4 say of them."""

from dataclasses import dataclass

from dtune.data.splitting import Splitting
from dtune.envs.tasks import DATASETS
from dtune.errors import ConfigError, meant

ADDRESS = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
"""Where D4RL's files lie by default; $DTUNE_D4RL_URL names another place of the same layout."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One dataset of D4RL."""

    file: str
    """D4RL's file, below the address. D4RL itself keeps it under the last part of this name."""
    splitting: Splitting
    """The rule its episodes are cut by."""
    steps: int
    """Steps of all episodes (Tables 2-4)."""
    score: tuple[float, float]
    """Mean and standard deviation of the normalised returns (Tables 2-4). The printed deviations went through
    the same formula as the means, so they are too high by -100·R_random / (R_expert - R_random)."""
    random: bool = False
    """Whether uniform random actions made it: then it can be recorded, and need not be fetched."""

    @property
    def file_name(self) -> str:
        """What D4RL calls the file in its own folder."""
        return self.file.rpartition("/")[2]


def _mujoco(file: str, steps: int, mean: float, deviation: float) -> Source:
    name, random = f"gym_mujoco_v2/{file}-v2.hdf5", file.endswith("random")
    return Source(file=name, splitting="locomotion", steps=steps, score=(mean, deviation), random=random)


def _adroit(file: str, steps: int, mean: float, deviation: float) -> Source:
    return Source(file=f"hand_dapg_v1/{file}-v1.hdf5", splitting="adroit", steps=steps, score=(mean, deviation))


def _antmaze(several: bool, steps: int, mean: float, deviation: float) -> Source:
    file = f"ant_maze_v2/Ant_maze_u-maze_noisy_multistart_{several}_multigoal_{several}_sparse_fixed.hdf5"
    return Source(file=file, splitting="antmaze", steps=steps, score=(mean, deviation))


# fmt: off
SOURCES: dict[str, Source] = {
    #                                    D4RL's file             steps    normalised return
    "hopper-medium-v2":          _mujoco("hopper_medium",          999_906, 44.32, 12.27),
    "hopper-medium-replay-v2":   _mujoco("hopper_medium_replay",   402_000, 14.98, 16.32),
    "hopper-random-v2":          _mujoco("hopper_random",          999_906, 1.19, 1.16),
    "walker2d-medium-v2":        _mujoco("walker2d_medium",        999_995, 62.09, 23.83),
    "walker2d-medium-replay-v2": _mujoco("walker2d_medium_replay", 302_000, 14.84, 19.48),
    "walker2d-random-v2":        _mujoco("walker2d_random",        999_997, 0.01, 0.09),
    "ant-medium-v2":             _mujoco("ant_medium",             999_946, 80.30, 35.82),
    "ant-medium-replay-v2":      _mujoco("ant_medium_replay",      302_000, 30.95, 31.66),
    "ant-random-v2":             _mujoco("ant_random",             999_930, 6.36, 10.07),
    "pen-cloned-v1":             _adroit("pen-cloned",             499_886, 108.63, 122.43),
    "pen-human-v1":              _adroit("pen-human",                4_800, 202.69, 154.48),
    "hammer-cloned-v1":          _adroit("hammer-cloned",          999_872, 8.11, 23.35),
    "hammer-human-v1":           _adroit("hammer-human",            10_948, 23.80, 33.86),
    "door-cloned-v1":            _adroit("door-cloned",            999_939, 12.29, 18.35),
    "door-human-v1":             _adroit("door-human",               6_504, 28.35, 13.88),
    "antmaze-umaze-v2":          _antmaze(False,                   998_573, 86.14, 34.55),
    "antmaze-umaze-diverse-v2":  _antmaze(True,                    999_000, 3.48, 18.32),
}
# fmt: on
assert SOURCES.keys() == DATASETS.keys()


def source(name: str) -> Source:
    """Looks a dataset up.

    Raises:
        ConfigError: if it is not one of Tables 2-4.
    """
    if name not in SOURCES:
        raise ConfigError(f"{name!r} is no dataset of Tables 2-4{meant(name, SOURCES)}: they are {', '.join(SOURCES)}.")
    return SOURCES[name]
