"""Action spaces: the agent's spec for a space, and how the agent's action becomes the environment's."""

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple

from sac_torchrl.envs.masks import action_counts
from sac_torchrl.envs.observations import every_leaf, leaf_name
from sac_torchrl.errors import RECOVER, ConfigError, LearnerFault, short

S = TypeVar("S", bound=Space[Any])

# Bounds beyond this mean that there are none.
SENSIBLE = 1e6
_INTEGERS = "not one of floating point numbers"
_FEW = 8


def adapt_action(
    space: Space[Any], id: str, bounds: tuple[float, float] | None = None, *, bins: int | None = None
) -> tuple[Space[Any], Callable[[Any], Any]]:
    """The agent's action spec for a space, and the function from its action to the environment's; raises ConfigError.

    `bounds` replace bounds that are infinite or beyond a million. With `bins` each dimension of a Box has that many
    values, evenly spaced from its lower to its upper bound (Seyde et al. 2023, arXiv 2210.12566). The agent's actions
    are flat, whatever the shape. A Dict or Tuple of such spaces, nested too, is one vector or, where all are discrete,
    one MultiDiscrete: see `specs.HybridAction`.
    """
    if bins is not None and not isinstance(space, Box):
        raise ConfigError(f"env.bins={bins}: the action space of env.id={id} is {short(space)}, not a Box: give null.")
    if bounds is not None:
        space = bounded(space, id, bounds)
    if isinstance(space, (Dict, Tuple)):
        return _composed(space, id)
    if isinstance(space, Discrete):
        return _discrete(space, id)
    if isinstance(space, (MultiDiscrete, MultiBinary)) and math.prod(space.shape) > 0:
        return _several(space, id)
    problem = _action_problem(space)
    if isinstance(space, Box) and not _sensible(space).all():
        raise ConfigError(
            f"env.id={id}: the action space is {short(space)}, without sensible bounds: give env.bounds=[LOW, HIGH], "
            "such as env.bounds=[-1,1]."
        )
    if problem or not isinstance(space, Box):
        advice = (
            "env.wrappers=[{DiscretizeAction: {bins: 11, multidiscrete: true}}] makes 11 values of each to choose from"
            if problem == _INTEGERS
            else "give it one with gymnasium.wrappers.TransformAction"
        )
        raise ConfigError(f"env.id={id}: the action space is {short(space)}, {problem}: {advice}.")
    rescale = _rescaling(space, id)
    if bins is not None:
        choices, checked = _several(MultiDiscrete([bins] * math.prod(space.shape)), id)
        return choices, lambda chosen: rescale(2.0 * checked(chosen) / (bins - 1) - 1.0)
    return Box(-1.0, 1.0, (math.prod(space.shape),), np.float32), rescale


def _rescaling(space: Box, id: str) -> Callable[[Any], Any]:
    """From numbers `(n,)` or `(rows, n)` in [-1, 1] to the bounds of a Box, in its shape or as rows of it."""
    low, high = space.low.astype(np.float64).ravel(), space.high.astype(np.float64).ravel()
    dtype, bounds = space.dtype, list(zip(low.tolist(), high.tolist(), strict=True))

    def rescale(action: Any) -> Any:
        # This form, unlike low + t * (high - low), gives both bounds exactly.
        numbers = np.asarray(action, np.float64)
        if numbers.ndim == 1 and len(bounds) <= _FEW:  # Python computes the same with few numbers sooner
            parts = [(number + 1.0) / 2.0 for number in numbers.tolist()]
            if not math.isfinite(sum(parts)):
                raise _not_finite(action, id)
            pairs = zip(parts, bounds, strict=True)
            taken = [min(max(low * (1.0 - t) + high * t, low), high) for t, (low, high) in pairs]
            return np.array(taken, dtype).reshape(space.shape)
        t = (numbers + 1.0) / 2.0
        if not math.isfinite(t.sum()):
            raise _not_finite(action, id)
        rescaled = np.minimum(np.maximum(low * (1.0 - t) + high * t, low), high).astype(dtype)
        return rescaled.reshape((*numbers.shape[:-1], *space.shape))

    return rescale


def _sensible(space: Box) -> Any:
    return (np.abs(space.low.astype(np.float64)) <= SENSIBLE) & (np.abs(space.high.astype(np.float64)) <= SENSIBLE)


def bounded(space: S, id: str, bounds: tuple[float, float]) -> S:
    """The space with `bounds` for those that are infinite or beyond a million; ConfigError where there are none."""
    found: S = _bounded(space, bounds)
    if found == space:
        raise ConfigError(
            f"env.bounds={list(bounds)}: the actions of env.id={id}, {short(space)}, have bounds of their own: "
            "leave it out."
        )
    return found


def _bounded(space: Space[Any], bounds: tuple[float, float]) -> Any:
    if isinstance(space, Dict):
        return Dict({name: _bounded(part, bounds) for name, part in space.items()})
    if isinstance(space, Tuple):
        return Tuple([_bounded(part, bounds) for part in space])
    if not isinstance(space, Box) or not np.issubdtype(space.dtype, np.floating) or _sensible(space).all():
        return space
    low, high = (
        np.where(_sensible(space), own, bound) for own, bound in zip((space.low, space.high), bounds, strict=True)
    )
    return Box(low.astype(space.dtype), high.astype(space.dtype), dtype=space.dtype.type)


def _discrete(space: Discrete, id: str) -> tuple[Space[Any], Callable[[Any], Any]]:
    """The same for one discrete action, which the agent chooses as an index from 0."""
    first, count = int(space.start), int(space.n)

    def shifted(index: Any) -> np.int64:
        if not 0 <= int(index) < count:
            raise LearnerFault(f"the action {index} in env.id={id} is not one of 0 to {count - 1}.")
        return np.int64(int(index) + first)  # as action_space.sample() gives it: some call its methods

    return Discrete(count), shifted


def _several(space: MultiDiscrete | MultiBinary, id: str) -> tuple[Space[Any], Callable[[Any], Any]]:
    """The same for several discrete actions, which the agent chooses as indices from 0."""
    shape = space.shape
    sizes = np.full(shape, 2) if isinstance(space, MultiBinary) else space.nvec.astype(np.int64)
    first = np.zeros_like(sizes) if isinstance(space, MultiBinary) else space.start.astype(np.int64)
    sizes, first = sizes.ravel(), first.ravel()

    def shifted(chosen: Any) -> Any:
        indices = np.asarray(chosen)
        if not ((indices >= 0) & (indices < sizes)).all():
            raise LearnerFault(
                f"the action {short(chosen)} in env.id={id} is not one of 0 to {short((sizes - 1).tolist())}."
            )
        return (indices + first).astype(space.dtype).reshape(shape)

    return MultiDiscrete(sizes), shifted


def _composed(space: "Dict | Tuple[Any]", id: str) -> tuple[Space[Any], Callable[[Any], Any]]:
    """The same for a Dict or Tuple: a vector with the discrete numbers first, or a MultiDiscrete."""
    leaves = list(every_leaf(space))
    if not leaves or len({leaf_name(path) for path, _ in leaves}) < len(leaves):
        raise ConfigError(f"env.id={id}: the action space is {short(space)}: give it leaves of different names.")
    adapted = [_leaf(leaf, id) for _, leaf in leaves]
    sizes = np.array([n for agents, _ in adapted if not isinstance(agents, Box) for n in action_counts(agents)], int)
    dimensions = sum(agents.shape[0] for agents, _ in adapted if isinstance(agents, Box))
    discrete, continuous = iter(range(len(sizes))), iter(range(len(sizes), len(sizes) + dimensions))
    places: list[Any] = []
    for agents, _ in adapted:
        if isinstance(agents, Discrete):
            places.append(next(discrete))
        else:
            assert agents.shape is not None
            columns = continuous if isinstance(agents, Box) else discrete
            places.append([next(columns) for _ in range(agents.shape[0])])

    def taken(chosen: Any) -> Any:
        numbers = np.asarray(chosen)
        if dimensions:
            if not math.isfinite(numbers.sum()):
                raise _not_finite(chosen, id)
            values = discrete_values(numbers[: len(sizes)], sizes)
            numbers = np.concatenate([values, numbers[len(sizes) :].astype(np.float64)])
        return composed(space, (take(numbers[place]) for (_, take), place in zip(adapted, places, strict=True)))

    if not dimensions:
        return MultiDiscrete(sizes), taken
    return Box(-1.0, 1.0, (len(sizes) + dimensions,), np.float32), taken


def discrete_values(numbers: Any, sizes: Any) -> Any:
    """The values `(M,)` that the discrete numbers `(M,)` of a hybrid action stand for, out of `sizes` `(M,)`."""
    places = np.floor((np.asarray(numbers, np.float64) + 1.0) * sizes / 2.0)
    return np.minimum(np.maximum(places, 0.0), sizes - 1)


def composed(space: Space[Any], leaves: Iterator[Any]) -> Any:
    """What `leaves`, in their order, make of a Dict or Tuple; of any other space the next of them."""
    if isinstance(space, Dict):
        return {name: composed(part, leaves) for name, part in space.items()}
    if isinstance(space, Tuple):
        return tuple(composed(part, leaves) for part in space)
    return next(leaves)


def _leaf(space: Space[Any], id: str) -> tuple[Space[Any], Callable[[Any], Any]]:
    """The same for a leaf of a Dict or Tuple."""
    if isinstance(space, Box) and not np.issubdtype(space.dtype, np.floating):
        raise ConfigError(
            f"env.id={id}: its actions hold {short(space)}, {_INTEGERS}: give them a Discrete or MultiDiscrete in its "
            "place with gymnasium.wrappers.TransformAction."
        )
    return adapt_action(space, id)


def _not_finite(action: Any, id: str) -> LearnerFault:
    return LearnerFault(
        f"the policy chose the action {short(action)} in env.id={id}: its parameters are not finite any more. {RECOVER}"
    )


def _action_problem(space: Space[Any]) -> str:
    if not isinstance(space, Box) or math.prod(space.shape) == 0:
        return "not a Box, MultiDiscrete or MultiBinary that is not empty, a Discrete, or a Dict or Tuple of these"
    if not np.issubdtype(space.dtype, np.floating):
        return _INTEGERS
    if not (space.low < space.high).all():
        return "with a lower bound that is not below the upper one"
    return ""
