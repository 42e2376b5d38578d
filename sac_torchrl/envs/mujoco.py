"""The state of MuJoCo's models and simulations as data: their arrays, and what MuJoCo restores a simulation from."""

import importlib
from typing import Any

import numpy as np
import torch

from sac_torchrl.trees import Tree

# Drawing and names: large, and no step reads them.
_UNUSED = ("mesh_", "skin_", "bvh_", "tex_", "oct_", "name", "text_", "paths", "_")


def mujoco_type(name: str) -> Any:
    """MuJoCo's class of this name, for isinstance; `()` where MuJoCo is not installed."""
    try:
        return getattr(importlib.import_module("mujoco"), name)
    except ModuleNotFoundError:
        return ()


def physics(value: Any) -> tuple[Any, Any] | None:
    """Model and data of a DeepMind Control physics; None for anything else."""
    mujoco = isinstance(getattr(getattr(value, "data", None), "ptr", None), mujoco_type("MjData"))
    return (value.model.ptr, value.data.ptr) if mujoco else None


def integration(data: Any) -> torch.Tensor:
    """The state `(n,)` of a simulation, float64, by mj_getState."""
    mujoco = importlib.import_module("mujoco")
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(data.model, kind))
    mujoco.mj_getState(data.model, data, state, kind)
    return torch.from_numpy(state)


def put_data(encoded: Tree, data: Any) -> None:
    """Put back `integration` and the arrays of `pack`; raises ValueError for another model's."""
    mujoco = importlib.import_module("mujoco")
    kind, state = mujoco.mjtState.mjSTATE_INTEGRATION, encoded["integration"].numpy()
    if state.size != mujoco.mj_stateSize(data.model, kind):
        raise ValueError("the simulation was saved from another model")
    mujoco.mj_setState(data.model, data, state, kind)
    mujoco.mj_forward(data.model, data)  # finds the contacts and makes room for what depends on them
    # What is derived from the state belongs to the step before: the next reward may be a difference from it.
    unpack(encoded, data)


def pack(holder: Any) -> Tree:
    """All arrays of a model or a simulation that a step may read."""
    arrays = _arrays(holder)
    layout = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    return {"layout": layout, "bytes": to_bytes(b"".join(array.tobytes() for array in arrays.values()))}


def unpack(encoded: Tree, holder: Any) -> None:
    """Write them back in place."""
    raw, start, arrays = from_bytes(encoded["bytes"]), 0, _arrays(holder)
    for name, dtype, shape in encoded["layout"]:
        count = int(np.prod(shape))
        saved = np.frombuffer(raw, np.dtype(dtype), count, start).reshape(shape)
        start += saved.nbytes
        # The number of constraint rows differs from step to step; every step computes them.
        if arrays[name].shape == saved.shape and arrays[name].flags.writeable:
            arrays[name][...] = saved


def to_bytes(raw: bytes) -> torch.Tensor:
    """Bytes as a tensor of uint8 `(n,)`."""
    return torch.from_numpy(np.frombuffer(raw, np.uint8).copy())


def from_bytes(tensor: torch.Tensor) -> bytes:
    """The bytes that `to_bytes` took."""
    return tensor.numpy().tobytes()


def _arrays(holder: Any) -> dict[str, Any]:
    found = {name: getattr(holder, name) for name in dir(holder) if not name.startswith(_UNUSED)}
    return {name: array for name, array in found.items() if isinstance(array, np.ndarray)}
