"""Observation spaces: what the agent sees of a space, and how an observation becomes it."""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete, Graph, Sequence, Space, Text

from sac_torchrl.errors import ConfigError, short

log = logging.getLogger(__name__)


def adapt_observation(space: Space[Any], id: str) -> tuple[Space[Any], Callable[[Any], Any]]:
    """What the agent sees of a space, and what turns an observation into it; raises ConfigError."""
    if isinstance(space, Discrete):
        first, count = int(space.start), int(space.n)

        def index(value: Any) -> int:
            if not isinstance(value, (int, np.integer)) and getattr(value, "shape", None) != ():
                raise TypeError("which is no index")
            if not 0 <= int(value) - first < count:
                raise ValueError(f"which is not one of {first} to {first + count - 1}")
            return int(value) - first

        return Discrete(count), index
    if isinstance(space, Box) and len(space.shape) == 1 and space.shape[0] > 0:
        shape = space.shape

        def vector(value: Any) -> Any:
            given = np.asarray(value).dtype
            if given.kind not in "fiub":
                raise TypeError("which holds no real numbers")
            if given != space.dtype:
                _tell_of_cast(id, given.name, str(space.dtype))
            array = np.array(value, np.float32)
            if array.shape != shape:
                raise ValueError(f"whose shape is {array.shape} and not {shape}")
            if not np.isfinite(array).all():
                raise ValueError(f"which is not finite at index {int(np.isfinite(array).argmin())}")
            return array

        # The bounds are dropped: many declare them wrongly and nothing is trained on them.
        return Box(-np.inf, np.inf, shape, np.float32), vector
    advice = "wrap it with gymnasium.wrappers.FlattenObservation"
    if isinstance(space, (Text, Sequence, Graph)) or 0 in (space.shape or ()):
        advice = "turn it into a vector with gymnasium.wrappers.TransformObservation"
    raise ConfigError(
        f"env.id={id}: the observation space is {short(space)}, not a Box of shape (n,) or a Discrete: {advice}."
    )


@cache
def _tell_of_cast(id: str, given: str, declared: str) -> None:
    """Once in a process: steps are too many to say it each time."""
    log.info("env.id=%s observes %s, where its space says %s: the agent sees float32", id, given, declared)
