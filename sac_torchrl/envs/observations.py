"""Observation spaces: the leaves that an agent sees, and how an observation becomes those leaves."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Space

from sac_torchrl.errors import ConfigError, nearest, short

log = logging.getLogger(__name__)

# An 8-bit Box with two sides of so many entries holds a picture. Fewer are symbols, as in MiniGrid's (7, 7, 3).
PICTURE_SIDE = 16

_Adapt = Callable[[Any], Any]
_Path = tuple[str | int, ...]


def adapt_observation(space: Space[Any], id: str, ignore: Sequence[str] = ()) -> tuple[Space[Any], _Adapt]:
    """The agent's observation spec for a space, and the function that converts observations; raises ConfigError.

    A Box, whatever its shape, and a MultiBinary are float32 vectors `(n,)`, a Discrete is an int64 index `()` from 0
    and a MultiDiscrete indices `(n,)`. A Dict or Tuple is a Dict of such leaves without those that `ignore` names; a
    leaf is called by its key or position, one inside another by both with a dot between.
    """
    if not isinstance(space, (gym.spaces.Dict, gym.spaces.Tuple)):
        if ignore:
            raise ConfigError(f"env.ignore={list(ignore)}: env.id={id} observes {short(space)}, which has no leaves.")
        return _adapt_leaf(space, id, "", others=False)
    leaves = named_leaves(space)
    if len(leaves) < sum(1 for _ in every_leaf(space)):
        raise ConfigError(f"env.id={id}: two leaves of its observation have the same name, of {', '.join(leaves)}.")
    unknown = [name for name in ignore if not any(_within(leaf, name) for leaf in leaves)]
    if unknown:
        raise ConfigError(
            f"env.ignore={list(ignore)}: env.id={id} observes no {unknown[0]}{nearest(unknown[0], leaves)}"
        )
    kept = {name: leaf for name, leaf in leaves.items() if not any(_within(name, one) for one in ignore)}
    if not kept:
        raise ConfigError(
            f"env.ignore={list(ignore)} leaves nothing to observe in env.id={id}: keep one of {list(leaves)}."
        )
    adapted = {name: _adapt_leaf(leaf, id, name, others=len(kept) > 1) for name, (_, leaf) in kept.items()}

    def by_name(observation: Any) -> dict[str, Any]:
        seen = {}
        for name, (_, adapt) in adapted.items():
            value = leaf_at(observation, kept[name][0])
            try:
                seen[name] = adapt(value)
            except (TypeError, ValueError) as error:
                raise type(error)(f"with {name} {short(repr(value))}, {error}") from error
        return seen

    return gym.spaces.Dict({name: leaf for name, (leaf, _) in adapted.items()}), by_name


def named_leaves(space: Space[Any]) -> dict[str, tuple[_Path, Space[Any]]]:
    """The leaves of a Dict or Tuple by the names that the agent has for them, each with the way to it."""
    return {leaf_name(path): (path, leaf) for path, leaf in every_leaf(space)}


def every_leaf(space: Space[Any], path: _Path = ()) -> Iterator[tuple[_Path, Space[Any]]]:
    """The leaves of a Dict or Tuple, each with the way to it."""
    if isinstance(space, gym.spaces.Dict):
        for key, inner in space.spaces.items():
            yield from every_leaf(inner, (*path, key))
    elif isinstance(space, gym.spaces.Tuple):
        for index, inner in enumerate(space.spaces):
            yield from every_leaf(inner, (*path, index))
    else:
        yield path, space


def leaf_name(path: _Path) -> str:
    """The name of the leaf at the end of a path."""
    # A slash would nest the leaf when it is saved.
    return ".".join(str(key) for key in path).replace("/", ".")


def _within(leaf: str, name: str) -> bool:
    return leaf == name or leaf.startswith(f"{name}.")


def leaf_at(observation: Any, path: _Path) -> Any:
    """The leaf of an observation at the end of a path; raises ValueError where there is none."""
    for key in path:
        try:
            observation = observation[key]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"which has no {leaf_name(path)}") from error
    return observation


def _adapt_leaf(space: Space[Any], id: str, name: str, *, others: bool) -> tuple[Space[Any], _Adapt]:
    if isinstance(space, Discrete):
        return _index(int(space.start), int(space.n))
    if isinstance(space, MultiDiscrete) and space.nvec.size:
        return _indices(space)
    numbers = isinstance(space, (Box, MultiBinary)) and math.prod(space.shape or ()) > 0
    if numbers and not _is_picture(space):
        return _vector(space, id, name)
    what = f"the observation `{name}`" if name else "the observation space"
    shape = space.shape or ()
    if numbers:
        small = "{ResizeObservation: {shape: [12, 12]}}, " if len(shape) == 2 or shape[-1] in (1, 3, 4) else ""
        kind = f"images of shape {shape}, which no network here reads"
        advice = f"env.wrappers=[{small}FlattenObservation] makes one vector of numbers of each"
    else:
        kind = "neither numbers nor indices"
        advice = "give a wrapper from env.plugins that turns it into numbers as env.wrappers=[NAME]"
    if others:
        advice = f"env.ignore=[{name}] leaves it out"
    raise ConfigError(f"env.id={id}: {what} is {short(space)}, {kind}: {advice}.")


def _is_picture(space: Space[Any]) -> bool:
    shape = space.shape or ()
    return space.dtype == np.uint8 and isinstance(space, Box) and len(shape) > 1 and sorted(shape)[-2] >= PICTURE_SIDE


def _index(first: int, count: int) -> tuple[Space[Any], _Adapt]:
    def index(value: Any) -> int:
        if not isinstance(value, (int, np.integer)) and getattr(value, "shape", None) != ():
            raise TypeError("which is no index")
        if not 0 <= int(value) - first < count:
            raise ValueError(f"which is not one of {first} to {first + count - 1}")
        return int(value) - first

    return Discrete(count), index


def _indices(space: MultiDiscrete) -> tuple[Space[Any], _Adapt]:
    shape, first, counts = space.shape, space.start, space.nvec

    def indices(value: Any) -> Any:
        array = np.asarray(value)
        if array.dtype.kind not in "iub":
            raise TypeError("which holds no indices")
        if array.shape != shape:
            raise ValueError(f"of shape {array.shape}, not {shape}")
        array = array.astype(np.int64) - first
        if ((array < 0) | (array >= counts)).any():
            raise ValueError(f"which is outside of {short(space)}")
        return array.reshape(-1)

    return MultiDiscrete(counts.reshape(-1)), indices


def _vector(space: Space[Any], id: str, name: str) -> tuple[Space[Any], _Adapt]:
    shape = space.shape or ()
    size = math.prod(shape)
    observed = f"{id} ({name})" if name else id
    known = {space.dtype}  # the name of a dtype takes as long as all the rest

    def vector(value: Any) -> Any:
        given = np.asarray(value).dtype
        if given.kind not in "fiub":
            raise TypeError("which holds no real numbers")
        if given not in known:
            known.add(given)
            _tell_of_cast(observed, given.name, str(space.dtype))
        array = np.array(value, np.float32)
        if array.shape != shape:
            raise ValueError(f"of shape {array.shape}, not {shape}")
        if not math.isfinite(np.vdot(array, array)) and not np.isfinite(array).all():  # the product may be infinite
            raise ValueError(f"which is not finite at index {int(np.isfinite(array).argmin())}")
        return array.reshape(size)

    # The bounds are dropped: many declare them wrongly and nothing is trained on them.
    return Box(-np.inf, np.inf, (size,), np.float32), vector


@cache
def _tell_of_cast(id: str, given: str, declared: str) -> None:
    """Log it once in a process."""
    log.info("env.id=%s observes %s, where its space says %s: the agent sees float32", id, given, declared)


def observed_leaves(space: Space[Any], ignore: Sequence[str] = ()) -> dict[str, tuple[_Path, Space[Any]]]:
    """Path and space of each leaf that the agent sees, by its name; of anything but a Dict or Tuple, "observation"."""
    if not isinstance(space, (gym.spaces.Dict, gym.spaces.Tuple)):
        return {"observation": ((), space)}
    return {name: leaf for name, leaf in named_leaves(space).items() if not any(_within(name, one) for one in ignore)}
