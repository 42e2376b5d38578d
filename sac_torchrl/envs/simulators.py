"""Simulators that step all environments of a task at once: tensors, JAX and EnvPool."""

import importlib

import torch
from torchrl.envs import EnvBase

from sac_torchrl.envs.classic import TORCH
from sac_torchrl.envs.vector import wrapped
from sac_torchrl.errors import ConfigError, nearest

_TORCH = "torch/"
_JAX = {"brax/": "Brax", "playground/": "Playground"}
_POOL = "envpool/"
SIMULATORS = (_TORCH, *_JAX, _POOL)  # what their ids begin with


def open_simulator(id: str, count: int, device: torch.device, *, render_mode: str | None) -> EnvBase:
    """Open `count` environments of a simulator's task, tensors on `device`; raises ConfigError."""
    if id.startswith(_POOL):
        if render_mode is not None:
            raise ConfigError(f"env.id={id} cannot be rendered: EnvPool steps without pictures.")
        # An optional package.
        return wrapped(importlib.import_module("sac_torchrl.envs.envpool").Pool(id.removeprefix(_POOL), count))
    if render_mode is not None:
        raise ConfigError(f"env.id={id} cannot be rendered: its environments are tensors.")
    if family := _JAX.get(id.partition("/")[0] + "/"):
        # Importing JAX takes seconds.
        simulator: EnvBase = getattr(importlib.import_module("sac_torchrl.envs.jax"), family)(id, count, device)
        return simulator
    name = id.removeprefix(_TORCH)
    if name not in TORCH:
        known = [_TORCH + task for task in TORCH]
        raise ConfigError(f"env.id={id} is not a tensor environment{nearest(id, known)}")
    return TORCH[name](count, device)
