"""Goals: the reward and the termination that a step would have had with another goal."""

import logging
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Discrete, MultiDiscrete, Space
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, RecordEpisodeStatistics, TimeLimit
from numpy.typing import NDArray

from sac_torchrl.envs import generators
from sac_torchrl.envs.adapter import RAISED, SpaceAdapter, say_where
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.contained import Contained
from sac_torchrl.envs.state import unshared
from sac_torchrl.errors import ConfigError, EnvironmentFault, short

log = logging.getLogger(__name__)

ACHIEVED, DESIRED = ("observation", "achieved_goal"), ("observation", "desired_goal")

FRAMES = 100  # of the trial
REWARD, TERMINATED = "compute_reward", "compute_terminated"
_CLOSE = 1e-4  # how far a reward may be from the step's, absolutely or of its size: rows hold float32

# Wrappers that change neither observations nor rewards.
_NEUTRAL = (gym.ActionWrapper, OrderEnforcing, PassiveEnvChecker, RecordEpisodeStatistics, TimeLimit)

_Array = NDArray[Any]


class Goals:
    """Rewards and terminations of steps for other goals, from an environment that is open for nothing else.

    It has the API of Gymnasium-Robotics: its observation is a Dict with `achieved_goal` and `desired_goal`, and it has
    `compute_reward(achieved_goal, desired_goal, info)` and, where the goal decides when episodes terminate,
    `compute_terminated` of the same arguments. Each is called once for all steps if it takes arrays `(n, ...)`,
    otherwise once a step. The info is empty, because rows hold none. `limit` is the length of the longest episode.

    Raises ConfigError for an environment that has no such API, or where it gives other rewards or terminations than the
    first 100 steps with random actions did.
    """

    def __init__(self, plan: EnvConfig) -> None:
        self._id = plan.id
        if plan.in_one:
            raise self._refused("its environments are stepped at once, and none has a compute_reward of its own")
        if plan.single or plan.reward_weights:
            key = "env.single=true" if plan.single else f"env.reward_weights={plan.reward_weights}"
            raise self._refused(f"with {key} the rewards of other goals cannot be computed", f"leave out {key}")
        with generators.preserve():
            env: Any = plan.build(count=1, tolerate_faults=True)
            self.close = env.close
            try:
                with unshared(env):
                    self._prepare(plan, env._env.envs[0])
            except BaseException:
                env.close()
                raise

    def __call__(self, achieved: _Array, desired: _Array) -> tuple[_Array, _Array | None]:
        """The rewards, float64 `(n,)`, and terminations, bool `(n,)`, of `n` steps, given two columns of goals.

        The columns are as rows hold them. Terminations are None where the environment does not compute them. Raises
        EnvironmentFault.
        """
        pairs = self._native(achieved), self._native(desired)
        with Contained(self._id):
            rewards = self._compute(REWARD, *pairs)
            terminated = self._compute(TERMINATED, *pairs) if hasattr(self._env, TERMINATED) else None
        if not np.isfinite(rewards).all():
            raise EnvironmentFault(f"env.id={self._id}: {REWARD} returned {short(rewards)}, not all of it finite.")
        return rewards, None if terminated is None else terminated.astype(np.bool_)

    def _prepare(self, plan: EnvConfig, edge: Any) -> None:
        adapter = edge
        while not isinstance(adapter, SpaceAdapter):
            adapter = adapter.env
        self._space = self._goal_space(adapter)
        self._env = self._owner(adapter.env)
        limit = plan.max_episode_steps or (adapter.spec and adapter.spec.max_episode_steps)
        if not limit:
            raise self._refused("its episodes have no time limit", "give env.max_episode_steps")
        self.limit = int(limit)
        self._at_once = {REWARD: False, TERMINATED: False}
        self._compare(*_play(edge))
        if not hasattr(self._env, TERMINATED):
            log.info("env.id=%s has no %s: rows terminate where they did with their own goal", self._id, TERMINATED)

    def _goal_space(self, adapter: SpaceAdapter) -> Space[Any]:
        """The space of goals; raises ConfigError where the agent does not observe both, of one kind."""
        observed, native = adapter.observation_space, adapter.native_spaces[0]
        names = [ACHIEVED[-1], DESIRED[-1]]
        if not isinstance(observed, gym.spaces.Dict) or not isinstance(native, gym.spaces.Dict):
            raise self._refused(f"it observes {short(native)}, and no Dict with {' and '.join(names)}")
        if missing := [name for name in names if name not in observed.spaces]:
            there = f"{missing[0]} in env.ignore" if missing[0] in native.spaces else f"no {missing[0]}"
            there = f"a {missing[0]} of several leaves" if f"{missing[0]}." in str(list(observed.spaces)) else there
            raise self._refused(f"its observation has {there}")
        achieved, desired = (native.spaces[name] for name in names)
        if (type(achieved), _counts(achieved)) != (type(desired), _counts(desired)):
            raise self._refused(f"achieved_goal is {short(achieved)} and desired_goal {short(desired)}")
        return achieved

    def _owner(self, env: gym.Env[Any, Any]) -> Any:
        """The environment or wrapper that has `compute_reward`; raises ConfigError where what is around it differs."""
        around = []
        while not hasattr(env, REWARD) and isinstance(env, gym.Wrapper):
            around.append(env)
            env = env.env
        if not hasattr(env, REWARD):
            raise self._refused(f"it has no {REWARD}(achieved_goal, desired_goal, info)")
        for wrapper in around:
            if not isinstance(wrapper, _NEUTRAL):
                name = type(wrapper).__name__
                raise self._refused(
                    f"its wrapper {name} has no {REWARD}, and may change observations or rewards",
                    f"give it one, or leave {name} out",
                )
        return env

    def _compare(self, achieved: _Array, desired: _Array, rewards: _Array, terminated: _Array) -> None:
        """Find out which methods take arrays; raise ConfigError where they do not give what the steps did."""
        steps = self._native(achieved), self._native(desired)
        # Goals that were reached, and the goals of other steps: a method that mixes steps up differs in some.
        others = np.concatenate([steps[0], np.roll(steps[0], 1, axis=0)])
        mixed = np.concatenate([steps[0], steps[0]]), others
        for name, returned in ((REWARD, rewards), (TERMINATED, terminated)):
            if not hasattr(self._env, name):
                continue
            try:
                found = self._compute(name, *steps).astype(np.float64)
                alone = self._compute(name, *mixed).astype(np.float64)
            except EnvironmentFault as fault:
                raise self._refused(f"{str(fault).rstrip('.')}, with an empty info") from fault
            differs = ~np.isclose(found, returned, rtol=_CLOSE, atol=_CLOSE)
            if differs.any():
                at = int(differs.argmax())
                raise self._refused(
                    f"{name} gives {found[at]:g} for step {at + 1} of a trial, where the step itself returned "
                    f"{float(returned[at]):g}: it depends on more than the two goals"
                )
            self._at_once[name] = True
            try:
                together = self._compute(name, *mixed).astype(np.float64)
            except EnvironmentFault:
                together = np.empty(0)
            self._at_once[name] = together.shape == alone.shape and np.allclose(together, alone, rtol=1e-6, atol=1e-6)

    def _compute(self, name: str, achieved: _Array, desired: _Array) -> _Array:
        function = getattr(self._env, name)
        try:
            if not self._at_once[name]:
                steps = zip(achieved, desired, strict=True)
                return np.array([np.asarray(function(*goals, {})).item() for goals in steps])
            values = np.asarray(function(achieved, desired, {}))
            if values.shape != (len(achieved),):
                raise ValueError(f"returned the shape {values.shape} for {len(achieved)} steps")
        except RAISED as error:
            raise EnvironmentFault(f"env.id={self._id}: {name} raised {say_where(error)}.") from error
        return values

    def _native(self, goals: _Array) -> _Array:
        """The environment's own goals `(n, ...)` of a column."""
        native = goals.reshape(len(goals), *(self._space.shape or ()))
        return (native + getattr(self._space, "start", 0)).astype(self._space.dtype)

    def _refused(self, why: str, advice: str = "") -> ConfigError:
        advice = f"{advice}, or give" if advice else "give"
        return ConfigError(f"replay.hindsight=future with env.id={self._id}: {why}: {advice} replay.hindsight=none.")


def _counts(space: Space[Any]) -> Any:
    """Equal for spaces of the same goals, whatever their bounds."""
    if isinstance(space, (Discrete, MultiDiscrete)):
        return str(space)
    return space.shape


def _play(edge: Any) -> tuple[_Array, _Array, _Array, _Array]:
    """Random actions: goals achieved and desired, rewards and terminations of the steps that were no faults."""
    edge.action_space.seed(0)
    edge.reset(seed=0)
    steps = []
    for _ in range(FRAMES):
        seen, reward, terminated, truncated, _ = edge.step(edge.get_wrapper_attr("random_action")())
        if not np.isnan(reward):
            steps.append((seen[ACHIEVED[-1]], seen[DESIRED[-1]], reward, terminated))
        if terminated or truncated:
            edge.reset()
    achieved, desired, rewards, ends = zip(*steps, strict=True)
    return np.stack(achieved), np.stack(desired), np.array(rewards, np.float64), np.array(ends, np.float64)
