"""The adapter from one environment's spaces to the agent's: float32 vectors, indices, [-1, 1]."""

import logging
import math
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import create_empty_array

from sac_torchrl.envs.actions import adapt_action
from sac_torchrl.envs.contained import Contained
from sac_torchrl.envs.masks import Mask, MaskSource, WrongMask, find_mask
from sac_torchrl.envs.observations import adapt_observation
from sac_torchrl.envs.rewards import adapt_reward
from sac_torchrl.errors import EnvironmentFault, LearnerFault, short
from sac_torchrl.signals import time_limit
from sac_torchrl.specs import MASK

log = logging.getLogger(__name__)

_LARGEST = float(np.finfo(np.float32).max)

CLOSING = 10.0  # seconds that an environment has to close

# Whatever an environment's own code can raise; KeyboardInterrupt is the user's.
RAISED = (Exception, SystemExit, GeneratorExit)


class SpaceAdapter(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """One environment that returns float32 vectors or indices, and takes actions in [-1, 1] or indices.

    With masks of legal actions it returns a Dict with the leaf `action_mask`. Raises EnvironmentFault for a return
    value that cannot be trained on, and LearnerFault for an action that is not finite or not legal, before the
    environment gets it.
    """

    # An environment without masks has neither in its state.
    _mask: Mask | None = None
    _legal: Any = None

    def __init__(
        self,
        env: gym.Env[Any, Any],
        id: str,
        *,
        ignore: Sequence[str] = (),
        reward_weights: Sequence[float] | None = None,
        bounds: tuple[float, float] | None = None,
        bins: int | None = None,
        mask: MaskSource = MaskSource.auto,
        command: str | None = None,
    ) -> None:
        arguments: dict[str, Any] = {"id": id, "ignore": ignore, "reward_weights": reward_weights, "bounds": bounds}
        # For gym.make(env.spec).
        gym.utils.RecordConstructorArgs.__init__(self, **arguments, bins=bins, mask=mask, command=command)
        super().__init__(env)
        self._id = id
        self._command = command or f"`sac-torchrl check-env {id}`"
        self._steps = 0
        self.native_spaces = env.observation_space, env.action_space
        self.action_space, self._taken = adapt_action(env.action_space, id, bounds, bins=bins)
        found = find_mask(env, id, mask, self.action_space, ignore)
        if found is not None and found.source is MaskSource.observation:
            ignore = [*ignore, MASK]
        self.observation_space, self._observed = adapt_observation(env.observation_space, id, ignore)
        if found is not None:
            self.observation_space = found.with_leaf(self.observation_space, id)
            self._mask = found
        self._weighed = adapt_reward(getattr(env.unwrapped, "reward_space", None), id, reward_weights)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; options are not passed to the environment, and infos are dropped."""
        try:
            # The only option passed is TorchRL's mask of finished environments, which is not for the environment.
            with Contained(self._id):
                result: Any = self.env.reset(seed=seed)
        except RAISED as error:
            raise self._fault(f"raised {say_where(error)} when it was reset") from error
        if not isinstance(result, tuple) or len(result) != 2:
            raise self._fault(f"returned {short(repr(result))} when it was reset, not (observation, info)")
        return self._observation(*result, ended=False), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an action in [-1, 1], clipped to it, or an index from 0."""
        chosen = self._taken(action)
        if self._mask is not None and not self._mask.allows(self._legal, action):
            raise LearnerFault(
                f"the action {short(action)} in env.id={self._id} is not legal at step {self._steps + 1} since it was "
                "opened: choose one that the leaf action_mask of the observation allows."
            )
        self._steps += 1
        try:
            with Contained(self._id):
                result: Any = self.env.step(chosen)
        except RAISED as error:
            raise self._fault(f"raised {say_where(error)}") from error
        if not isinstance(result, tuple) or len(result) != 5:
            raise self._fault(f"returned {short(repr(result))}, not (observation, reward, terminated, truncated, info)")
        observation, reward, terminated, truncated, info = result
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            if not isinstance(flag, (bool, np.bool_, int)):
                raise self._fault(f"returned {name}={short(repr(flag))}, which is neither True nor False")
        seen = self._observation(observation, info, ended=bool(terminated))
        return seen, self._reward(reward), bool(terminated), bool(truncated), _success(info)

    def random_action(self) -> Any:
        """Draw from the actions that are legal now, with the generator of `action_space`."""
        if self._mask is None:
            return self.action_space.sample()
        return self._mask.sample(self._legal, self.action_space)

    def close(self) -> None:
        """Close the environment; an error, or more than `CLOSING` seconds, is logged and changes no run's outcome."""
        try:
            with Contained(self._id), time_limit(CLOSING, f"closing took longer than {CLOSING:g} s"):
                self.env.close()
        except RAISED as error:
            log.warning("env.id=%s raised %s when it was closed", self._id, say_where(error))

    def _observation(self, observation: Any, info: Any, *, ended: bool) -> Any:
        try:
            seen = self._observed(observation)
        except (TypeError, ValueError) as error:
            raise self._fault(f"returned the observation {short(repr(observation))}, {error}") from error
        if self._mask is None:
            return seen
        leaves = seen if isinstance(seen, dict) else {"observation": seen}
        return {**leaves, MASK: self._mask.stored(self._read_mask(observation, info, ended=ended))}

    def _read_mask(self, observation: Any, info: Any, *, ended: bool) -> Any:
        assert self._mask is not None
        try:
            with Contained(self._id):
                self._legal = self._mask.read(self.env, observation, info, ended=ended)
        except WrongMask as error:
            raise self._fault(f"returned the mask {error}") from error
        except RAISED as error:
            raise self._fault(f"raised {say_where(error)} when it was asked for its mask") from error
        return self._legal

    def _reward(self, reward: Any) -> float:
        try:
            reward = self._weighed(reward)
        except (TypeError, ValueError) as error:
            raise self._fault(f"returned the reward {short(repr(reward))}, {error}") from error
        number = isinstance(reward, (float, int, np.integer, np.floating, np.bool_))
        # NumPy's arrays without dimensions are numbers too.
        if not number and not (isinstance(reward, np.ndarray) and reward.shape == () and reward.dtype.kind in "fiub"):
            raise self._fault(f"returned the reward {short(repr(reward))}, which is no number")
        try:
            value = float(reward)
        except OverflowError as error:
            raise self._fault(f"returned the reward {short(reward)}, which no floating point number holds") from error
        # It is stored as float32.
        if not abs(value) <= _LARGEST:
            how = "is too large for float32" if math.isfinite(value) else "is not finite"
            raise self._fault(f"returned the reward {value:g}, which {how}")
        return value

    def _fault(self, what: str) -> EnvironmentFault:
        return EnvironmentFault(
            f"env.id={self._id} {what}, at step {self._steps} since it was opened. {self._command} looks for more."
        )


class TolerateFaults(gym.Wrapper[Any, Any, Any, Any]):
    """Ends the episode at a faulty step of a SpaceAdapter, up to `faults` times; the next fault raises.

    A faulty step has the reward NaN, which no other step has, and an observation of zeros. The count of faults is not
    saved with a run: it starts at 0 when the environment is opened.
    """

    def __init__(self, env: gym.Env[Any, Any], faults: int) -> None:
        super().__init__(env)
        self._faults = faults
        self._met = 0

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take an action."""
        try:
            return self.env.step(action)
        except EnvironmentFault as fault:
            if self._met == self._faults:
                raise
            self._met += 1
            log.warning("%s The episode is cut (%d of env.faults=%d).", fault, self._met, self._faults)
            nothing: Any = create_empty_array(self.observation_space, 1)
            seen = {name: leaf[0] for name, leaf in nothing.items()} if isinstance(nothing, dict) else nothing[0]
            return seen, math.nan, False, True, {}


def _success(info: Any) -> dict[str, Any]:
    """The part of a step's info that says whether the task was done: no other part is used."""
    if not isinstance(info, dict):
        return {}
    said = info.get("is_success", info.get("success"))
    return {} if said is None or np.size(said) != 1 else {"is_success": bool(np.asarray(said).item())}


def say_where(error: BaseException) -> str:
    """The type and message of an environment's exception, and its file and line."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {short(error)} ({Path(frames[-1].filename).name}:{frames[-1].lineno})"
