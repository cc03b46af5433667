"""Door, Hammer and Pen against gymnasium-robotics' own, and against recorded files."""

import sys
import warnings

import gymnasium
import h5py
import mujoco
import numpy as np
import pytest
import torch
from shared import sample_file

pytest.importorskip("gymnasium_robotics")

from gymnasium_robotics.utils.rotations import quat2euler

from dtune.envs.adroit import Door, Hammer, Pen
from dtune.envs.hand import euler_angles, load_hand
from dtune.envs.mujoco import MujocoSimulator
from dtune.envs.tasks import make_simulator
from dtune.errors import ConfigError, SimulatorError

WORLDS = {"door": Door, "hammer": Hammer, "pen": Pen}
FIELDS = {"door": "door_body_pos", "hammer": "board_pos", "pen": "desired_orien"}
every_world = pytest.mark.parametrize("name", WORLDS)
SEEDS = 6


def oracle(name):
    """Gymnasium-robotics' environment without its wrappers, with the contacts of MuJoCo < 3.5."""
    env = gymnasium.make(f"AdroitHand{name.title()}-v1", reward_type="dense", disable_env_checker=True).unwrapped
    env.model.geom_margin[:] *= 0.5
    return env


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def place_at(simulator, name, states):
    qpos, qvel, own = (np.stack([state[key] for state in states]) for key in ("qpos", "qvel", FIELDS[name]))
    return simulator.place(qpos, qvel, **{FIELDS[name]: own}).numpy()


def put(env, qpos, **own):
    """Puts `env` at rest at `qpos`, with nothing left of before."""
    state = env.get_env_state()
    state.pop("target_pos", None)  # which the setter refuses
    mujoco.mj_resetData(env.model, env.data)
    env.set_env_state(state | {"qpos": qpos, "qvel": np.zeros(env.model.nv)} | own)


def step_all(envs, actions):
    observations, rewards, terminated, *_ = zip(
        *(env.step(action) for env, action in zip(envs, actions.numpy(), strict=True)), strict=True
    )
    return np.stack(observations), np.array(rewards), np.array(terminated)


def assert_observed(name, ours, theirs):
    """Equal; for Pen but for rounding: there each episode divides by the pens' lengths as rotated, not by 0.13."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-15 if name == "pen" else 0)


def palm_distance(name, observations):
    """From the palm to the handle or the hammer."""
    way = observations[:, 35:38] if name == "door" else observations[:, 33:36] - observations[:, 36:39]
    return np.linalg.norm(way, axis=1)


def as_d4rl(name, observations, rewards):
    """Gymnasium-robotics' rewards with D4RL's sign of the palm's distance."""
    return rewards if name == "pen" else rewards - 0.2 * palm_distance(name, observations)


@every_world
def test_whole_episodes_of_random_actions_are_gymnasium_robotics_own(name):
    simulator = make_simulator(name)
    envs = [oracle(name) for _ in range(SEEDS)]
    first = np.stack([env.reset(seed=seed)[0] for seed, env in enumerate(envs)])
    assert_observed(name, place_at(simulator, name, [env.get_env_state() for env in envs]), first)
    generator = seeded()
    for _ in range(200):  # twice Pen's horizon
        actions = 2.2 * torch.rand(SEEDS, simulator.action_dim, generator=generator) - 1.1  # beyond the range as well
        ours = simulator.step(actions)
        observations, rewards, terminated = step_all(envs, actions)
        assert_observed(name, ours.observations.numpy(), observations)
        expected = as_d4rl(name, observations, rewards)
        np.testing.assert_allclose(ours.rewards.numpy(), expected, rtol=0, atol=2e-14)
        assert not terminated.any()
        assert not ours.faulty.any()
        assert ours.terminated.tolist() == [name == "pen" and env.data.body("Object").xpos[2] < 0.075 for env in envs]


def stage(name, rest, share):
    """A state `share` of the way through the task, past every bonus."""
    qpos = rest.copy()
    if name == "door":
        qpos[-2] = 1.5 * share  # the hinge
        return {"qpos": qpos}
    if name == "hammer":
        qpos[-7] = 0.09 * share  # the nail
        qpos[-5] = 0.3 * (share > 0.3)  # the hammer's height: its y axis points up
        qpos[-1] = -share * (share < 0.3)  # before, only its head is lifted
        return {"qpos": qpos}
    qpos[-2] = -np.pi * share  # past upright, which is wanted
    qpos[-6] = 0.25 * (share > 0.9)  # dropped: the pen's x axis points down
    return {"qpos": qpos, "desired_orien": np.array([1.0, 0, 0, 0])}


@every_world
def test_rewards_are_gymnasium_robotics_own_at_every_stage_of_the_task(name):
    simulator, env, count = make_simulator(name), oracle(name), 60
    actions = 2 * torch.rand(count, simulator.action_dim, generator=seeded()) - 1
    starts, observations, rewards = [], [], []
    for row, action in enumerate(actions):
        env.reset(seed=row)
        put(env, **stage(name, env.init_qpos, row / (count - 1)))
        starts.append(env.get_env_state())
        observed, reward, *_ = env.step(action.numpy())
        observations.append(observed)
        rewards.append(reward)
    place_at(simulator, name, starts)
    ours = simulator.step(actions)
    assert_observed(name, ours.observations.numpy(), np.stack(observations))
    expected = as_d4rl(name, np.stack(observations), np.array(rewards))
    np.testing.assert_allclose(ours.rewards.numpy(), expected, rtol=0, atol=2e-14)
    least, most, jumps = {"door": (-1, 19, 3), "hammer": (-2, 99, 3), "pen": (-5, 59, 5)}[name]
    assert ours.rewards.min() < least + 1
    assert ours.rewards.max() > most
    assert (ours.rewards.diff().abs() > 1.5).sum() >= jumps  # on the way every bonus came in


def test_a_struck_nail_is_felt():
    simulator, env = make_simulator("hammer"), oracle("hammer")
    env.reset(seed=0)
    nail, head = env.data.site("S_target"), env.data.site("tool")
    way = nail.xpos - 0.005 * nail.xmat[2::3] - head.xpos  # half a centimetre into the nail, along its axis
    qpos = env.init_qpos.copy()
    qpos[-6:-3] = env.data.body("Object").xmat.reshape(3, 3).T @ way
    put(env, qpos)
    place_at(simulator, "hammer", [env.get_env_state()])
    ours, theirs = simulator.step(torch.zeros(1, 26)), env.step(np.zeros(26, np.float32))
    assert ours.observations[0, -1] == 1  # however hard
    assert env.data.sensor("S_nail").data > 1
    assert np.array_equal(ours.observations[0].numpy(), theirs[0])


@pytest.mark.parametrize("name", ["door", "hammer"])
def test_the_palms_distance_is_charged_where_gymnasium_robotics_pays_it(name):
    simulator, env = make_simulator(name), oracle(name)
    env.reset(seed=0)
    place_at(simulator, name, [env.get_env_state()])
    action = torch.zeros(1, simulator.action_dim)
    ours, theirs = simulator.step(action), env.step(action[0].numpy())
    distance = palm_distance(name, ours.observations.numpy())[0]
    assert distance > 0.1
    assert theirs[1] - ours.rewards[0].item() == pytest.approx(0.2 * distance, abs=1e-14)


def test_a_dropped_pen_costs_5_and_ends_the_episode_and_only_here():
    simulator, env = make_simulator("pen"), oracle("pen")
    heights, outcomes = np.linspace(0.06, 0.09, 31), []
    for height in heights:
        env.reset(seed=0)
        qpos = env.init_qpos.copy()
        qpos[-6], qpos[-4] = 0.25 - height, 1.0  # beside the table, at rest; the pen's x axis points down
        put(env, qpos)
        place_at(simulator, "pen", [env.get_env_state()])
        ours, theirs = simulator.step(torch.zeros(1, 24)), env.step(np.zeros(24, np.float32))
        assert not theirs[2]
        observed = ours.observations[0].numpy()
        likeness, missed = observed[33:36] @ observed[36:39], np.linalg.norm(observed[39:42])
        penalty = likeness - missed - ours.rewards[0].item()
        outcomes.append((observed[26].item(), ours.terminated.item(), penalty))
    for height, terminated, penalty in outcomes:
        assert terminated == (height < 0.075)  # after 8 ms of falling
        assert penalty == pytest.approx(5 if terminated else 0, abs=1e-12)
    assert 5 < sum(terminated for _, terminated, _ in outcomes) < 26


@pytest.mark.parametrize(("name", "here", "there"), [("door", 200, 200), ("hammer", 200, 200), ("pen", 100, 200)])
def test_time_runs_out_when_d4rl_says(name, here, there):
    simulator = make_simulator(name)
    simulator.reset(3, seeded())
    still = torch.zeros(3, simulator.action_dim)
    outcomes = [simulator.step(still) for _ in range(here)]
    assert not torch.stack([outcome.terminated for outcome in outcomes]).any()  # a hand at rest holds the pen
    assert [outcome.truncated.all().item() for outcome in outcomes] == [False] * (here - 1) + [True]
    assert gymnasium.spec(f"AdroitHand{name.title()}-v1").max_episode_steps == there


@every_world
def test_the_world_is_gymnasium_robotics_with_half_its_margins(name):
    env, task = oracle(name), WORLDS[name]()
    model = task.model()
    for field in dir(model):
        value = getattr(model, field)
        # where the files lie is not part of the world: a link in their path makes it another
        if isinstance(value, np.ndarray) and not field.startswith("_") and not field.endswith("pathadr"):
            assert np.array_equal(value, getattr(env.model, field)), field
    assert model.geom_margin.max() == 0.0005 / 2
    assert env.frame_skip == task.frame_skip
    assert env.observation_space.shape == (task.observation_dim,)
    assert env.action_space.shape == (task.action_dim,)


def test_the_models_given_out_are_nobody_elses():
    changed = Door().model()
    changed.body_pos[:] = 0
    assert Door().model().body_pos.any()


@every_world
def test_going_back_mixes_episodes_of_different_worlds_at_different_times(name):
    simulator, steps = make_simulator(name), 60
    actions = 2 * torch.rand(steps, 3, simulator.action_dim, generator=seeded(9)) - 1
    resumed_at, snapshots, outcomes = (3, 20, 11), [], []
    simulator.reset(3, seeded())
    for step in range(steps):
        snapshots.append(simulator.snapshot())
        outcomes.append(simulator.step(actions[step]))
    order, other = [2, 0, 1, 1, 2], make_simulator(name)
    other.reset(8, seeded(5))
    other.restore(np.stack([snapshots[resumed_at[row]][row] for row in order]))
    for step in range(steps - max(resumed_at)):
        ours = other.step(torch.stack([actions[resumed_at[row] + step, row] for row in order]))
        for field, value in zip(ours._fields, ours, strict=True):
            expected = torch.stack([getattr(outcomes[resumed_at[row] + step], field)[row] for row in order])
            assert torch.equal(value, expected), (field, step)
    clocks = other.snapshot()[:, -1]
    assert clocks.tolist() == [resumed_at[row] + steps - max(resumed_at) for row in order]
    bodies = other._expanded[simulator.task.expanded[0]].reshape(5, -1)
    assert len(np.unique(bodies, axis=0)) == 3
    assert np.array_equal(bodies[[0, 2]], bodies[[4, 3]])


# Where contacts magnify it, float32 misses by more than the median, most of all for the pen, which rolls on many. Part
# of the misses is of the files' making: the human ones replay closer on MuJoCo 4.0.0, whose solver dtune refuses.
@pytest.mark.parametrize(
    ("file", "precise"),
    [
        ("door-human-v1", 0.99),
        ("door-cloned-v1", 0.99),
        ("hammer-human-v1", 0.98),
        ("hammer-cloned-v1", 0.98),
        ("pen-human-v1", 0.85),
        ("pen-cloned-v1", 0.85),
    ],
)
def test_recorded_steps_are_replayed_within_the_files_precision(file, precise):
    name = file.split("-")[0]
    with h5py.File(sample_file(f"adroit/{file}")) as data:
        ended = data["terminals"][:-1] | data["timeouts"][:-1]
        rows = np.flatnonzero(~ended)[::4]
        observations, rewards = data["observations"][:], data["rewards"][:]
        actions, infos = data["actions"][:], {key: values[:] for key, values in data["infos"].items()}
    simulator = make_simulator(name)
    assert set(infos) == {"qpos", "qvel", FIELDS[name]}
    qpos, qvel = infos["qpos"][rows].astype(np.float64), infos["qvel"][rows].astype(np.float64)
    simulator.place(qpos, qvel, **{FIELDS[name]: infos[FIELDS[name]][rows]})
    ours = simulator.step(torch.from_numpy(actions[rows]))
    missed = np.abs(ours.observations.numpy() - observations[rows + 1]).max(axis=1)
    assert np.median(missed) < 5e-7
    assert (missed < 1e-4).mean() > precise
    assert (missed < 1e-2).mean() > 0.99
    lost = np.abs(ours.rewards.numpy() - rewards[rows])
    assert np.median(lost) < 5e-7
    assert lost.max() < 1e-3


class Fixed:
    """Draws the same share of every range."""

    def __init__(self, share):
        self.share = share

    def uniform(self, low, high):
        return low + self.share * (high - low)


def own_field(env, name):
    return env.get_env_state()[FIELDS[name]]


@every_world
def test_episodes_start_in_gymnasium_robotics_ranges(name):
    env, simulator = oracle(name), make_simulator(name)
    env.reset(seed=0)
    rest = env.init_qpos, env.init_qvel
    simulator.reset(3, seeded())
    start = simulator.task.draw(simulator.model, 4000, seeded())
    assert np.array_equal(start.qpos, np.tile(rest[0], (4000, 1)))
    assert np.array_equal(start.qvel, np.tile(rest[1], (4000, 1)))
    bounds = []
    for share in (0.0, 1.0):
        env._np_random = Fixed(share)
        env.reset_model()
        bounds.append(drawn_numbers(name, own_field(env, name)[None])[0])
    drawn = drawn_numbers(name, start.memory[:, : len(own_field(env, name))])
    low, high = bounds
    moving = high - low > 1e-9
    assert moving.sum() == {"door": 3, "hammer": 1, "pen": 2}[name]
    assert np.allclose(drawn[:, ~moving], low[~moving], rtol=0, atol=1e-15)
    share = (drawn[:, moving] - low[moving]) / (high - low)[moving]
    assert share.min() > -1e-12
    assert share.max() < 1 + 1e-12
    assert np.allclose([share.min(axis=0), share.max(axis=0)], [[0], [1]], atol=3e-3)
    assert np.allclose([share.mean(axis=0), share.std(axis=0)], [[1 / 2], [12**-0.5]], atol=0.02)
    correlation = np.atleast_2d(np.corrcoef(share, rowvar=False))
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.05


def drawn_numbers(name, values):
    """Positions as they are; of a quaternion, the two angles it was made of, and what they leave of its last number."""
    if name != "pen":
        return values
    w, x, y, z = values.T
    return np.stack((2 * np.arctan2(x, w), 2 * np.arctan2(y, w), z - x * y / w), axis=1)


def test_euler_angles_are_gymnasium_robotics_own():
    quaternions = np.random.default_rng(0).normal(size=(500, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    half_turns = np.eye(4)
    c, s = np.sqrt(0.5) * np.cos(np.linspace(-1.5, 1.5, 99)), np.sqrt(0.5) * np.sin(np.linspace(-1.5, 1.5, 99))
    upright = np.stack((c, s, c, s), axis=1)  # by a right angle about y, where the other two are one
    for some in (quaternions, half_turns, upright):
        assert np.array_equal(euler_angles(some), quat2euler(some))
    assert (euler_angles(upright)[:, 0] == 0).mean() > 0.5


@every_world
def test_what_is_placed_is_what_was_recorded(name):
    simulator = make_simulator(name)
    simulator.reset(3, seeded())
    task, model = simulator.task, simulator.model
    own = task.draw(model, 4, seeded(3)).memory[:, : 4 if name == "pen" else 3]
    rest, still = np.tile(model.qpos0, (4, 1)), np.zeros((4, model.nv))
    fields = {FIELDS[name]: own} | ({"target_pos": np.zeros((4, 3))} if name == "hammer" else {})
    observations = simulator.place(rest, still, **fields)
    assert torch.equal(observations, simulator.reset(4, seeded(3)))
    assert len(np.unique(observations, axis=0)) == 4


@every_world
def test_fields_that_do_not_fit_are_refused_in_a_sentence(name):
    simulator, field, size = make_simulator(name), FIELDS[name], 4 if name == "pen" else 3
    rest, still = simulator.model.qpos0[None], np.zeros((1, simulator.model.nv))
    with pytest.raises(ConfigError, match=f"{field} is missing"):
        simulator.place(rest, still)
    with pytest.raises(ConfigError, match=f"goal cannot be placed: this task's states are qpos, qvel and {field}"):
        simulator.place(rest, still, goal=np.zeros((1, 2)), **{field: np.zeros((1, size))})
    with pytest.raises(SimulatorError, match=rf"{field} has shape \(1, 2\), but 1 rows of {size} numbers"):
        simulator.place(rest, still, **{field: np.zeros((1, 2))})
    with pytest.raises(SimulatorError, match=f"{field} holds NaN"):
        simulator.place(rest, still, **{field: np.full((1, size), np.nan)})


@every_world
def test_without_the_models_the_way_out_is_named(name, monkeypatch):
    monkeypatch.setattr("dtune.envs.hand.find_spec", lambda package: None)
    load_hand.cache_clear()  # of what was found before
    with pytest.raises(ConfigError, match=r"pip install 'dtune\[adroit\]'"):
        make_simulator(name)


def test_the_models_are_loaded_without_running_their_package(monkeypatch):
    for module in [module for module in sys.modules if module.startswith("gymnasium_robotics")]:
        monkeypatch.delitem(sys.modules, module)
    load_hand.cache_clear()
    assert Pen().model().nu == 24
    assert "gymnasium_robotics" not in sys.modules


@every_world
def test_a_step_that_mujoco_gave_up_before_any_pose_warns_nobody(name):
    task = WORLDS[name]()
    simulator = MujocoSimulator(task)
    simulator.reset(2, seeded())
    nothing = {field: np.zeros_like(simulator._derived[field]) for field in task.derived}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert task.remember(np.zeros((2, task.memory_dim)), nothing).shape == (2, task.memory_dim)
