"""Copies of one Gymnasium environment in one process: stepping them, and going back in them. Knows no torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.wrappers import TimeLimit
from jaxtyping import Bool, Float32, Float64, Int64

from dtune.envs.attributes import Attributes, from_text, pack, to_text, unpack
from dtune.envs.physics import Physics
from dtune.errors import ConfigError, SimulatorError

_FOREVER = 2**60


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to make a copy."""

    make: Callable[[], gymnasium.Env]
    """Makes one environment, wrappers included."""
    get_state: Callable[[Any], Any] | None = None
    """Takes an environment; gives numbers, arrays, text, or lists, tuples and dicts of them."""
    set_state: Callable[[Any, Any], None] | None = None
    """Takes an environment and what `get_state` gave."""
    horizon: int | None = None
    """Steps in an episode; None: what the environment's own time limit says."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What trying an environment told; the same for all its copies."""

    observation_dim: int
    """Numbers in one observation."""
    action_dim: int
    """Numbers in one action."""
    horizon: int
    """Steps in an episode."""
    fields: tuple[str, ...] = ()
    """Fields of a MuJoCo model that change while it runs."""
    text_width: int = 0
    """Numbers that hold what Python remembers."""
    width: int = 0
    """Numbers in a saved state; 0 where it cannot be gone back in."""
    refusal: str = ""
    """Why it cannot be gone back in; empty where it can."""


class Stepped(NamedTuple):
    """One step of some copies, a row each. Faulty rows show zeros and are terminated."""

    observations: Float64[np.ndarray, "rows obs"]
    rewards: Float64[np.ndarray, "rows"]
    terminated: Bool[np.ndarray, "rows"]
    truncated: Bool[np.ndarray, "rows"]
    faulty: Bool[np.ndarray, "rows"]


class Copy:
    """One environment.

    Args:
        recipe: how it is made.
        facts: what is known of it; None while that is still to be found.
    """

    def __init__(self, recipe: Recipe, facts: Facts | None = None) -> None:
        self.env, self.horizon = recipe.make(), recipe.horizon
        if not isinstance(self.env, gymnasium.Env):
            raise ConfigError(f"the callable made a {type(self.env).__name__} instead of a gymnasium.Env.")
        self._box = _action_box(self.env)
        _observation_box(self.env)
        self._take_the_clock()
        self._recipe, self.facts = recipe, facts
        self.physics = Physics.of(self.env, facts.fields if facts else ())
        self.given = recipe.get_state is not None
        self._before, self._action = np.zeros(0), np.zeros(self._box.shape, self._box.dtype)
        self.reset(0)
        self.attributes = Attributes(self.env)

    def reset(self, seed: int) -> Float64[np.ndarray, "obs"]:
        """Starts an episode."""
        observation, _ = self.env.reset(seed=seed)
        self._seed, self._moved = seed, False
        return self._flat(observation)

    def step(self, action: Float32[np.ndarray, "action"]) -> tuple[Float64[np.ndarray, "obs"], float, bool, bool, bool]:
        """One step with an action in [-1, 1]: observation, reward, terminated, truncated, faulty."""
        sound = bool(np.isfinite(action).all())
        chosen = self._scaled(action if sound else np.zeros_like(action))
        if self.physics is not None:
            self.physics.forget_warnings()
            self._before, self._action, self._moved = self.physics.save(), chosen.copy(), True
        observation, reward, terminated, truncated, _ = self.env.step(chosen)
        seen, earned = self._flat(observation), float(reward)
        if self.physics is not None:
            sound = sound and not self.physics.warned()
        if not (sound and np.isfinite(seen).all() and np.isfinite(earned)):
            return np.zeros_like(seen), 0.0, True, False, True
        return seen, earned, bool(terminated), bool(truncated) and not terminated, False

    def remembered(self) -> str:
        """What Python remembers, as JSON."""
        return to_text(self._recipe.get_state(self.env)) if self._recipe.get_state else self.attributes.save()

    def save(self) -> Float64[np.ndarray, "width"]:
        """All that is needed to go on from here, in this copy or another."""
        assert self.facts is not None
        text = pack(self.remembered(), self.facts.text_width)
        if self.physics is None or self.given:
            return text
        now = self.physics.save()
        before = self._before if self._moved else now
        # float32 to float64 and back is exact
        action = np.asarray(self._action, np.float64).ravel()
        return np.concatenate(([self._seed, self._moved], now, before, action, text))

    def load(self, row: Float64[np.ndarray, "width"]) -> None:
        """Goes on from what `save` gave."""
        assert self.facts is not None
        text = unpack(row[-self.facts.text_width :])
        if self._recipe.set_state is not None:
            self._recipe.set_state(self.env, from_text(text))
        elif self.physics is None:
            self.attributes.load(text)
        else:
            self._load_physics(self.physics, row, text)

    def _load_physics(self, physics: Physics, row: Float64[np.ndarray, "width"], text: str) -> None:
        """Rules also read what MuJoCo derives (`xpos`, `cfrc_ext`), which no state holds and which lags a substep.

        Doing the last step, or the reset, once more brings it back to the last bit; then comes the state itself.
        """
        splits = np.cumsum((2, physics.size, physics.size, self._action.size))
        (seed, moved), now, before, action, _ = np.split(row, splits)
        self._seed, self._moved = int(seed), bool(moved)
        self._before, self._action = before, action.reshape(self._action.shape).astype(self._action.dtype)
        self.attributes.load(text)
        if self._moved:
            physics.load(before)
            self.env.step(self._action.copy())
        else:
            self.env.reset(seed=self._seed)
        physics.load(now)
        self.attributes.load(text)

    def named(self) -> dict[str, str]:
        """All that could be part of the state, as text by name."""
        named = self.attributes.named()
        for name in ("clock elapsed_steps", "attribute np_random_seed"):  # of Gymnasium's own: nothing here reads them
            named.pop(name, None)
        return named | (self.physics.named() if self.physics is not None else {})

    def _take_the_clock(self) -> None:
        """Finds the horizon, and keeps Gymnasium's wrapper from ending episodes: going back moves the clock."""
        limits, env = [], self.env
        while isinstance(env, gymnasium.Wrapper):
            if isinstance(env, TimeLimit):
                limits.append(env._max_episode_steps)
                env._max_episode_steps = _FOREVER
            env = env.env
        spec = self.env.spec
        if not limits and spec is not None and spec.max_episode_steps is not None:
            limits.append(spec.max_episode_steps)
        if self.horizon is None:
            if not limits:
                raise ConfigError(
                    "the environment has no time limit: say after how many steps (--horizon, in Python horizon=)."
                )
            self.horizon = min(limits)

    def _scaled(self, action: Float32[np.ndarray, "action"]) -> np.ndarray:
        """From [-1, 1] into the box, which a box of [-1, 1] leaves as it is."""
        low, high = self._box.low.astype(np.float64).ravel(), self._box.high.astype(np.float64).ravel()
        middle, half = (low + high) / 2, (high - low) / 2
        scaled = np.clip(middle + half * np.clip(action.astype(np.float64), -1, 1), low, high)
        return scaled.reshape(self._box.shape).astype(self._box.dtype)

    def _flat(self, observation: Any) -> Float64[np.ndarray, "obs"]:
        flat = np.array(observation, np.float64).ravel()
        wanted = int(np.prod(self.env.observation_space.shape or ()))
        if flat.size != wanted:
            raise SimulatorError(f"an observation has {flat.size} numbers where its space says {wanted}.")
        return flat


class Copies:
    """The copies of one process, numbered from 0 and made when first needed.

    Args:
        recipe: how one is made.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._facts: Facts | None = None
        self._copies: list[Copy] = []

    def learn(self) -> Facts:
        """Tries the environment, to find out what it is and whether one can go back in it."""
        from dtune.envs.trial import examine

        return examine(self._recipe)

    def prepare(self, facts: Facts) -> None:
        """Takes over what was found; comes before all else."""
        self._facts = facts

    def reset(self, seeds: Sequence[int]) -> Float64[np.ndarray, "rows obs"]:
        """Starts an episode in copies 0, 1, …, one a seed."""
        self._make_room(len(seeds))
        return self._rows([copy.reset(seed) for copy, seed in zip(self._copies, seeds)])

    def step(self, copies: Int64[np.ndarray, "rows"], actions: Float32[np.ndarray, "rows action"]) -> Stepped:
        """One step of each of `copies`."""
        stepped = [self._copies[copy].step(action) for copy, action in zip(copies, actions)]
        observations, rewards, *flags = zip(*stepped) if stepped else ([], [], [], [], [])
        return Stepped(
            self._rows(observations), np.array(rewards, np.float64), *(np.array(flag, bool) for flag in flags)
        )

    def save(self, copies: Int64[np.ndarray, "rows"]) -> Float64[np.ndarray, "rows width"]:
        """The states of `copies`."""
        assert self._facts is not None
        return np.array([self._copies[copy].save() for copy in copies]).reshape(-1, self._facts.width)

    def load(self, states: Float64[np.ndarray, "rows width"]) -> None:
        """Goes on from `states` in copies 0, 1, …"""
        self._make_room(len(states))
        for copy, state in zip(self._copies, states):
            copy.load(state)

    def named(self, copies: Int64[np.ndarray, "rows"]) -> list[dict[str, str]]:
        """All that could be part of the state of each, as text by name."""
        return [self._copies[copy].named() for copy in copies]

    def close(self) -> None:
        """Closes the environments."""
        for copy in self._copies:
            copy.env.close()
        self._copies = []

    def _make_room(self, count: int) -> None:
        while len(self._copies) < count:
            self._copies.append(Copy(self._recipe, self._facts))

    def _rows(self, observations: Sequence[np.ndarray]) -> Float64[np.ndarray, "rows obs"]:
        assert self._facts is not None
        return np.array(observations, np.float64).reshape(-1, self._facts.observation_dim)


def _action_box(env: gymnasium.Env) -> gymnasium.spaces.Box:
    space = env.action_space
    if not isinstance(space, gymnasium.spaces.Box):
        raise SimulatorError(
            f"actions of {_name(env)} are a {type(space).__name__}, but a decision transformer here acts with real "
            "numbers: choose an environment whose action space is a Box."
        )
    if space.dtype is None or space.dtype.kind != "f":
        raise SimulatorError(f"actions of {_name(env)} are whole numbers, which cannot be scaled: use a Box of floats.")
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise SimulatorError(
            f"the action space of {_name(env)} has no bounds, so [-1, 1] cannot be scaled to it: give its "
            "Box finite bounds, as gymnasium.wrappers.TransformAction does."
        )
    return space


def _observation_box(env: gymnasium.Env) -> None:
    space = env.observation_space
    if not isinstance(space, gymnasium.spaces.Box):
        raise SimulatorError(
            f"observations of {_name(env)} are a {type(space).__name__}, but a row of numbers is needed: wrap it in "
            "gymnasium.wrappers.FlattenObservation, which makes a Box of it."
        )


def _name(env: gymnasium.Env) -> str:
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__
