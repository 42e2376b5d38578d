"""DeepMind Control tasks as Gymnasium environments."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit

from sac_torchrl.envs.quiet import quiet
from sac_torchrl.errors import ConfigError, nearest, short
from sac_torchrl.extras import require

PREFIX = "dmc/"


def known_tasks() -> dict[str, tuple[str, str]]:
    """Every `dmc/DOMAIN-TASK` with its domain and task; none where DeepMind Control cannot be imported."""
    try:
        return _tasks(_suite("known_tasks"))
    except ConfigError:
        return {}


def open_task(
    id: str, arguments: Mapping[str, Any], *, render_mode: str | None, limit: int | None
) -> gym.Env[Any, Any]:
    """Open `dmc/DOMAIN-TASK` with `arguments` of its task; raises ConfigError where the package or task is missing."""
    suite = _suite(f"env.id={id}")
    known = _tasks(suite)
    if id not in known:
        raise ConfigError(f"env.id={id} is not a DeepMind Control task{nearest(id, known)}")
    with quiet(mujoco=True):
        # Some tasks (lqr) draw their model from `random` when loaded. One model serves all environments of
        # a run, evaluation included; the episodes are seeded by reset(seed=...).
        try:
            # A limit that is asked for takes the place of the task's own, which may be shorter.
            own = {} if limit is None else {"time_limit": math.inf}
            task = suite.load(*known[id], task_kwargs={"random": 0, **own, **arguments})
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"env.id={id} cannot be made: {short(error)}: env.kwargs are those of its task."
            ) from error
        step = task.control_timestep()
        if limit is not None and "time_limit" not in arguments and limit > task._step_limit:
            # The task would end the episode after its own limit, in seconds; half a step more, whatever is rounded.
            longer = {"time_limit": (limit + 0.5) * step}
            task = suite.load(*known[id], task_kwargs={"random": 0, **arguments, **longer})
    env = DMControl(task, render_mode)
    return env if limit is None else TimeLimit(env, limit)


def _suite(asked_by: str) -> Any:
    with warnings.catch_warnings():
        # Without a display GLFW only warns; dm_control tries its next graphics library only after an error.
        warnings.filterwarnings("error", message=r"\(\d+\) b'")
        return require("dm_control.suite", asked_by)


def _tasks(suite: Any) -> dict[str, tuple[str, str]]:
    return {f"{PREFIX}{domain}-{task}": (domain, task) for domain, task in suite.ALL_TASKS}


class DMControl(gym.Env[Any, Any]):
    """A DeepMind Control task; its observations are concatenated in the task's own order."""

    # Shimmy has such an adapter: it seeds no model and reports a false frame rate (1000 dt for all tasks).

    def __init__(self, task: Any, render_mode: str | None) -> None:
        self._env = task
        self.render_mode = render_mode
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / task.control_timestep())}
        size = sum(int(np.prod(spec.shape)) for spec in task.observation_spec().values())
        self.observation_space = Box(-np.inf, np.inf, (size,), np.float64)
        action = task.action_spec()
        low, high = (np.broadcast_to(bound, action.shape) for bound in (action.minimum, action.maximum))
        self.action_space = Box(low, high, dtype=action.dtype)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        if seed is not None:
            self._env.task.random.seed(seed)
        return self._vector(self._env.reset()), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an action; a discount of 0 at the last step means terminated, any other truncated."""
        step = self._env.step(action)
        terminated = step.last() and step.discount == 0.0
        return self._vector(step), step.reward, terminated, step.last() and not terminated, {}

    def render(self) -> Any:
        """Draw the scene `(480, 480, 3)`."""
        return self._env.physics.render(height=480, width=480, camera_id=0)

    def close(self) -> None:
        """Close the task."""
        self._env.close()

    def _vector(self, step: Any) -> Any:
        return np.concatenate([np.ravel(part) for part in step.observation.values()])
