"""Brax tasks as a simulator of tensors: the physics is JAX's, compiled once, and memory is shared with PyTorch."""

import importlib
import warnings
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch
import torch.utils.dlpack
from torch import Tensor
from torchrl.data import Bounded

from sac_torchrl.errors import ConfigError, nearest
from sac_torchrl.simulators import Simulator

# TorchRL's BraxWrapper clears all of JAX's caches every 20 steps, unless told not to, and so compiles the physics
# anew (its `cache_clear_frequency=None` means 20), applies `vmap` outside of `jit`, hands the whole state of the
# physics through PyTorch at every step, and has no time limit. docs/collectors.md has the measurement.


class Brax(Simulator):
    """`count` environments of the Brax task `name`, truncated after 1000 steps as in Brax's own training.

    The state of the physics stays with JAX. Raises ConfigError where Brax is not installed or has no such task.
    """

    def __init__(self, name: str, count: int, device: torch.device) -> None:
        self._jax: Any
        self._jax, env = _quiet(_load)(name)
        self._place = _place(self._jax, device, name)
        self._physics: Any = None
        self._reset_all, self._reset_some, self._advance = _compiled(name, count)
        self._key = self._new_key(0)
        # Only traced: how many numbers are observed.
        seen = self._jax.eval_shape(_quiet(env.reset), self._key).obs
        super().__init__(
            count,
            device,
            observed=seen.shape[-1],
            action_spec=Bounded(-1.0, 1.0, shape=torch.Size([int(env.action_size)]), dtype=torch.float32),
            limit=1000,
        )

    def begin(self, mask: Tensor) -> Tensor:
        """Start as the task does."""
        if self._physics is None:
            self._physics, self._key = self._reset_all(self._key)
        else:
            given = self._jax.dlpack.from_dlpack(mask)
            self._physics, self._key = self._reset_some(self._physics, self._key, given)
        return _to_torch(self._physics.obs)

    def advance(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take an action in [-1, 1] in every environment."""
        taken = self._jax.dlpack.from_dlpack(action.detach().clamp(-1.0, 1.0).contiguous())
        self._physics = self._advance(self._physics, taken)
        done = _to_torch(self._physics.done) > 0
        return _to_torch(self._physics.obs), _to_torch(self._physics.reward), done

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self._key = self._new_key(seed)

    def _new_key(self, seed: int) -> Any:
        # Bound to its device, as actions are: JAX compiles anew for what is bound and what is not.
        return self._jax.device_put(self._jax.random.PRNGKey(seed), self._place)


@cache
def _compiled(name: str, count: int) -> tuple[Callable[..., Any], ...]:
    """Functions that reset all environments, or some of them, and that step them."""
    jax, env = _quiet(_load)(name)

    def reset_all(key: Any) -> tuple[Any, Any]:
        key, mine = jax.random.split(key)
        state = jax.vmap(env.reset)(jax.random.split(mine, count))
        # Of the very types that a step returns, or the step would be compiled twice.
        return jax.tree.map(lambda leaf: leaf.astype(leaf.dtype), state), key

    def reset_masked(state: Any, key: Any, mask: Any) -> tuple[Any, Any]:
        fresh, key = reset_all(key)

        def choose(new: Any, old: Any) -> Any:
            return jax.numpy.where(mask.reshape(count, *[1] * (new.ndim - 1)), new, old)

        chosen: Any = jax.tree.map(choose, fresh, state)
        return chosen, key

    def reset_some(state: Any, key: Any, mask: Any) -> tuple[Any, Any]:
        # Decided where the physics runs: the host never asks whether something ended.
        result: tuple[Any, Any] = jax.lax.cond(
            mask.any(), reset_masked, lambda state, key, mask: (state, key), state, key, mask
        )
        return result

    return tuple(jax.jit(_quiet(one)) for one in (reset_all, reset_some, jax.vmap(env.step)))


def _load(name: str) -> tuple[Any, Any]:
    """JAX, and the task."""
    try:
        jax, tasks = importlib.import_module("jax"), importlib.import_module("brax.envs")
    except ImportError as error:
        raise ConfigError(f"env.id=brax/{name} needs Brax: pip install 'sac_torchrl[brax]'.") from error
    known = [f"brax/{task}" for task in tasks._envs]
    if f"brax/{name}" not in known:
        raise ConfigError(f"env.id=brax/{name} is not a Brax task{nearest(f'brax/{name}', known)}")
    return jax, tasks.get_environment(name)


def _place(jax: Any, device: torch.device, name: str) -> Any:
    try:
        return jax.devices("cpu" if device.type == "cpu" else "cuda")[device.index or 0]
    except RuntimeError as error:
        raise ConfigError(
            f"env.id=brax/{name} on device={device} needs JAX for it: pip install 'jax[cuda12]', or give device=cpu."
        ) from error


def _quiet(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same, without what is said while JAX traces it: that nobody develops Brax, or what it imports."""

    @wraps(function)
    def call(*arguments: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*arguments)

    return call


def _to_torch(array: Any) -> Tensor:
    return torch.utils.dlpack.from_dlpack(array).to(torch.float32)
