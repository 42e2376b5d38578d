"""Environments as the agent sees them: float32 vectors or indices in, actions in [-1, 1] or indices out."""

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import TimeLimit
from torchrl.envs import EnvBase, GymWrapper

from sac_torchrl.envs.adapter import SpaceAdapter, TolerateFaults
from sac_torchrl.envs.quiet import quiet
from sac_torchrl.envs.tensors import TORCH
from sac_torchrl.errors import ConfigError, nearest, short
from sac_torchrl.specs import Specs

_SUITE = "dmc/"
_TORCH = "torch/"
_JAX = {"brax/": "Brax", "playground/": "Playground"}
_POOL = "envpool/"


@dataclass
class EnvConfig:
    """A Gymnasium id, or `dmc/DOMAIN-TASK` for DeepMind Control, and how many of it are stepped together.

    `torch/pendulum`, `torch/cartpole`, `brax/TASK` and `playground/TASK` are simulators of tensors, for thousands of
    environments, and `envpool/TASK` is stepped by EnvPool's threads.
    `plugins` names modules imported before the id is looked up: importing one registers its environments.
    `faults` is how many of an environment's steps may raise or return what nothing can be learned from while
    transitions are collected: such a step is not stored and its episode is cut. The next one ends the run.
    `max_episode_steps` truncates every episode after so many steps, null after as many as it is registered with.
    """

    id: str = "Pendulum-v1"
    count: int = 1
    plugins: list[str] = field(default_factory=list)
    faults: int = 0
    max_episode_steps: int | None = None

    def specs(self) -> Specs:
        """Opens the environment once and reads its spaces; raises ConfigError for one that SAC cannot use."""
        self._check(self.count)
        env = self.build(count=1)
        try:
            return Specs(env.observation_spec_unbatched["observation"], env.action_spec_unbatched)
        finally:
            env.close()

    def build(
        self,
        *,
        seed: int | None = None,
        count: int | None = None,
        render_mode: str | None = None,
        device: torch.device | None = None,
        tolerate_faults: bool = False,
    ) -> EnvBase:
        """Builds `count` environments in this process, batch size `(count,)`, each with a seed of its own.

        Observations are float32 `(count, n)` or int64 `(count,)`, actions float32 `(count, n)` in [-1, 1] or
        int64 `(count,)`, rewards float32 `(count, 1)`. `next` always holds the true final observation. A simulator
        made of tensors lives on `device`; Gymnasium's are on the CPU. `forgiving` is that of `open`.
        """
        count = self.count if count is None else count
        self._check(count)
        if self.id.startswith(_POOL):
            return self._pooled(count, seed=seed, render_mode=render_mode)
        if self.id.startswith((_TORCH, *_JAX)):
            return self._simulator(count, device or torch.device("cpu"), seed=seed, render_mode=render_mode)
        env = wrapped(
            SequentialVectorEnv([self.open(render_mode, tolerate_faults=tolerate_faults) for _ in range(count)])
        )
        if seed is not None:
            env.set_seed(seed)
        return env

    @property
    def in_one(self) -> bool:
        """Whether the environments are one batch of tensors or one pool, which no worker can hold a part of."""
        return self.id.startswith((_TORCH, *_JAX, _POOL))

    def open(self, render_mode: str | None = None, *, tolerate_faults: bool = False) -> gym.Env[Any, Any]:
        """Opens one Gymnasium environment, at the agent's edge; imports the plugins before.

        Where `forgiving`, up to `faults` faulty steps end their episode and have the reward NaN, which tells who
        collects that they did not happen.
        """
        for plugin in self.plugins:
            _load(plugin)
        env = _open(self.id, render_mode, self.max_episode_steps)
        return TolerateFaults(env, self.faults) if tolerate_faults and self.faults else env

    def _check(self, count: int) -> None:
        if count < 1:
            raise ConfigError(f"env.count={count}: give 1 or more environments.")
        if self.faults < 0:
            raise ConfigError(f"env.faults={self.faults}: give 0 or more.")
        if self.faults and self.in_one:
            raise ConfigError(
                f"env.faults={self.faults}: the environments of env.id={self.id} are stepped at once, and a fault of "
                "one ends the run: give 0."
            )
        if self.max_episode_steps is not None and self.max_episode_steps < 1:
            raise ConfigError(f"env.max_episode_steps={self.max_episode_steps}: give 1 or more, or null.")
        if self.max_episode_steps is not None and self.in_one:
            raise ConfigError(
                f"env.max_episode_steps={self.max_episode_steps}: the episodes of env.id={self.id} are as long as its "
                "simulator makes them: give null."
            )

    def _pooled(self, count: int, *, seed: int | None, render_mode: str | None) -> EnvBase:
        if render_mode is not None:
            raise ConfigError(f"env.id={self.id} cannot be rendered: EnvPool steps without pictures.")
        env = wrapped(importlib.import_module("sac_torchrl.envs.envpool").Pool(self.id.removeprefix(_POOL), count))
        if seed is not None:
            env.set_seed(seed)
        return env

    def _simulator(self, count: int, device: torch.device, *, seed: int | None, render_mode: str | None) -> EnvBase:
        if render_mode is not None:
            raise ConfigError(f"env.id={self.id} cannot be rendered: its environments are tensors.")
        if family := _JAX.get(self.id.partition("/")[0] + "/"):
            for plugin in self.plugins:
                _load(plugin)
            # Only who asks for it waits for JAX to be imported.
            physics = importlib.import_module("sac_torchrl.envs.jax")
            env: EnvBase = getattr(physics, family)(self.id, count, device)
        else:
            name = self.id.removeprefix(_TORCH)
            if name not in TORCH:
                known = [_TORCH + one for one in TORCH]
                raise ConfigError(f"env.id={self.id} is not a tensor environment{nearest(self.id, known)}")
            env = TORCH[name](count, device)
        if seed is not None:
            env.set_seed(seed)
        return env


def wrapped(envs: VectorEnv[Any, Any, Any]) -> EnvBase:
    """A vector environment, its autoreset disabled, as TorchRL's."""
    env: EnvBase = GymWrapper(envs, categorical_action_encoding=True)  # type: ignore[no-untyped-call]
    return env


def seeds(seed: int, count: int) -> list[int]:
    """One seed an environment, far apart: Gymnasium's own `seed + i` makes the runs of neighboring seeds overlap."""
    return [int(word) for word in np.random.SeedSequence(seed).generate_state(count)]


class SequentialVectorEnv(VectorEnv[Any, Any, Any]):
    """Gymnasium environments of the same spaces, stepped one after the other.

    Gymnasium's SyncVectorEnv takes twice the time, most of it when nothing is in the processor's caches, as after an
    update. TorchRL resets the finished ones itself, by mask: every mode of Gymnasium's own autoreset either replaces
    the final observation or inserts a transition that never happened.
    """

    autoreset_mode = AutoresetMode.DISABLED

    def __init__(self, envs: Sequence[gym.Env[Any, Any]]) -> None:
        self.envs = envs
        self.num_envs = len(envs)
        self.metadata = envs[0].metadata | {"autoreset_mode": self.autoreset_mode}
        self.render_mode = envs[0].render_mode
        self.single_observation_space = envs[0].observation_space
        self.single_action_space = envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._observations = np.zeros(self.observation_space.shape or (), self.observation_space.dtype)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start episodes, those of `options["reset_mask"]` or all; `seed` is a list of one for each, or for all."""
        given = list(seeds(seed, self.num_envs)) if isinstance(seed, int) else seed or [None] * self.num_envs
        mask = [True] * self.num_envs if options is None else options["reset_mask"]
        for number, (env, wanted, own) in enumerate(zip(self.envs, mask, given, strict=True)):
            if wanted:
                self._observations[number], _ = env.reset(seed=own)
        return self._observations.copy(), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take an action in every environment."""
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, np.bool_), np.zeros(self.num_envs, np.bool_)
        for number, env in enumerate(self.envs):
            result = env.step(actions[number])
            self._observations[number], rewards[number], terminated[number], truncated[number], _ = result
        return self._observations.copy(), rewards, terminated, truncated, {}

    def render(self) -> tuple[Any, ...]:
        """Draw every one."""
        return tuple(env.render() for env in self.envs)

    def close_extras(self, **options: Any) -> None:
        """Close them."""
        for env in self.envs:
            env.close()


def _open(id: str, render_mode: str | None, limit: int | None) -> gym.Env[Any, Any]:
    env = _suite(id, render_mode, limit) if id.startswith(_SUITE) else _gymnasium(id, render_mode, limit)
    try:
        return SpaceAdapter(env, id)
    except ConfigError:
        env.close()
        raise


def _gymnasium(id: str, render_mode: str | None, limit: int | None) -> gym.Env[Any, Any]:
    module, colon, name = id.partition(":")
    if colon:
        raise ConfigError(f"env.id={id} names a module: give env.id={name} env.plugins=[{module}] instead.")
    if id not in gym.registry:
        raise ConfigError(
            f"env.id={id} is not a registered environment{nearest(id, gym.registry)} "
            "One from another package needs env.plugins=[its module]."
        )
    entry = str(gym.registry[id].entry_point)
    options: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    try:
        with quiet(mujoco="mujoco" in entry):
            return gym.make(id, limit, disable_env_checker=True, **options)
    except gym.error.DependencyNotInstalled as error:
        family = entry.removeprefix("gymnasium.envs.").partition(".")[0].partition(":")[0].replace("_", "-")
        known = entry.startswith("gymnasium.envs.")
        advice = f"pip install 'gymnasium[{family}]'" if known else short(error)
        raise ConfigError(f"env.id={id} needs a package that is not installed: {advice}") from error
    except TypeError as error:
        if render_mode is None or "render_mode" not in str(error):
            raise
        raise ConfigError(f"env.id={id} cannot be rendered: it takes no render_mode.") from error
    except (gym.error.Error, ImportError) as error:
        raise ConfigError(f"env.id={id} cannot be made: {short(error)}") from error


def _suite(id: str, render_mode: str | None, limit: int | None) -> gym.Env[Any, Any]:
    try:
        with warnings.catch_warnings():
            # Without a display GLFW only warns; dm_control goes on to its next graphics library on an error.
            warnings.filterwarnings("error", message=r"\(\d+\) b'")
            suite = importlib.import_module("dm_control.suite")
    except ModuleNotFoundError as error:
        raise ConfigError(f"env.id={id} needs DeepMind Control: pip install 'sac_torchrl[dmc]'.") from error
    tasks = {f"{domain}-{task}": (domain, task) for domain, task in suite.ALL_TASKS}
    name = id.removeprefix(_SUITE)
    if name not in tasks:
        raise ConfigError(
            f"env.id={id} is not a DeepMind Control task{nearest(id, [_SUITE + known for known in tasks])}"
        )
    with quiet(mujoco=True):
        # Some tasks (lqr) draw their model from `random` when loaded. One model serves all environments of
        # a run, evaluation included; the episodes are seeded by reset(seed=...).
        task = suite.load(*tasks[name], task_kwargs={"random": 0})
    env = _Suite(task, render_mode)
    return env if limit is None else TimeLimit(env, limit)


class _Suite(gym.Env[Any, Any]):
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
        if seed is not None:
            self._env.task.random.seed(seed)
        return self._vector(self._env.reset()), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        step = self._env.step(action)
        terminated = step.last() and step.discount == 0.0
        return self._vector(step), step.reward, terminated, step.last() and not terminated, {}

    def render(self) -> Any:
        return self._env.physics.render(height=480, width=480, camera_id=0)

    def close(self) -> None:
        self._env.close()

    def _vector(self, step: Any) -> Any:
        return np.concatenate([np.ravel(part) for part in step.observation.values()])


@contextmanager
def rendering() -> Iterator[None]:
    """Has MuJoCo draw off screen (EGL) where Linux has no display and MUJOCO_GL says nothing else."""
    chosen = {"DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"} & os.environ.keys()
    if chosen or sys.platform != "linux":
        yield
        return
    os.environ["MUJOCO_GL"] = "egl"
    try:
        yield
    finally:
        del os.environ["MUJOCO_GL"]


def _load(plugin: str) -> None:
    try:
        importlib.import_module(plugin)
    except ImportError as error:
        raise ConfigError(
            f"env.plugins names {plugin}, which cannot be imported ({error}): "
            "install it, or put its folder on PYTHONPATH."
        ) from error
