"""The edge of one environment, where its spaces become the agent's: float32 vectors, indices, [-1, 1]."""

import logging
import math
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete, Graph, Sequence, Space, Text

from sac_torchrl.errors import RECOVER, ConfigError, EnvironmentFault, LearnerFault, short

log = logging.getLogger(__name__)


class SpaceAdapter(gym.Wrapper[Any, Any, Any, Any]):
    """One environment with a float32 vector or index observed and an action in [-1, 1] or an index taken.

    Raises EnvironmentFault for what it returns and nothing can be learned from, and LearnerFault for an action that is
    not finite, before the environment sees it.
    """

    def __init__(self, env: gym.Env[Any, Any], id: str) -> None:
        super().__init__(env)
        self._id = id
        self._steps = 0
        self.observation_space, self._observed = observed(env.observation_space, id)
        self.action_space, self._taken = taken(env.action_space, id)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode; no options reach the environment and no infos leave it."""
        try:
            # The only option that arrives is TorchRL's mask of finished environments: not meant for this one.
            result: Any = self.env.reset(seed=seed)
        except Exception as error:
            raise self._fault(f"raised {_said(error)} when it was reset") from error
        if not isinstance(result, tuple) or len(result) != 2:
            raise self._fault(f"returned {short(repr(result))} when it was reset, not (observation, info)")
        return self._observation(result[0]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Takes an action in [-1, 1] or an index from 0; beyond [-1, 1] it is clipped."""
        chosen = self._taken(action)
        self._steps += 1
        try:
            result: Any = self.env.step(chosen)
        except Exception as error:
            raise self._fault(f"raised {_said(error)}") from error
        if not isinstance(result, tuple) or len(result) != 5:
            raise self._fault(f"returned {short(repr(result))}, not (observation, reward, terminated, truncated, info)")
        observation, reward, terminated, truncated, _ = result
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            if not isinstance(flag, (bool, np.bool_, int)):
                raise self._fault(f"returned {name}={short(repr(flag))}, which is neither True nor False")
        return self._observation(observation), self._reward(reward), bool(terminated), bool(truncated), {}

    def _observation(self, observation: Any) -> Any:
        try:
            return self._observed(observation)
        except (TypeError, ValueError) as error:
            raise self._fault(f"returned the observation {short(repr(observation))}, {error}") from error

    def _reward(self, reward: Any) -> float:
        number = isinstance(reward, (float, int, np.integer, np.floating, np.bool_))
        # An array of no dimensions is a number too, to everybody but Python.
        if not number and not (isinstance(reward, np.ndarray) and reward.shape == () and reward.dtype.kind in "fiub"):
            raise self._fault(f"returned the reward {short(repr(reward))}, which is no number")
        value = float(reward)
        if not math.isfinite(value):
            raise self._fault(f"returned the reward {value}, which is not finite")
        return value

    def _fault(self, what: str) -> EnvironmentFault:
        return EnvironmentFault(
            f"env.id={self._id} {what}, at step {self._steps} since it was opened. "
            f"`sac-torchrl check-env {self._id}` looks for more."
        )


class TolerateFaults(gym.Wrapper[Any, Any, Any, Any]):
    """Takes up to `faults` faulty steps of an Edge for the end of their episode; the next one raises.

    Such a step has the reward NaN, which no sound one has, and observes nothing but zeros. What it keeps is no part of
    a run: `faults` are counted from where it was opened.
    """

    def __init__(self, env: gym.Env[Any, Any], faults: int) -> None:
        super().__init__(env)
        self._faults = faults
        self._met = 0

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Takes an action."""
        try:
            return self.env.step(action)
        except EnvironmentFault as fault:
            if self._met == self._faults:
                raise
            self._met += 1
            log.warning("%s The episode is cut (%d of env.faults=%d).", fault, self._met, self._faults)
            space = self.observation_space
            return np.zeros(space.shape or (), space.dtype), math.nan, False, True, {}


def _said(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {short(error)} ({Path(frames[-1].filename).name}:{frames[-1].lineno})"


def observed(space: Space[Any], id: str) -> tuple[Space[Any], Callable[[Any], Any]]:
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


def taken(space: Space[Any], id: str) -> tuple[Space[Any], Callable[[Any], Any]]:
    """What the agent chooses from for a space, and what turns its choice into an action; raises ConfigError."""
    if isinstance(space, Discrete):
        first, count = int(space.start), int(space.n)

        def shifted(index: Any) -> int:
            if not 0 <= int(index) < count:
                raise LearnerFault(f"the action {index} in env.id={id} is not one of 0 to {count - 1}.")
            return int(index) + first

        return Discrete(count), shifted
    problem = _action_problem(space)
    if problem or not isinstance(space, Box):
        raise ConfigError(
            f"env.id={id}: the action space is {short(space)}, {problem}: "
            "give it one with gymnasium.wrappers.TransformAction."
        )
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    dtype = space.dtype

    def rescale(action: Any) -> Any:
        # This form, unlike low + t * (high - low), gives both bounds exactly.
        t = (np.asarray(action, np.float64) + 1.0) / 2.0
        if not math.isfinite(t.sum()):
            raise LearnerFault(
                f"the policy chose the action {short(action)} in env.id={id}: its parameters are not finite any more. "
                f"{RECOVER}"
            )
        return np.minimum(np.maximum(low * (1.0 - t) + high * t, low), high).astype(dtype)

    return Box(-1.0, 1.0, space.shape, np.float32), rescale


def _action_problem(space: Space[Any]) -> str:
    if not isinstance(space, Box) or len(space.shape) != 1 or space.shape[0] == 0:
        return "not a Box of shape (n,) or a Discrete"
    if not np.issubdtype(space.dtype, np.floating):
        return "not one of floating point numbers"
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        return "without finite bounds"
    if not (space.low < space.high).all():
        return "with a lower bound that is not below the upper one"
    return ""
