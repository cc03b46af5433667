"""Trying an environment when its simulator is made: what it is, and whether one can go back in it exactly."""

import copy
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64

from dtune.envs.attributes import NotPlainError, width_for
from dtune.envs.copies import Copy, Facts, Recipe
from dtune.envs.physics import model_fields, moving_fields
from dtune.errors import ConfigError, SimulatorError

_SEEDS = (1, 2)  # of the episodes tried
_STEPS = 40  # tried of each
_POINTS = (0, 1, 6, 15)  # steps that are gone back to
_AHEAD = 25  # steps compared from there
_STARTS = 8  # resets after which the model is looked at

_MOST_NAMED = 6

Sight = tuple[bytes, float, bool, bool, bool]


class _Walk(NamedTuple):
    """An episode of random actions and what is needed to walk parts of it again."""

    actions: list[Float32[np.ndarray, "action"]]
    sights: list[Sight]
    saved: dict[int, Float64[np.ndarray, "width"]]
    named: dict[int, dict[str, str]]
    text: str  # the longest of what Python remembered


def examine(recipe: Recipe) -> Facts:
    """Makes two copies, walks them, goes back with one to where the other was, and compares.

    Raises:
        SimulatorError: if nothing here can work with its actions or observations.
        ConfigError: if it has no time limit, or only one of `get_state` and `set_state` is there.
    """
    if (recipe.get_state is None) != (recipe.set_state is None):
        raise ConfigError("get_state and set_state belong together: give both, or neither.")
    first = Copy(recipe)
    assert first.horizon is not None
    facts = Facts(
        observation_dim=first.reset(0).size,
        action_dim=int(np.prod(first.env.action_space.shape or ())),
        horizon=first.horizon,
        fields=_moving(recipe, first),
    )
    first.env.close()
    one, other = Copy(recipe, facts), Copy(recipe, facts)
    try:
        return _examine_restoring(one, other, facts)
    finally:
        one.env.close()
        other.env.close()


def _examine_restoring(one: Copy, other: Copy, facts: Facts) -> Facts:
    refusal = _refusal_to_copy(one)
    if refusal:
        return replace(facts, refusal=refusal)
    try:
        text = max((_walk(one, facts, seed).text for seed in _SEEDS), key=len)
        one.facts = other.facts = facts = replace(facts, text_width=width_for(text))
        facts = replace(facts, width=one.save().size)
        wrong = next(filter(None, (_wrong(one, other, facts, seed) for seed in _SEEDS)), "")
    except NotPlainError as error:
        wrong = f"get_state gave a {error}, where numbers, arrays, text and lists of them can be kept"
    except SimulatorError as error:
        wrong = str(error).rstrip(".")
    return replace(facts, width=0, refusal=wrong) if wrong else facts


def _moving(recipe: Recipe, tried: Copy) -> tuple[str, ...]:
    """Fields of a MuJoCo model that resets and steps change."""
    if tried.physics is None or recipe.get_state is not None:
        return ()
    model, found = tried.physics.model, set[str]()
    before = model_fields(model)
    for seed in range(1, _STARTS + 1):
        tried.reset(seed)
        found |= moving_fields(before, model)
    for action in _actions(tried, 0):
        tried.step(action)
    return tuple(sorted(found | moving_fields(before, model)))


def _refusal_to_copy(one: Copy) -> str:
    """Why Python cannot copy an environment: what it holds then is outside of what attributes say."""
    if one.physics is not None or one.given:
        return ""
    try:
        copy.deepcopy(one.env)
    except Exception as error:  # anything may be raised there
        return f"it cannot be deep-copied ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    return ""


def _actions(one: Copy, seed: int) -> Float32[np.ndarray, "steps action"]:
    size = int(np.prod(one.env.action_space.shape or ()))
    return np.random.default_rng(seed).uniform(-1, 1, (_STEPS, size)).astype(np.float32)


def _walk(one: Copy, facts: Facts, seed: int) -> _Walk:
    start = one.reset(seed)
    walk = _Walk([], [(start.tobytes(), 0.0, False, False, False)], {}, {}, one.remembered())
    for step, action in enumerate(_actions(one, seed)[: facts.horizon]):
        if facts.width and step in _POINTS:
            walk.saved[step], walk.named[step] = one.save(), one.named()
        sight = _see(one, action)
        walk.actions.append(action)
        walk.sights.append(sight)
        walk = walk._replace(text=max(walk.text, one.remembered(), key=len))
        if sight[2] or sight[3]:
            break
    return walk


def _see(one: Copy, action: Float32[np.ndarray, "action"]) -> Sight:
    observation, reward, *flags = one.step(action)
    terminated, truncated, faulty = flags
    return observation.tobytes(), reward, terminated, truncated, faulty


def _wrong(one: Copy, other: Copy, facts: Facts, seed: int) -> str:
    """Why going back along the episode of `seed` is not exact; empty where it is."""
    walk = _walk(one, facts, seed)
    if _walk(other, replace(facts, width=0), seed).sights != walk.sights:
        return (
            "two episodes of one seed and the same actions differ: whatever is random has to come from the "
            "environment's np_random"
        )
    for copied in (other, one):
        for point, saved in walk.saved.items():
            copied.reset(seed + 1000)
            for action in walk.actions[: point + 3]:
                if any(_see(copied, -action)[2:4]):
                    break
            copied.load(saved)
            named = copied.named()
            ahead = walk.actions[point : point + _AHEAD]
            if [_see(copied, action) for action in ahead] != walk.sights[point + 1 : point + 1 + len(ahead)]:
                return _blame(walk.named[point], named, point)
        if copied.reset(seed).tobytes() != walk.sights[0][0]:
            return "after going back, a reset with the same seed starts another episode than before"
    return ""


def missing_parts(wanted: dict[str, str], got: dict[str, str]) -> str:
    """What differs between a state and the same state gone back to, by name; empty where nothing named does."""
    differing = [name for name in wanted if got.get(name) != wanted[name]]
    differing += [f"{name} (left over)" for name in got.keys() - wanted.keys()]
    return ", the ".join(differing[:_MOST_NAMED])


def _blame(wanted: dict[str, str], got: dict[str, str], point: int) -> str:
    missing = missing_parts(wanted, got)
    opaque = [name for name, text in wanted.items() if text.startswith('{"object"')]
    if missing:
        what = f"it misses the {missing}"
    elif opaque:
        what = f"what it misses is outside of its attributes, perhaps in the {', the '.join(opaque[:_MOST_NAMED])}"
    else:
        what = "what it misses is outside of its attributes"
    return f"going back to step {point} is not exact: {what}"
