"""Hopper, Walker2d and Ant against Gymnasium's own."""

import warnings

import gymnasium
import mujoco
import numpy as np
import pytest
import torch

from dtune.envs.locomotion import HOPPER, WALKER2D, Ant
from dtune.envs.mujoco import MujocoSimulator
from dtune.envs.rules import Moment
from dtune.errors import ConfigError

WORLDS = [
    pytest.param(HOPPER, "Hopper-v4", id="hopper"),
    pytest.param(WALKER2D, "Walker2d-v4", id="walker2d"),
    pytest.param(Ant(), "Ant-v4", id="ant"),
]
SEEDS = 8
LEGS = (250, 250, 1000)  # past the falls: most random hoppers are down after 30 steps


def oracle(name):
    """Gymnasium's environment without its wrappers, with the contacts of MuJoCo < 3.5."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # v4, not v5, has D4RL's rules
        env = gymnasium.make(name).unwrapped
    env.model.geom_margin[:] *= 0.5
    return env


@pytest.mark.parametrize(("task", "name"), WORLDS)
def test_a_thousand_random_steps_are_gymnasiums_own(task, name):
    simulator = MujocoSimulator(task)
    envs = [oracle(name) for _ in range(SEEDS)]
    generator = torch.Generator().manual_seed(0)
    fell = stood = 0
    for leg, steps in enumerate(LEGS):
        first = [env.reset(seed=SEEDS * leg + seed)[0] for seed, env in enumerate(envs)]
        qpos, qvel = np.stack([env.data.qpos for env in envs]), np.stack([env.data.qvel for env in envs])
        assert np.array_equal(simulator.place(qpos, qvel).numpy(), np.stack(first))
        for _ in range(steps):
            actions = 2 * torch.rand(SEEDS, task.action_dim, generator=generator) - 1
            ours = simulator.step(actions)
            observations, rewards, terminated, _, _ = zip(
                *(env.step(action) for env, action in zip(envs, actions.numpy(), strict=True)), strict=True
            )
            assert np.array_equal(ours.observations.numpy(), np.stack(observations))
            np.testing.assert_allclose(ours.rewards.numpy(), rewards, rtol=0, atol=1e-12)
            assert ours.terminated.tolist() == list(map(bool, terminated))
            fell += sum(map(bool, terminated))
            stood += SEEDS - sum(map(bool, terminated))
    assert fell > 50  # both answers have been compared
    assert stood > 50
    for env in envs:
        env.close()


@pytest.mark.parametrize(("task", "name"), WORLDS)
def test_episodes_end_at_gymnasiums_bounds(task, name):
    env, model = oracle(name), task.model()
    around = [np.nextafter(bound, way) for bound in (0.2, 0.7, 0.8, 1.0, 2.0, 100.0) for way in (-np.inf, np.inf)]
    values = np.array([*around, *(-np.array(around)), 0.2, 0.7, 0.8, 1.0, 2.0, 100.0, -0.2, -1.0, -100.0])
    rest = np.concatenate((model.qpos0, np.zeros(model.nv)))
    states = np.broadcast_to(rest, (len(rest), len(values), len(rest))).copy()
    for column in range(len(rest)):  # one number of the state is moved to every bound, the others rest
        states[column, :, column] = values
    states = states.reshape(-1, len(rest))
    expected = []
    for state in states:
        env.data.qpos[:], env.data.qvel[:] = state[: model.nq], state[model.nq :]
        expected.append(bool(env.terminated))
    now = Moment(states[:, : model.nq], states[:, model.nq :], np.zeros((len(states), task.memory_dim)))
    assert task.terminated(now).tolist() == expected
    assert 0 < sum(expected) < len(expected)
    env.close()


@pytest.mark.parametrize(("task", "name"), WORLDS)
def test_the_world_is_gymnasiums_with_half_its_margins(task, name):
    env, model = oracle(name), task.model()
    assert np.array_equal(model.geom_margin, env.model.geom_margin)
    if name != "Walker2d-v4":  # whose margins are 0
        assert model.geom_margin.max() in (0.001 / 2, 0.01 / 2)
    assert env.observation_space.shape == (task.observation_dim,)
    assert env.action_space.shape == (task.action_dim,)
    assert (task.frame_skip, task.dt) == (env.frame_skip, env.dt)
    env.close()


def test_the_ants_torso_is_the_body_that_is_rewarded():
    assert mujoco.mj_name2id(Ant().model(), mujoco.mjtObj.mjOBJ_BODY, "torso") == Ant.torso


@pytest.mark.parametrize("task", [HOPPER, WALKER2D], ids=["hopper", "walker2d"])
def test_runners_start_within_five_thousandths_of_rest(task):
    model = task.model()
    start = task.draw(model, 2000, torch.Generator().manual_seed(0))
    for noise in (start.qpos - model.qpos0, start.qvel):
        assert np.abs(noise).max() <= 5e-3
        assert np.allclose([noise.min(), noise.max()], [-5e-3, 5e-3], atol=1e-5)
        assert np.allclose(noise.std(axis=0), 5e-3 / np.sqrt(3), rtol=0.05)


def test_ants_start_within_a_tenth_of_rest_and_with_normal_velocities():
    model = Ant().model()
    start = Ant().draw(model, 5000, torch.Generator().manual_seed(0))
    noise = start.qpos - model.qpos0
    assert np.abs(noise).max() <= 0.1
    assert np.allclose(noise.std(axis=0), 0.1 / np.sqrt(3), rtol=0.05)
    assert np.allclose(start.qvel.std(axis=0), 0.1, rtol=0.05)
    assert np.abs(start.qvel).max() > 0.3  # not uniform


def test_the_control_cost_does_not_depend_on_how_many_are_stepped():
    simulator, generator = MujocoSimulator(Ant()), torch.Generator().manual_seed(0)
    simulator.reset(33, generator)
    snapshots, actions = simulator.snapshot(), 2 * torch.rand(33, 8, generator=generator) - 1
    together = simulator.step(actions).rewards
    for row in (0, 17, 32):
        simulator.restore(snapshots[row : row + 1])
        assert simulator.step(actions[row : row + 1]).rewards[0] == together[row]


@pytest.mark.parametrize("task", [HOPPER, Ant()], ids=["runner", "ant"])
def test_a_field_the_task_does_not_have_is_refused(task):
    model = task.model()
    with pytest.raises(ConfigError, match="goal"):
        MujocoSimulator(task).place(model.qpos0[None], np.zeros((1, model.nv)), goal=np.zeros((1, 2)))
