"""The edge of one environment, where its spaces become the agent's: float32 vectors, indices, [-1, 1]."""

import textwrap
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete, Graph, Sequence, Space, Text

from sac_torchrl.errors import ConfigError


class Edge(gym.Wrapper[Any, Any, Any, Any]):
    """One environment with a float32 vector or index observed and an action in [-1, 1] or an index taken."""

    def __init__(self, env: gym.Env[Any, Any], id: str) -> None:
        super().__init__(env)
        self.observation_space, self._observed = _observed(env.observation_space, id)
        self.action_space, self._taken = _taken(env.action_space, id)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode; no options reach the environment and no infos leave it."""
        # The only option that arrives is TorchRL's mask of finished environments: not meant for this one.
        observation, _ = self.env.reset(seed=seed)
        return self._observed(observation), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Takes an action in [-1, 1] or an index from 0; beyond [-1, 1] it is clipped."""
        observation, reward, terminated, truncated, _ = self.env.step(self._taken(action))
        return self._observed(observation), float(reward), bool(terminated), bool(truncated), {}


def _observed(space: Space[Any], id: str) -> tuple[Space[Any], Callable[[Any], Any]]:
    if isinstance(space, Discrete):
        first = int(space.start)
        return Discrete(int(space.n)), lambda index: int(index) - first
    if isinstance(space, Box) and len(space.shape) == 1 and space.shape[0] > 0:
        # The bounds are dropped: many declare them wrongly and nothing is trained on them.
        return Box(-np.inf, np.inf, space.shape, np.float32), lambda vector: np.array(vector, np.float32)
    advice = "wrap it with gymnasium.wrappers.FlattenObservation"
    if isinstance(space, (Text, Sequence, Graph)) or 0 in (space.shape or ()):
        advice = "turn it into a vector with gymnasium.wrappers.TransformObservation"
    raise ConfigError(
        f"env.id={id}: the observation space is {short(space)}, not a Box of shape (n,) or a Discrete: {advice}."
    )


def _taken(space: Space[Any], id: str) -> tuple[Space[Any], Callable[[Any], Any]]:
    if isinstance(space, Discrete):
        first = int(space.start)
        return Discrete(int(space.n)), lambda index: int(index) + first
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


def short(what: object) -> str:
    """The text of `what` on one line that ends after 160 characters."""
    return textwrap.shorten(str(what), 160, placeholder=" ...")
