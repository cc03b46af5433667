"""Gymnasium environments for tests: small ones, and some with one thing wrong each."""

import os
import signal
import threading
import time
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.wrappers import TimeLimit

HORIZON = 12
LATE = 3.0
"""Seconds."""


def limited(env: gymnasium.Env, horizon: int = HORIZON) -> gymnasium.Env:
    return TimeLimit(env, horizon)


class Drift(gymnasium.Env):
    """A point pushed along a line, with wind: remembers in a number, an array, a dict, a list and a helper."""

    def __init__(self, low=-2.0, high=4.0):
        self.observation_space = Box(-np.inf, np.inf, (1, 2), np.float32)
        self.action_space = Box(low, high, (1,), np.float32)
        self.wind = Wind()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, size=2)
        self.pushes, self.notes, self.last = 0, {"far": False, "where": [0.0, 0.0]}, None
        self.wind.speed = float(self.np_random.normal())
        return self._see(), {}

    def step(self, action):
        self.last = action
        self.wind.speed = 0.9 * self.wind.speed + 0.1 * self.np_random.normal()
        push = 0.1 * action[0] + 0.01 * self.wind.speed
        self.place = self.place + np.array((push, 0.02 * self.pushes))
        self.pushes += 1
        self.notes["far"] = bool(abs(self.place[0]) > 1.5)
        self.notes["where"][0] += abs(float(self.place[0]))
        return self._see(), -self.notes["where"][0], self.notes["far"], False, {}

    def _see(self):
        return self.place[None].astype(np.float32)


class Wind:
    speed = 0.0


def drift():
    return limited(Drift())


class Brittle(Drift):
    """Breaks whenever it is pushed as hard as can be."""

    def step(self, action):
        if action[0] == self.action_space.high[0]:
            raise ValueError("too hard a push")
        return super().step(action)


def brittle():
    return limited(Brittle())


class Mute(Drift):
    """Remembers in a lock, which cannot be copied."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


def mute():
    return limited(Mute())


class Closure(Drift):
    """Remembers in a function."""

    def reset(self, *, seed=None, options=None):
        sight = super().reset(seed=seed)
        self.tick = counter()
        return sight

    def step(self, action):
        sight, _, *others = super().step(action)
        return sight, float(self.tick()), *others


def counter():
    count = 0

    def tick():
        nonlocal count
        count += 1
        return count

    return tick


def closure():
    return limited(Closure())


class Careless(Drift):
    """Draws from elsewhere than its own generator."""

    def step(self, action):
        sight, reward, *others = super().step(action)
        return sight, reward + time.perf_counter(), *others


def careless():
    return limited(Careless())


class Shapely(gymnasium.Env):
    """Has any spaces."""

    def __init__(self, observations=None, actions=None):
        self.observation_space = Box(-1, 1, (2,)) if observations is None else observations
        self.action_space = Box(-1, 1, (2,)) if actions is None else actions

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        assert action.dtype == self.action_space.dtype
        assert action.shape == self.action_space.shape
        return np.append(action, [0, 0]).astype(np.float32)[:2], 0.0, False, False, {}


DISCRETE, NESTED = Discrete(3), Dict({"a": Box(-1, 1, (2,))})


class Broken(Drift):
    """Shows NaN, as an observation or as a reward, at the third step of episodes that start on the right."""

    def __init__(self, reward=False):
        super().__init__()
        self.in_reward = reward

    def step(self, action):
        sight, reward, *others = super().step(action)
        if self.pushes == 3 and self.place[0] > 0:
            return (sight, np.nan, *others) if self.in_reward else (sight * np.nan, reward, *others)
        return sight, reward, *others


_SIGNALS = {"stop": signal.SIGSTOP, "kill": signal.SIGKILL, "segv": signal.SIGSEGV}


class Fuse(gymnasium.Wrapper):
    """Fails, or is late, at its `step`-th step while `fuse`, a file, is there; burns it down, one byte a failure."""

    def __init__(self, env, fuse, how, step):
        super().__init__(env)
        self.fuse, self.how, self.at, self.taken = Path(fuse), how, step, 0

    def reset(self, **options):
        self.taken = 0
        return super().reset(**options)

    def step(self, action):
        self.taken += 1
        if self.taken == self.at and self.fuse.exists() and (left := self.fuse.read_bytes()):
            self.fuse.write_bytes(left[1:])
            if self.how == "raise":
                raise ValueError("the rope broke")
            if self.how == "exit":
                os._exit(3)
            if self.how == "hang":
                time.sleep(100)
            if self.how == "late":
                time.sleep(LATE)
            else:
                os.kill(os.getpid(), _SIGNALS[self.how])
        return super().step(action)


class Shifty(InvertedPendulumEnv):
    """Moves the pole's body in the model at each reset, and tires: the gear falls with each step."""

    def reset_model(self):
        self.model.body_pos[-1, 2] = self.np_random.uniform(-0.1, 0.1)
        self.model.actuator_gear[:] = 100
        return super().reset_model()

    def step(self, action):
        self.model.actuator_gear[:] *= 0.99
        return super().step(action)


def shifty():
    return limited(Shifty())


def hopper():
    return gymnasium.make("Hopper-v5")


def get_half(env):
    """What is often taken for a MuJoCo environment's state."""
    data = env.unwrapped.data
    return [data.time, data.qpos.copy(), data.qvel.copy()]


def set_half(env, state):
    world = env.unwrapped
    world.data.time = state[0]
    world.set_state(*state[1:])


def get_physics(env):
    """All but the fields of the model."""
    world = env.unwrapped
    state = np.empty(mujoco.mj_stateSize(world.model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(world.model, world.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    return state


def set_physics(env, state):
    world = env.unwrapped
    mujoco.mj_setState(world.model, world.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)


def get_drift(env, without=()):
    """All of `Drift`, or not quite."""
    world = env.unwrapped
    state = {
        "place": world.place, "pushes": world.pushes, "notes": world.notes, "speed": world.wind.speed,
        "random": world.np_random.bit_generator.state,
    }  # fmt: skip
    return {name: value for name, value in state.items() if name not in without}


def set_drift(env, state):
    world = env.unwrapped
    if "random" in state:
        world.np_random.bit_generator.state = state["random"]
    for name in state.keys() & {"place", "pushes", "notes"}:
        setattr(world, name, state[name])
    world.wind.speed = state["speed"]
