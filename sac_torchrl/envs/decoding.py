"""Encoded attributes put back: in place where the environment holds the same thing, so that views stay views."""

from collections import deque
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch

from sac_torchrl.envs.attributes import DICTS, find_code, frozen, generators, name_of, package, plain, shared
from sac_torchrl.envs.encoding import CONTAINERS
from sac_torchrl.envs.mujoco import from_bytes, physics, put_data, unpack
from sac_torchrl.envs.random_state import write_state
from sac_torchrl.trees import Tree


class Decoder:
    """Puts back what an `Encoder` read, into environments that were built as the saved ones were.

    An object that is not there is made without calling its class, and only of a class in a package that the
    environment's own classes come from: a saved state is data, and names no other code.
    """

    def __init__(self, layers: list[list[Any]]) -> None:
        self._made: dict[int, Any] = {}
        self._used: dict[int, Any] = {}  # what was written in place stands for one saved value only
        self._classes = {type(one): None for every in layers for one in every}
        self._packages = {package(cls) for one in self._classes for cls in one.__mro__} - {"builtins"}
        self._constants: dict[int, Any] = {}
        for cls in self._classes:
            for *_, value, _ in shared(cls):
                self._find_constants(value)
        self._sharing = False

    def layers(self, layers: list[Any], saved: list[Tree]) -> None:
        """Put back one environment; raises ValueError where it is made of others."""
        classes = [type(one).__qualname__ for one in layers]
        if (found := [part["class"] for part in saved]) != classes:
            raise ValueError(f"the environment was made of {found} and is made of {classes}")
        for one, part in zip(layers, saved, strict=True):
            self._register(part, one)
        for one, part in zip(layers, saved, strict=True):
            if "own" in part:
                one.load_state_dict(part["own"])
            else:
                self.attributes(one, part["attributes"])

    def attributes(self, holder: Any, saved: Tree) -> None:
        """Put back the attributes of a holder."""
        self._classes[type(holder)] = None
        held = getattr(holder, "__dict__", {})
        for name, encoded in saved.items():
            if name in held or (hasattr(holder, "__dict__") and not hasattr(type(holder), name)):
                # Past __setattr__: wrappers and modules have rules about which names may be assigned.
                held[name] = self.value(encoded, held.get(name))
            else:
                object.__setattr__(holder, name, self.value(encoded, getattr(holder, name, None)))

    def shared(self, saved: Tree) -> None:
        """Put back what classes and modules hold."""
        self._sharing = True
        done = set[tuple[str, str]]()
        while self._classes:
            for owner, holder, name, current, _ in list(shared(self._classes.popitem()[0])):
                if name not in saved.get(owner, {}) or (owner, name) in done:
                    continue
                done.add((owner, name))
                value = self.value(saved[owner][name], current)
                if isinstance(holder, dict):
                    holder[name] = value
                elif value is not current:
                    setattr(holder, name, value)

    def value(self, encoded: Any, current: Any) -> Any:
        """The value that was encoded, `current` itself where that can take it over."""
        if not isinstance(encoded, dict):
            return encoded
        kind = encoded["type"]
        if kind == "same":
            return self._made[encoded["id"]]
        if kind in ("constant", "mark"):
            return self._register(encoded, current if current is not None else object())
        if kind in CONTAINERS.values() or kind in ("dict", "named"):
            return self._container(kind, encoded, current)
        if kind in ("array", "number", "tensor"):
            return self._register(encoded, self._array(kind, encoded, current))
        if kind in ("bytes", "bytearray"):
            return self._register(encoded, {"bytes": bytes, "bytearray": bytearray}[kind](from_bytes(encoded["bytes"])))
        if kind in ("complex", "range", "slice"):
            simple: Any = {"complex": complex, "range": range, "slice": slice}[kind]
            return simple(*encoded["parts"])
        if kind in ("function", "code", "method", "partial", "enum"):
            return self._code(kind, encoded, current)
        if kind in ("space", "generator"):
            return self._register(encoded, self._generator(kind, encoded, current))
        if kind in ("model", "data", "physics"):
            return self._register(encoded, self._simulation(kind, encoded, current))
        if kind == "own":
            current.load_state_dict(self.value(encoded["state"], None))
            return self._register(encoded, current)
        if kind == "object":
            return self._object(encoded, current)
        raise ValueError(f"a value of the unknown type {kind}")

    def _register(self, encoded: Tree, value: Any) -> Any:
        if "id" in encoded:
            self._made[encoded["id"]] = value
        return value

    def _take(self, current: Any) -> bool:
        """Whether `current` may be written in place; not twice, and no constant of a class or module."""
        if id(current) in self._used or (id(current) in self._constants and not self._sharing):
            return False
        self._used[id(current)] = current
        return True

    def _container(self, kind: str, encoded: Tree, current: Any) -> Any:
        items = encoded["items"]
        if kind in ("tuple", "frozenset", "named"):
            inside = list(current) if isinstance(current, tuple) and len(current) == len(items) else [None] * len(items)
            values = [self.value(item, one) for item, one in zip(items, inside, strict=True)]
            if kind != "named":
                return {"tuple": tuple, "frozenset": frozenset}[kind](values)
            return tuple.__new__(self._class(encoded["class"], current), values)
        if kind == "dict":
            cls = DICTS[encoded.get("class", "dict")]
            before = current if isinstance(current, dict) else {}
            in_place = self._sharing and type(current) is cls and self._take(current)
            made = self._register(encoded, current if in_place else cls())
            if "factory" in encoded:
                made.default_factory = self.value(encoded["factory"], getattr(current, "default_factory", None))
            pairs = [(self.value(key, None), item) for key, item in items]
            before = dict(before)
            made.clear()
            for key, item in pairs:
                made[key] = self.value(item, _code_or_object(before.get(key)))
            return made
        made_of: Any = {"list": list, "set": set, "deque": deque}[kind]
        before_items = list(current) if isinstance(current, (list, deque)) and len(current) == len(items) else []
        limit = encoded["limit"]
        in_place = self._sharing and type(current) is made_of and getattr(current, "maxlen", limit) == limit
        fresh: Any = deque(maxlen=limit) if kind == "deque" else made_of()
        made = self._register(encoded, current if in_place and self._take(current) else fresh)
        made.clear()
        for number, item in enumerate(items):
            one = self.value(item, _code_or_object(before_items[number]) if before_items else None)
            made.add(one) if kind == "set" else made.append(one)
        return made

    def _array(self, kind: str, encoded: Tree, current: Any) -> Any:
        if kind == "tensor":
            saved = encoded["tensor"]
            if isinstance(current, torch.nn.Parameter) and self._take(current):
                current.data.copy_(saved)
                return current
            return saved.to(current.device) if isinstance(current, torch.Tensor) else saved.clone()
        dtype, shape = np.dtype(encoded["dtype"]), encoded["shape"]
        if dtype.hasobject:
            array: Any = np.empty(shape, dtype)
            array.ravel()[:] = [self.value(item, None) for item in encoded["items"]]
        else:
            array = np.frombuffer(from_bytes(encoded["bytes"]), dtype).reshape(shape).copy()
        if kind == "number":
            return array[()]
        same = isinstance(current, np.ndarray) and (current.dtype, current.shape) == (array.dtype, array.shape)
        if same and current.flags.writeable and self._take(current):
            current[...] = array
            return current
        return array

    def _code(self, kind: str, encoded: Tree, current: Any) -> Any:
        if kind == "enum":
            return self._class(encoded["class"], current)[encoded["name"]]
        if kind == "partial":
            old = current if isinstance(current, partial) else partial(object)
            function = self.value(encoded["function"], old.func)
            arguments = self.value(encoded["arguments"], old.args)
            return self._register(
                encoded, partial(function, *arguments, **self.value(encoded["keywords"], old.keywords))
            )
        if kind == "method":
            holder = self.value(encoded["of"], getattr(current, "__self__", None))
            owner = holder if isinstance(holder, type) else type(holder)
            name = encoded["name"]
            # Each of SciPy's distributions has methods that its class does not have.
            own = current if isinstance(current, MethodType) and current.__name__ == name else None
            function = next((vars(base)[name] for base in owner.__mro__ if name in vars(base)), own)
            function = getattr(function, "__func__", function)
            if not isinstance(function, FunctionType):
                raise ValueError(f"{owner.__qualname__} has no method {name}")
            return self._register(encoded, MethodType(function, holder))
        if not isinstance(current, (type, FunctionType, BuiltinFunctionType)) or name_of(current) != encoded["name"]:
            current = find_code(encoded["name"], self._packages)
        self._register(encoded, current)
        if kind == "function" and isinstance(current, FunctionType):
            cells = dict(zip(current.__code__.co_freevars, current.__closure__ or (), strict=True))
            for name, content in encoded["cells"].items():
                cells[name].cell_contents = self.value(content, cells[name].cell_contents)
            current.__defaults__ = self.value(encoded["defaults"], current.__defaults__)
            vars(current).update({name: self.value(one, None) for name, one in encoded["held"].items()})
        return current

    def _generator(self, kind: str, encoded: Tree, current: Any) -> Any:
        if kind == "space":
            for space, saved in zip(generators(current), encoded["generators"], strict=True):
                new: Any = None if saved is None else self._generator("generator", saved, space._np_random)
                space._np_random = new
            return current
        return write_state(current, self.value(encoded["state"], None))

    def _simulation(self, kind: str, encoded: Tree, current: Any) -> Any:
        if kind == "physics":
            model, data = physics(current) or (None, None)
            self.value(encoded["model"], model)
            self.value(encoded["data"], data)
        elif kind == "model":
            for name, option in encoded["options"].items():
                setattr(current.opt, name, self.value(option, None))
            unpack(encoded, current)
        else:
            put_data(encoded, current)
        return current

    def _object(self, encoded: Tree, current: Any) -> Any:
        cls = self._class(encoded["class"], current)
        in_place = type(current) is cls and not frozen(cls) and self._take(current)
        if not in_place and not plain(cls):
            raise ValueError(f"a {cls.__qualname__} cannot be made")
        made = self._register(encoded, current if in_place else object.__new__(cls))
        self.attributes(made, encoded["attributes"])
        return made

    def _class(self, name: str, current: Any) -> Any:
        return type(current) if name_of(type(current)) == name else find_code(name, self._packages)

    def _find_constants(self, value: Any) -> None:
        if id(value) in self._constants:
            return
        self._constants[id(value)] = value
        inside: Any = (
            value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple, set)) else ()
        )
        for one in inside:
            self._find_constants(one)


def _code_or_object(value: Any) -> Any:
    """What may be taken over inside a container: arrays and numbers there are always new."""
    return None if isinstance(value, (np.ndarray, torch.Tensor)) else value
