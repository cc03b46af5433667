"""Names, sizes and scores."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from dtune.envs.rules import Moment
from dtune.envs.tasks import DATASETS, TASKS, make_simulator, normalized_score, succeeded, task_info
from dtune.errors import ConfigError

# Tables 2-4 of the paper
PUBLISHED = {
    "hopper-medium-v2",
    "hopper-medium-replay-v2",
    "hopper-random-v2",
    "walker2d-medium-v2",
    "walker2d-medium-replay-v2",
    "walker2d-random-v2",
    "ant-medium-v2",
    "ant-medium-replay-v2",
    "ant-random-v2",
    "pen-cloned-v1",
    "pen-human-v1",
    "hammer-cloned-v1",
    "hammer-human-v1",
    "door-cloned-v1",
    "door-human-v1",
    "antmaze-umaze-v2",
    "antmaze-umaze-diverse-v2",
}

# horizon, observations, actions, random policy's return, expert's return (D4RL)
PUBLISHED_TASKS = {
    "hopper": (1000, 11, 3, -20.272305, 3234.3),
    "walker2d": (1000, 17, 6, 1.629008, 4592.3),
    "ant": (1000, 27, 8, -325.6, 3879.7),
    "door": (200, 39, 28, -56.512833, 2880.5693087298737),
    "pen": (100, 45, 24, 96.262799, 3076.8331017826877),
    "hammer": (200, 46, 26, -274.856578, 12794.134825156867),
    "antmaze-umaze": (700, 29, 8, 0.0, 1.0),
    "antmaze-umaze-diverse": (700, 29, 8, 0.0, 1.0),
}
NEEDS_MODELS = {"door", "pen", "hammer"} if find_spec("gymnasium_robotics") is None else set()


def test_the_datasets_are_those_of_the_paper_and_of_the_task_in_their_name():
    assert set(DATASETS) == PUBLISHED
    for dataset, task in DATASETS.items():
        candidates = [name for name in TASKS if dataset.startswith(name + "-")]
        assert task == max(candidates, key=len)


def test_the_tasks_are_as_published():
    published = {
        name: (info.horizon, info.observation_dim, info.action_dim, info.reference_min, info.reference_max)
        for name, info in TASKS.items()
    }
    assert published == PUBLISHED_TASKS
    assert all(name == info.name for name, info in TASKS.items())
    assert {name for name, info in TASKS.items() if info.return_scale == 1.0} == {
        "antmaze-umaze",
        "antmaze-umaze-diverse",
    }
    assert {info.return_scale for info in TASKS.values()} == {1.0, 0.001}


@pytest.mark.parametrize("name", TASKS)
def test_a_simulator_has_the_sizes_of_its_task(name):
    if name in NEEDS_MODELS:
        pytest.skip("gymnasium-robotics is not installed")
    info, simulator = task_info(name), make_simulator(name, threads=2)
    assert (simulator.horizon, simulator.action_dim) == (info.horizon, info.action_dim)
    observations = simulator.reset(2, torch.Generator().manual_seed(0))
    assert observations.shape == (2, info.observation_dim) == (2, simulator.observation_dim)
    assert simulator.step(torch.zeros(2, info.action_dim)).observations.shape == observations.shape


def test_a_dataset_names_its_task():
    assert make_simulator("walker2d-medium-replay-v2").task == make_simulator("walker2d").task


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match="'hoper' is neither a task") as error:
        make_simulator("hoper")
    assert all(name in str(error.value) for name in (*TASKS, *DATASETS))


def test_scores_are_0_for_the_random_policy_and_100_for_the_expert():
    for name, info in TASKS.items():
        scores = normalized_score(name, np.array([info.reference_min, info.reference_max]))
        np.testing.assert_allclose(scores, [0, 100], atol=1e-12)
    # Hopper by hand: 100 · (1607.0138475 + 20.272305) / 3254.572305 = 50
    assert normalized_score("hopper-medium-v2", 1607.0138475) == pytest.approx(50)


def test_scores_keep_the_shape_of_the_returns():
    returns = torch.tensor([[0.0, 1.0], [0.5, 0.25]])
    assert torch.equal(normalized_score("antmaze-umaze-diverse-v2", returns), 100 * returns)
    with pytest.raises(ConfigError, match="neither"):
        normalized_score("halfcheetah", 1.0)


def _door(hinge: float) -> Moment:
    qpos = np.zeros((1, 30))
    qpos[0, -2] = hinge
    return Moment(qpos, np.zeros((1, 30)), np.zeros((1, 9)))


def _hammer(left: float) -> Moment:
    memory = np.zeros((1, 22))
    memory[0, 3:18] = 0.3  # all in one place, lifted
    memory[0, 9] += left  # of the nail, to its goal
    return Moment(np.zeros((1, 33)), np.zeros((1, 33)), memory)


def _pen(likeness: float) -> Moment:
    memory = np.zeros((1, 13))
    memory[0, 4:7] = TASKS["pen"].make()._spot
    memory[0, 7] = memory[0, 10] = likeness**0.5
    return Moment(np.zeros((1, 30)), np.zeros((1, 30)), memory)


@pytest.mark.parametrize(
    ("task", "moment", "met", "missed", "steps"),
    [("door", _door, 1.36, 1.34, 26), ("hammer", _hammer, 0.009, 0.011, 26), ("pen", _pen, 0.96, 0.94, 21)],
)
def test_a_success_is_a_goal_met_for_long_enough_by_the_worlds_own_rewards(task, moment, met, missed, steps):
    if task in NEEDS_MODELS:
        pytest.skip("gymnasium-robotics is not installed")
    rules = TASKS[task].make()
    actions = np.zeros((1, TASKS[task].action_dim), dtype=np.float32)
    good, bad = (float(rules.reward(moment(x), actions, moment(x))[0]) for x in (met, missed))
    rewards = torch.full((3, 100), bad)
    rewards[0, :steps] = rewards[1, : steps - 1] = rewards[2] = good
    mask = torch.ones(3, 100, dtype=torch.bool)
    mask[2, steps - 1 :] = False
    assert succeeded(task, rewards, mask).tolist() == [True, False, False]


def test_arriving_is_a_success_in_the_maze_and_a_hopper_is_never_done():
    rewards, mask = torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.ones(2, 2, dtype=torch.bool)
    assert succeeded("antmaze-umaze-diverse-v2", rewards, mask).tolist() == [True, False]
    assert succeeded("hopper", rewards, mask) is None
