"""The state of environments in the middle of their episodes, as data: read from them and put back, bit for bit.

Gymnasium environments are read attribute by attribute, wrappers, and whatever objects they hold, included; so are the
class attributes and global variables that their methods change. An environment with `state_dict()` and
`load_state_dict(state)` is asked instead. TorchRL environments that carry their state in the tensordict
(`batch_locked=False`), and simulators, add their buffers and generators.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torchrl.envs import EnvBase, GymWrapper, TransformedEnv

from sac_torchrl.envs.adapter import TolerateFaults
from sac_torchrl.envs.attributes import module_name
from sac_torchrl.envs.decoding import Decoder
from sac_torchrl.envs.encoding import Encoder
from sac_torchrl.envs.tensors import TensorEnv
from sac_torchrl.envs.vector import SequentialVectorEnv
from sac_torchrl.trees import Tree


def capture(env: EnvBase) -> Tree:
    """The state of all environments in `env`, without what the running tensordict holds.

    `missing`, if present, lists what could not be read: an episode cannot be continued from its middle then.
    """
    if isinstance(env, TransformedEnv):
        base = capture(env.base_env)
        missing = {"missing": base.pop("missing")} if "missing" in base else {}
        return {"base": base, "transforms": dict(env.transform.state_dict())} | missing
    encoder = Encoder()
    if (envs := _gymnasium(env)) is not None:
        state: Tree = {"envs": [encoder.layers(list(_layers(one))) for one in envs]}
        if shared := encoder.shared():
            state["shared"] = shared
    elif env.batch_locked and not isinstance(env, TensorEnv):
        return {"missing": [f"{type(env).__name__} keeps its state outside of the tensordict"]}
    else:
        held = {name: value for name, value in vars(env).items() if isinstance(value, _STATE)}
        attributes = {name: encoder.value(value, name) for name, value in held.items()}
        state = {"buffers": dict(env.state_dict()), "attributes": attributes}
    if encoder.missing:
        state["missing"] = encoder.missing
    return state


_STATE = (torch.Generator, torch.Tensor, np.random.Generator)


def restore(env: EnvBase, state: Tree) -> None:
    """Restore a captured state into `env`, built and reset as the saved one was; what is missing stays as it is.

    Raises `ValueError`, `KeyError`, `TypeError`, `AttributeError` or `RuntimeError` where it is another environment's.
    """
    if isinstance(env, TransformedEnv):
        restore(env.base_env, state["base"])
        env.transform.load_state_dict(state["transforms"])
    elif (envs := _gymnasium(env)) is not None:
        if len(state["envs"]) != len(envs):
            raise ValueError(f"{len(state['envs'])} environments were saved and there are {len(envs)}")
        layers = [list(_layers(one)) for one in envs]
        decoder = Decoder(layers)
        for one, saved in zip(layers, state["envs"], strict=True):
            decoder.layers(one, saved)
        decoder.shared(state.get("shared", {}))
    elif "buffers" in state:
        env.load_state_dict(state["buffers"])
        Decoder([[env]]).attributes(env, state["attributes"])


@contextmanager
def unshared(env: EnvBase) -> Iterator[None]:
    """Restore, after the block, what the classes and modules of `env` held before it."""
    base = env.base_env if isinstance(env, TransformedEnv) else env
    layers = [list(_layers(one)) for one in _gymnasium(base) or []]
    encoder = Encoder()
    saved = encoder.shared([type(one) for every in layers for one in every])
    try:
        yield
    finally:
        if saved:
            Decoder(layers).shared(saved)


def _gymnasium(env: EnvBase) -> list[gym.Env[Any, Any]] | None:
    vector = getattr(env, "_env", None)
    return list(vector.envs) if isinstance(env, GymWrapper) and isinstance(vector, SequentialVectorEnv) else None


def _layers(env: Any) -> Iterator[Any]:
    """The wrappers from the outside in, the environment, and what a DeepMind Control environment is made of."""
    while isinstance(env, gym.Wrapper):
        if not isinstance(env, TolerateFaults):
            yield env
        env = env.env
    yield env
    inner: Any = getattr(env, "_env", None)
    if module_name(type(inner)).startswith("dm_control."):
        yield inner
        yield inner.task
