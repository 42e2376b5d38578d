"""Attributes as data: encoded by what they are, whatever they are called."""

import enum
from collections import defaultdict, deque
from collections.abc import Iterable
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Space

from sac_torchrl.envs.attributes import (
    CODE,
    CONSTANT,
    DICTS,
    generators,
    in_library,
    module_name,
    name_of,
    package,
    plain,
    shared,
    slots,
)
from sac_torchrl.envs.mujoco import integration, mujoco_type, pack, physics, to_bytes
from sac_torchrl.envs.random_state import read_state
from sac_torchrl.trees import Tree

CONTAINERS: dict[type, str] = {list: "list", tuple: "tuple", set: "set", deque: "deque", frozenset: "frozenset"}
# Which one of several equal ones stands in a place makes no difference.
_VALUES = (tuple, frozenset, np.generic, bytes, complex, range, slice, enum.Enum)
_UNCHANGED = object()


class _Opaque(Exception):
    """A value that cannot be read."""


class Encoder:
    """Encodes the layers of environments, what they hold, and what their classes and modules hold.

    `missing` names what could not be read. A value that is met again is encoded as a reference.
    """

    def __init__(self) -> None:
        self.missing: list[str] = []
        self._seen: dict[int, tuple[Any, Tree]] = {}
        self._layers = set[int]()
        self._numbers = 0
        self._classes: dict[type, None] = {}

    def layers(self, layers: list[Any]) -> list[Tree]:
        """One environment: its wrappers from the outside in, itself, and what a DeepMind Control task is made of."""
        encoded: list[Tree] = [{"class": type(one).__qualname__} for one in layers]
        for one, part in zip(layers, encoded, strict=True):
            self._seen[id(one)] = one, part
            self._layers.add(id(one))
        for one, part in zip(layers, encoded, strict=True):
            if own_state(one):
                part["own"] = one.state_dict()
            else:
                part["attributes"] = self.attributes(one, type(one).__name__, partly=True)
        return encoded

    def attributes(self, holder: Any, path: str, *, partly: bool = False) -> Tree:
        """The attributes of a holder; `partly` notes in `missing` what cannot be read, instead of raising `_Opaque`."""
        self._classes[type(holder)] = None
        encoded: Tree = {}
        held = {name: getattr(holder, name) for name in slots(type(holder)) if hasattr(holder, name)}
        for name, value in (held | getattr(holder, "__dict__", {})).items():
            if id(value) in self._layers or _constant(holder, name, value):
                continue
            before = list(self._seen)
            try:
                if (one := self.value(value, f"{path}.{name}")) is not _UNCHANGED:
                    encoded[name] = one
            except _Opaque as error:
                if not partly:
                    raise
                self.missing.append(str(error))
                self._seen = {key: self._seen[key] for key in before}
        return encoded

    def shared(self, classes: Iterable[type] = ()) -> Tree:
        """What the classes and modules of all that was encoded hold for it, and `classes`, by their names."""
        self._classes |= dict.fromkeys(classes)
        encoded: Tree = {}
        done = set[tuple[int, str]]()
        while self._classes:
            for owner, holder, name, value, assigned in shared(self._classes.popitem()[0]):
                if (id(holder), name) in done:
                    continue
                done.add((id(holder), name))
                before = list(self._seen)
                try:
                    if (one := self.value(value, f"{owner.replace(':', '.')}.{name}")) is not _UNCHANGED:
                        encoded.setdefault(owner, {})[name] = one
                except _Opaque as error:
                    self._seen = {key: self._seen[key] for key in before}
                    if assigned:
                        self.missing.append(str(error))
        return encoded

    def value(self, value: Any, path: str) -> Any:
        """One value; `_UNCHANGED` for a space without a generator."""
        if value is None or type(value) in (bool, int, float, str):
            return value
        if id(value) in self._seen:
            first = self._seen[id(value)][1]
            if "id" not in first:
                self._numbers += 1
                first["id"] = self._numbers
            return {"type": "same", "id": first["id"]}
        encoded: Tree = {}
        states: list[Tree | None] = []
        if isinstance(value, Space):
            states = [None if one._np_random is None else self._generator(one._np_random) for one in generators(value)]
            if not any(states):
                return _UNCHANGED
        if not isinstance(value, _VALUES):
            self._seen[id(value)] = value, encoded  # before what it holds, which may hold it
        if states:
            encoded |= {"type": "space", "generators": states}
        elif isinstance(value, CODE):
            self._code(encoded, value, path)
        else:
            self._data(encoded, value, path)
        return encoded

    def _data(self, encoded: Tree, value: Any, path: str) -> None:
        if isinstance(value, enum.Enum):
            encoded |= {"type": "enum", "class": name_of(type(value)), "name": value.name}
        elif type(value) in CONTAINERS:
            encoded["type"] = CONTAINERS[type(value)]
            encoded["items"] = [self._item(item, f"{path}[{index}]") for index, item in enumerate(value)]
            encoded["limit"] = value.maxlen if isinstance(value, deque) else None
        elif isinstance(value, tuple) and hasattr(value, "_fields"):
            items = [self._item(item, f"{path}[{index}]") for index, item in enumerate(value)]
            encoded |= {"type": "named", "class": name_of(type(value)), "items": items}
        elif type(value) in DICTS.values():
            encoded["type"] = "dict"
            encoded["items"] = [[self._item(k, path), self._item(v, f"{path}[{k!r}]")] for k, v in value.items()]
            if type(value) is not dict:
                encoded["class"] = type(value).__name__
            if isinstance(value, defaultdict):
                encoded["factory"] = self._item(value.default_factory, f"{path}.default_factory")
        elif isinstance(value, (np.ndarray, np.generic)) and value.dtype.names is None:
            kind = "array" if isinstance(value, np.ndarray) else "number"
            encoded |= {"type": kind, "dtype": value.dtype.str, "shape": list(value.shape)}
            if value.dtype.hasobject:
                encoded["items"] = [self._item(item, f"{path}[{i}]") for i, item in enumerate(value.ravel().tolist())]
            else:
                encoded["bytes"] = to_bytes(value.tobytes())
        elif type(value) in (bytes, bytearray):
            encoded |= {"type": type(value).__name__, "bytes": to_bytes(bytes(value))}
        elif type(value) is complex:
            encoded |= {"type": "complex", "parts": [value.real, value.imag]}
        elif type(value) in (range, slice):
            encoded |= {"type": type(value).__name__, "parts": [value.start, value.stop, value.step]}
        elif isinstance(value, torch.Tensor):
            encoded |= {"type": "tensor", "tensor": value}
        elif (generator := self._generator(value)) is not None:
            encoded |= generator
        else:
            self._object(encoded, value, path)

    def _object(self, encoded: Tree, value: Any, path: str) -> None:
        if isinstance(value, mujoco_type("MjModel")):
            options = {name: getattr(value.opt, name) for name in dir(value.opt) if not name.startswith("_")}
            kept = {name: self.value(option, path) for name, option in options.items() if option is not None}
            encoded |= {"type": "model", "options": kept, **pack(value)}
        elif isinstance(value, mujoco_type("MjData")):
            encoded |= {"type": "data", "integration": integration(value), **pack(value)}
        elif module_name(type(value)).startswith("dm_control.") and (inner := physics(value)) is not None:
            encoded |= {"type": "physics", "model": self.value(inner[0], path), "data": self.value(inner[1], path)}
        elif own_state(value):
            encoded |= {"type": "own", "state": self.value(dict(value.state_dict()), path)}
        elif type(value) is object:
            encoded["type"] = "mark"  # only which one it is tells it from others
        elif plain(type(value)):
            encoded |= {"type": "object", "class": name_of(type(value))}
            encoded["attributes"] = self.attributes(value, path)
        else:
            raise _Opaque(f"{path} is a {name_of(type(value)).strip(':').replace(':', '.')}")

    def _code(self, encoded: Tree, value: Any, path: str) -> None:
        """A function with what it closes over, a method, a class: which one, and what it holds."""
        if isinstance(value, partial):
            encoded["type"] = "partial"
            encoded["function"] = self._item(value.func, path)
            encoded["arguments"] = self._item(value.args, path)
            encoded["keywords"] = self._item(value.keywords, path)
        elif isinstance(value, MethodType):
            encoded |= {"type": "method", "name": value.__name__, "of": self._item(value.__self__, f"{path}.__self__")}
        elif isinstance(value, FunctionType):
            encoded |= {"type": "function", "name": name_of(value)}
            inside = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))
            cells: Tree = {}
            for name, cell in inside.items():
                before = list(self._seen)
                try:
                    content = cell.cell_contents
                    if (one := self.value(content, f"{path}.{name}")) is not _UNCHANGED:
                        cells[name] = one
                except (_Opaque, ValueError):  # what code closes over is often no state; ValueError: an empty cell
                    self._seen = {key: self._seen[key] for key in before}
            encoded |= {"cells": cells, "defaults": self._item(value.__defaults__, path), "held": {}}
            encoded["held"] = {name: self._item(held, f"{path}.{name}") for name, held in vars(value).items()}
        else:
            encoded |= {"type": "code", "name": name_of(value)}

    def _item(self, value: Any, path: str) -> Any:
        """A value inside another, which has to stand for something."""
        if isinstance(value, CONSTANT):
            return {"type": "constant"}
        one = self.value(value, path)
        return {"type": "constant"} if one is _UNCHANGED else one

    def _generator(self, value: Any) -> Tree | None:
        state = read_state(value)
        return None if state is None else {"type": "generator", "state": self.value(state, "")}


def own_state(value: Any) -> bool:
    """Whether it says itself what its state is."""
    return hasattr(type(value), "state_dict") and hasattr(type(value), "load_state_dict")


def _constant(holder: Any, name: str, value: Any) -> bool:
    """Whether an attribute is no state: by what it is, and in a library's own classes by what they keep in it."""
    if isinstance(value, CONSTANT):
        return True
    if module_name(type(value)).startswith(("dm_control.rl.", "gymnasium.envs.mujoco.mujoco_rendering")):
        return True
    if package(type(holder)) == "sac_torchrl" and (
        isinstance(value, Space) or name in ("_command", "_saved_kwargs", "native_spaces")
    ):
        return True  # nothing is drawn from them, and batching them makes generators that nothing seeds
    return in_library(type(holder)) and (isinstance(value, CODE) or name in ("metadata", "_metadata"))
