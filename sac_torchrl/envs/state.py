"""The state of environments in the middle of their episodes, as data: read from them and put back, bit for bit.

Gymnasium environments are read attribute by attribute, wrappers included: numbers, text, arrays, containers of these,
random number generators, MuJoCo models and data, DeepMind Control tasks. One that holds anything else is refused by
name, unless it has `state_dict()` and `load_state_dict(state)` of its own. TorchRL environments that carry their state
in the tensordict (`batch_locked=False`), and simulators, add their buffers and generators.
"""

import importlib
import random
from collections import deque
from collections.abc import Iterator
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Space
from torchrl.data import TensorSpec
from torchrl.envs import EnvBase, GymWrapper, TransformedEnv

from sac_torchrl.envs.adapter import TolerateFaults
from sac_torchrl.envs.tensors import TensorEnv
from sac_torchrl.envs.vector import SequentialVectorEnv
from sac_torchrl.trees import Tree

# Spaces too: their generators are seeded by nobody, so that what is drawn from them differs from run to run anyway.
_STATIC = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, partial, Space, EnvSpec, np.dtype, np.ufunc)
_CONTAINERS: dict[type, str] = {list: "list", tuple: "tuple", set: "set", deque: "deque"}
# Drawing and names: large, and no step reads them.
_UNUSED = ("mesh_", "skin_", "bvh_", "tex_", "oct_", "name", "text_", "paths", "_")


class Uncapturable(Exception):
    """An environment whose state cannot be read, and the part of it that is to blame."""


def capture(env: EnvBase) -> Tree:
    """The state of all environments in `env`, without what the running tensordict holds.

    Raises `Uncapturable`, naming the part, where there is something that cannot be read and put back.
    """
    if isinstance(env, TransformedEnv):
        return {"base": capture(env.base_env), "transforms": dict(env.transform.state_dict())}
    vector = getattr(env, "_env", None)
    if isinstance(env, GymWrapper) and isinstance(vector, SequentialVectorEnv):
        return {"envs": [_gymnasium(one) for one in vector.envs]}
    if env.batch_locked and not isinstance(env, TensorEnv):
        raise Uncapturable(f"{type(env).__name__} keeps its state outside of the tensordict")
    return {"buffers": dict(env.state_dict()), "attributes": _attributes(env, type(env).__name__)}


def restore(env: EnvBase, state: Tree) -> None:
    """Put a captured state into `env`, which was built and reset as the saved one was.

    Raises `ValueError`, `KeyError`, `TypeError` or `RuntimeError` where it is another environment's.
    """
    if isinstance(env, TransformedEnv):
        restore(env.base_env, state["base"])
        env.transform.load_state_dict(state["transforms"])
        return
    vector = getattr(env, "_env", None)
    if isinstance(env, GymWrapper) and isinstance(vector, SequentialVectorEnv):
        if len(state["envs"]) != vector.num_envs:
            raise ValueError(f"{len(state['envs'])} environments were saved and there are {vector.num_envs}")
        for one, saved in zip(vector.envs, state["envs"], strict=True):
            _put_gymnasium(one, saved)
        return
    env.load_state_dict(state["buffers"])
    _put_attributes(env, state["attributes"])


def _gymnasium(env: gym.Env[Any, Any]) -> list[Any]:
    return [
        {"class": type(one).__qualname__}
        | ({"own": one.state_dict()} if _own(one) else {"attributes": _attributes(one, type(one).__name__)})
        for one in _layers(env)
    ]


def _put_gymnasium(env: gym.Env[Any, Any], saved: list[Any]) -> None:
    layers: list[Any] = list(_layers(env))
    classes = [type(one).__qualname__ for one in layers]
    if (found := [part["class"] for part in saved]) != classes:
        raise ValueError(f"the environment was made of {found} and is made of {classes}")
    for one, part in zip(layers, saved, strict=True):
        if "own" in part:
            one.load_state_dict(part["own"])
        else:
            _put_attributes(one, part["attributes"])


def _layers(env: Any) -> Iterator[Any]:
    """The wrappers from the outside in, the environment, and what a DeepMind Control environment is made of."""
    while isinstance(env, gym.Wrapper):
        if not isinstance(env, TolerateFaults):
            yield env
        env = env.env
    yield env
    inner: Any = getattr(env, "_env", None)
    if type(inner).__module__.startswith("dm_control."):
        yield inner
        yield inner.task


def _own(layer: Any) -> bool:
    return hasattr(type(layer), "state_dict") and hasattr(type(layer), "load_state_dict")


def _attributes(holder: Any, path: str) -> Tree:
    encoded: Tree = {}
    for name, value in vars(holder).items():
        if not _elsewhere(holder, name, value):
            encoded[name] = _encode(value, f"{path}.{name}")
    return encoded


def _put_attributes(holder: Any, saved: Tree) -> None:
    for name, encoded in saved.items():
        # Past __setattr__: wrappers and modules have rules about which names may be assigned.
        vars(holder)[name] = _decode(encoded, vars(holder).get(name))


def _elsewhere(holder: Any, name: str, value: Any) -> bool:
    """Whether an attribute is constant, or read on its own."""
    if isinstance(value, (*_STATIC, gym.Env, TensorSpec)) or name in ("metadata", "_metadata", "_task"):
        return True
    if isinstance(holder, EnvBase):
        return not isinstance(value, (torch.Generator, torch.Tensor, np.random.Generator))
    module = type(value).__module__
    return module.startswith(("dm_control.rl.", "gymnasium.envs.mujoco.mujoco_rendering"))


def _encode(value: Any, path: str) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in _CONTAINERS:
        items = [_encode(item, f"{path}[{index}]") for index, item in enumerate(value)]
        limit = value.maxlen if isinstance(value, deque) else None
        return {"type": _CONTAINERS[type(value)], "items": items, "limit": limit}
    if type(value) is dict:
        items = [[_encode(key, path), _encode(item, f"{path}[{key!r}]")] for key, item in value.items()]
        return {"type": "dict", "items": items}
    if isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject and value.dtype.names is None:
        kind = "array" if isinstance(value, np.ndarray) else "number"
        return {"type": kind, "dtype": value.dtype.str, "shape": list(value.shape), "bytes": _bytes(value.tobytes())}
    if type(value) is bytes:
        return {"type": "bytes", "bytes": _bytes(value)}
    if isinstance(value, torch.Tensor) and not value.requires_grad:
        return {"type": "tensor", "tensor": value}
    if (generator := _generator_state(value)) is not None:
        return {"type": "generator", "state": _encode(generator, path)}
    if isinstance(value, _mujoco("MjModel")):
        options = {name: _encode(getattr(value.opt, name), path) for name in dir(value.opt) if not name.startswith("_")}
        return {"type": "model", "options": {k: v for k, v in options.items() if v is not None}, **_pack(value)}
    if isinstance(value, _mujoco("MjData")):
        return {"type": "data", "integration": torch.from_numpy(_integration(value)), **_pack(value)}
    if (inner := _physics(value)) is not None:
        return {"type": "physics", "model": _encode(inner[0], path), "data": _encode(inner[1], path)}
    raise Uncapturable(f"{path} is a {type(value).__module__}.{type(value).__qualname__}")


def _decode(encoded: Any, current: Any) -> Any:
    """The value that was encoded; arrays, generators and simulators are written in place, into `current`."""
    if not isinstance(encoded, dict):
        return encoded
    kind = encoded["type"]
    if kind in _CONTAINERS.values():
        items = [_decode(item, None) for item in encoded["items"]]
        made: Any = {"list": list, "tuple": tuple, "set": set, "deque": partial(deque, maxlen=encoded["limit"])}[kind]
        return made(items)
    if kind == "dict":
        return {_decode(key, None): _decode(item, None) for key, item in encoded["items"]}
    if kind in ("array", "number"):
        array = np.frombuffer(_raw(encoded["bytes"]), np.dtype(encoded["dtype"])).reshape(encoded["shape"]).copy()
        if kind == "number":
            return array[()]
        same = isinstance(current, np.ndarray) and (current.dtype, current.shape) == (array.dtype, array.shape)
        if same and current.flags.writeable:
            current[...] = array
            return current
        return array
    if kind == "bytes":
        return _raw(encoded["bytes"])
    if kind == "tensor":
        return encoded["tensor"].to(current.device) if isinstance(current, torch.Tensor) else encoded["tensor"].clone()
    if kind == "generator":
        return _put_generator(_decode(encoded["state"], None), current)
    if kind == "model":
        for name, option in encoded["options"].items():
            setattr(current.opt, name, _decode(option, None))
        _unpack(encoded, current)
        return current
    if kind == "data":
        _put_data(encoded, current)
        return current
    if kind == "physics":
        model, data = _physics(current) or (None, None)
        _decode(encoded["model"], model)
        _decode(encoded["data"], data)
        return current
    raise ValueError(f"a value of the unknown type {kind}")


def _generator_state(value: Any) -> Any:
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, np.random.RandomState):
        return value.get_state(legacy=False)
    if isinstance(value, random.Random):
        return value.getstate()
    return value.get_state() if isinstance(value, torch.Generator) else None


def _put_generator(state: Any, current: Any) -> Any:
    if isinstance(current, random.Random):
        current.setstate(state)
    elif isinstance(current, (torch.Generator, np.random.RandomState)):
        current.set_state(state)
    else:
        if current is None:  # Gymnasium makes an environment's generator when it is first asked for.
            kinds = {"PCG64": np.random.PCG64, "PCG64DXSM": np.random.PCG64DXSM, "MT19937": np.random.MT19937}
            current = np.random.Generator(kinds[state["bit_generator"]]())
        current.bit_generator.state = state
    return current


def _mujoco(name: str) -> Any:
    try:
        return getattr(importlib.import_module("mujoco"), name)
    except ModuleNotFoundError:
        return ()


def _physics(value: Any) -> tuple[Any, Any] | None:
    mujoco = isinstance(getattr(getattr(value, "data", None), "ptr", None), _mujoco("MjData"))
    return (value.model.ptr, value.data.ptr) if mujoco else None


def _integration(data: Any) -> Any:
    mujoco = importlib.import_module("mujoco")
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(data.model, kind))
    mujoco.mj_getState(data.model, data, state, kind)
    return state


def _put_data(encoded: Tree, data: Any) -> None:
    mujoco = importlib.import_module("mujoco")
    kind, state = mujoco.mjtState.mjSTATE_INTEGRATION, encoded["integration"].numpy()
    if state.size != mujoco.mj_stateSize(data.model, kind):
        raise ValueError("the simulation was saved from another model")
    mujoco.mj_setState(data.model, data, state, kind)
    mujoco.mj_forward(data.model, data)  # finds the contacts and makes room for what depends on them
    # What is derived from the state belongs to the step before: the next reward may be a difference from it.
    _unpack(encoded, data)


def _arrays(holder: Any) -> dict[str, Any]:
    found = {name: getattr(holder, name) for name in dir(holder) if not name.startswith(_UNUSED)}
    return {name: array for name, array in found.items() if isinstance(array, np.ndarray)}


def _pack(holder: Any) -> Tree:
    arrays = _arrays(holder)
    layout = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    return {"layout": layout, "bytes": _bytes(b"".join(array.tobytes() for array in arrays.values()))}


def _unpack(encoded: Tree, holder: Any) -> None:
    raw, start, arrays = _raw(encoded["bytes"]), 0, _arrays(holder)
    for name, dtype, shape in encoded["layout"]:
        count = int(np.prod(shape))
        saved = np.frombuffer(raw, np.dtype(dtype), count, start).reshape(shape)
        start += saved.nbytes
        # The rows of constraints differ in number from step to step and are found anew in each.
        if arrays[name].shape == saved.shape and arrays[name].flags.writeable:
            arrays[name][...] = saved


def _bytes(raw: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(raw, np.uint8).copy())


def _raw(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes()
