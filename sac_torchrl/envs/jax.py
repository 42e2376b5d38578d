"""Brax and MuJoCo Playground as simulators of tensors: physics of JAX, compiled once, memory shared with PyTorch."""

import importlib
import logging
import os
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import cache, wraps
from typing import Any

import numpy as np
import torch
import torch.utils.dlpack
from torch import Tensor
from torchrl.data import Bounded

from sac_torchrl.envs.quiet import quiet
from sac_torchrl.envs.tensors import TensorEnv
from sac_torchrl.errors import ConfigError, nearest, short
from sac_torchrl.extras import require

# TorchRL's BraxWrapper clears all of JAX's caches every 20 steps by default, and so compiles the physics
# again (its `cache_clear_frequency=None` means 20), applies `vmap` outside of `jit`, passes the whole state of the
# physics through PyTorch at every step, and has no time limit. docs/collectors.md has the measurement. Its
# MujocoPlaygroundWrapper resets all environments when one ends, and has no time limit either.


class JaxEnv(TensorEnv):
    """`count` environments of the task `id`, with physics in JAX.

    Raises ConfigError where a package is not installed, or has no such task, or JAX cannot use the device.
    """

    def __init__(self, id: str, count: int, device: torch.device) -> None:
        self._jax: Any = _jax(id)
        self._place = _place(self._jax, device, id)
        self._physics: Any = None
        self._start, self._advance, self._empty, seen, actions, limit = _compiled(type(self), id, count)
        self._key = self._new_key(0)
        super().__init__(
            count,
            device,
            observed=seen,
            action_spec=Bounded(-1.0, 1.0, shape=torch.Size([actions]), dtype=torch.float32),
            limit=limit,
        )

    @staticmethod
    @abstractmethod
    def load(id: str) -> tuple[Any, int, int]:
        """The task with JAX's `reset(key)` and `step(state, action)`, its limit, and the steps that an action lasts."""

    def begin(self, mask: Tensor) -> Tensor:
        """Start as the task does."""
        if self._physics is None:
            zeros = self._jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), self._empty)
            self._physics, mask = self._put(zeros), torch.ones_like(mask)
        self._physics, self._key = self._start(self._physics, self._key, self._jax.dlpack.from_dlpack(mask))
        return self._observed()

    def advance(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take an action in [-1, 1] in every environment."""
        taken = self._jax.dlpack.from_dlpack(action.detach().clamp(-1.0, 1.0).contiguous())
        self._physics = self._advance(self._physics, taken)
        return self._observed(), _to_torch(self._physics.reward), _to_torch(self._physics.done) > 0

    def get_extra_state(self) -> Tensor:
        """The state outside PyTorch, physics and JAX's random key, as bytes."""
        held = self._jax.tree.leaves((self._physics, self._key))
        return torch.from_numpy(np.concatenate([np.asarray(leaf).reshape(-1).view(np.uint8) for leaf in held]))

    def set_extra_state(self, state: Tensor) -> None:
        """Restore it; raises ValueError for the state of another task or of another number of environments."""
        likes, structure = self._jax.tree.flatten((self._empty, self._key))
        raw, sizes = state.cpu().numpy(), [int(np.prod(like.shape)) * like.dtype.itemsize for like in likes]
        if len(raw) != sum(sizes):
            raise ValueError(f"{len(raw)} bytes of physics were saved and there are {sum(sizes)}")
        parts = np.split(raw, np.cumsum(sizes)[:-1])
        leaves = [part.copy().view(like.dtype).reshape(like.shape) for part, like in zip(parts, likes, strict=True)]
        self._physics, self._key = self._put(self._jax.tree.unflatten(structure, leaves))

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self._key = self._new_key(seed)

    def _new_key(self, seed: int) -> Any:
        return self._put(self._jax.random.PRNGKey(seed))

    def _put(self, tree: Any) -> Any:
        # Committed to its device, as actions are: JAX compiles separately for committed and uncommitted arrays.
        return self._jax.device_put(tree, self._place)

    def _observed(self) -> Tensor:
        return _to_torch(_vector(self._physics.obs))


class Brax(JaxEnv):
    """Tasks of Brax, truncated after 1000 steps as in Brax's own training."""

    @staticmethod
    def load(id: str) -> tuple[Any, int, int]:
        """Its environment, as it comes."""
        tasks: Any = require("brax.envs", f"env.id={id}")
        known = [f"brax/{task}" for task in tasks._envs]
        if id not in known:
            raise ConfigError(f"env.id={id} is not a Brax task{nearest(id, known)}")
        return tasks.get_environment(id.removeprefix("brax/")), 1000, 1


class Playground(JaxEnv):
    """Tasks of MuJoCo Playground with MJX's own physics (not Warp's), truncated at each task's length.

    Of an observation that is a dictionary the agent sees `state`: the other is for critics, and for simulation only.
    """

    @staticmethod
    def load(id: str) -> tuple[Any, int, int]:
        """Its environment; raises ConfigError rather than have robots downloaded."""
        playground: Any = require("mujoco_playground", f"env.id={id}")
        suites = (playground.dm_control_suite, playground.locomotion, playground.manipulation)
        known = {f"playground/{task}": suite for suite in suites for task in suite.ALL_ENVS}
        if id not in known:
            raise ConfigError(f"env.id={id} is not a task of MuJoCo Playground{nearest(id, known)}")
        robots = importlib.import_module("mujoco_playground._src.mjx_env").MENAGERIE_PATH
        if known[id] is not playground.dm_control_suite and not robots.exists():
            raise ConfigError(
                f"env.id={id} needs robots that MuJoCo Playground downloads: have it do so once by python -c "
                "'from mujoco_playground._src.mjx_env import ensure_menagerie_exists as get; get()'."
            )
        name = id.removeprefix("playground/")
        config = known[id].get_default_config(name)
        config.impl = "jax"
        try:
            env = known[id].load(name, config)
        except (AttributeError, ImportError, TypeError) as error:
            mujoco = importlib.import_module("mujoco").__version__
            raise ConfigError(
                f"env.id={id}: this MuJoCo Playground cannot make it with MuJoCo {mujoco} ({short(error)}): "
                "take another task, or other versions."
            ) from error
        return env, -(-config.episode_length // config.action_repeat), config.action_repeat


@cache
def _compiled(family: type[JaxEnv], id: str, count: int) -> tuple[Any, ...]:
    """Functions that start episodes and that step; their state's shapes; observed numbers, actions, and the limit."""
    jax = _jax(id)
    env, limit, repeats = _quiet(family.load)(id)

    def firm(state: Any) -> Any:
        # Of the same types from a reset and from a step, or both would be compiled twice: JAX has weak ones.
        return jax.tree.map(lambda leaf: leaf.astype(leaf.dtype), state)

    def reset(key: Any) -> tuple[Any, Any]:
        key, mine = jax.random.split(key)
        return firm(jax.vmap(env.reset)(jax.random.split(mine, count))), key

    def reset_masked(state: Any, key: Any, mask: Any) -> tuple[Any, Any]:
        fresh, key = reset(key)

        def choose(new: Any, old: Any) -> Any:
            return jax.numpy.where(mask.reshape(count, *[1] * (new.ndim - 1)), new, old)

        chosen: Any = jax.tree.map(choose, fresh, state)
        return chosen, key

    def start(state: Any, key: Any, mask: Any) -> tuple[Any, Any]:
        # Decided on the physics' device: the host never waits to learn whether an episode ended.
        result: tuple[Any, Any] = jax.lax.cond(
            mask.any(), reset_masked, lambda state, key, mask: (state, key), state, key, mask
        )
        return result

    def advance(state: Any, action: Any) -> Any:
        total: Any = 0.0
        for _ in range(repeats):
            state = jax.vmap(env.step)(state, action)
            total += state.reward
        return firm(state.replace(reward=total))

    # Only traced.
    empty, _ = jax.eval_shape(_quiet(reset), jax.random.PRNGKey(0))
    seen = _vector(empty.obs)
    if seen is None or len(seen.shape) != 2:
        what = f"{sorted(empty.obs)}" if isinstance(empty.obs, Mapping) else f"of shape {seen.shape[1:]}"
        raise ConfigError(f"env.id={id} has observations {what}: SAC takes vectors, or `state` out of a dictionary.")
    compiled = [jax.jit(_quiet(one)) for one in (start, advance)]
    return *compiled, empty, seen.shape[-1], int(env.action_size), limit


def _vector(observation: Any) -> Any:
    return observation.get("state") if isinstance(observation, Mapping) else observation


def _jax(id: str) -> Any:
    # PyTorch and JAX share a GPU: otherwise JAX takes three quarters of its memory at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    _quiet(require)("brax" if id.startswith("brax/") else "mujoco_playground", f"env.id={id}")  # JAX comes with it
    return _quiet(importlib.import_module)("jax")


def _place(jax: Any, device: torch.device, id: str) -> Any:
    try:
        return jax.devices("cpu" if device.type == "cpu" else "cuda")[device.index or 0]
    except RuntimeError as error:
        raise ConfigError(
            f"env.id={id} on device={device} needs JAX for it: pip install 'jax[cuda12]', or give device=cpu."
        ) from error


def _quiet(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same without the warnings of JAX's tracing and of imports, such as the one that Brax is unmaintained."""

    @wraps(function)
    def call(*arguments: Any) -> Any:
        handlers = list(logging.root.handlers)
        try:
            with quiet(mujoco=True):
                warnings.simplefilter("ignore")
                return function(*arguments)
        finally:
            # One of what is imported logs by the root logger, which gets a handler and says our lines a second time.
            logging.root.handlers[:] = handlers

    return call


def _to_torch(array: Any) -> Tensor:
    return torch.utils.dlpack.from_dlpack(array).to(torch.float32)
