"""Attributes of environments, and the classes and modules that hold state for them."""

import dis
import enum
import logging
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from functools import cache, partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Dict, OneOf, Sequence, Space, Tuple

# Their classes and modules hold no state, and their functions are code.
_LIBRARIES = (sys.stdlib_module_names - {"__main__"}) | {
    *("gymnasium", "dm_control", "mujoco", "numpy", "torch", "torchrl", "tensordict", "typing_extensions"),
    "sac_torchrl",
}
CODE = (type, FunctionType, BuiltinFunctionType, MethodType, partial)
CONSTANT = (ModuleType, EnvSpec, np.dtype, np.ufunc, logging.Logger, property, staticmethod, classmethod)
DICTS: dict[str, type] = {one.__name__: one for one in (dict, OrderedDict, defaultdict, Counter)}
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState)
_MUTABLE = (list, set, deque, np.ndarray, torch.Tensor, Space, *_GENERATORS)


def package(owner: Any) -> str:
    """The top-level package of a class, function or module name."""
    return (owner if isinstance(owner, str) else module_name(owner)).partition(".")[0]


def module_name(code: Any) -> str:
    """The module of a class or function; empty where it has none, as types of SWIG (Box2D's) have."""
    return str(getattr(code, "__module__", None) or "")


def in_library(cls: type) -> bool:
    """Whether a class comes from a package that this one is built on."""
    return package(cls) in _LIBRARIES


def name_of(code: Any) -> str:
    """`module:qualified name` of a class or function."""
    return f"{module_name(code)}:{code.__qualname__}"


def plain(cls: type) -> bool:
    """Whether all that its instances hold is in `__dict__` and `__slots__`: no base is written in C."""
    for base in cls.__mro__:
        new = base.__new__
        if not base.__flags__ & (1 << 9) or getattr(new, "__self__", None) is base:  # Py_TPFLAGS_HEAPTYPE
            return base is object
    return False


def slots(cls: type) -> Iterator[str]:
    """The names of all `__slots__`."""
    for base in cls.__mro__:
        names = vars(base).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            hidden = name.startswith("__") and not name.endswith("__")
            if name not in ("__dict__", "__weakref__"):
                yield f"_{base.__name__.lstrip('_')}{name}" if hidden else name


def frozen(cls: type) -> bool:
    """Whether it is a frozen dataclass, of which one instance may stand in many places."""
    return bool(getattr(getattr(cls, "__dataclass_params__", None), "frozen", False))


def generators(space: Space[Any]) -> list[Any]:
    """The space and all that it is made of; each has a generator of its own."""
    parts: list[Space[Any]] = []
    if isinstance(space, Dict):
        parts = list(space.spaces.values())
    elif isinstance(space, (Tuple, OneOf)):
        parts = list(space.spaces)
    elif isinstance(space, Sequence):
        parts = [space.feature_space]
    return [space, *(one for part in parts for one in generators(part))]


def shared(cls: type) -> Iterator[tuple[str, Any, str, Any, bool]]:
    """What methods of `cls` may change outside of its instances.

    Yields `(owner, holder, name, value, assigned)`: the owner's name, the class or module's dictionary that holds the
    value, and whether a method assigns the name. Class attributes and global variables that can change in place are
    yielded too.
    """
    for base in cls.__mro__:
        if in_library(base):
            continue
        stored, used = _names(base)
        for name, value in list(vars(base).items()):
            if not name.startswith("__") and _changes(value, name in stored):
                yield name_of(base), base, name, value, name in stored
        for module, assigned, names in used:
            for name in names:
                if name in module and _changes(module[name], name in assigned):
                    yield str(module["__name__"]), module, name, module[name], name in assigned


def _changes(value: Any, assigned: bool) -> bool:
    if isinstance(value, (*CODE, *CONSTANT, enum.Enum)) or hasattr(type(value), "__get__"):  # a descriptor is code
        return False
    own = plain(type(value)) and type(value) is not object and not in_library(type(value))
    return assigned or own or isinstance(value, (*_MUTABLE, *DICTS.values()))


@cache
def _names(cls: type) -> tuple[frozenset[str], list[tuple[dict[str, Any], frozenset[str], frozenset[str]]]]:
    """The attributes that methods of a class assign, and by module the global variables they assign and use."""
    stored = set[str]()
    modules: dict[int, tuple[dict[str, Any], set[str], set[str]]] = {}
    open_, seen = [value for one in vars(cls).values() for value in _functions(one)], set[int]()
    while open_:
        function = open_.pop()
        if id(function) in seen or package(function) in _LIBRARIES:
            continue
        seen.add(id(function))
        module = function.__globals__
        _, assigned, used = modules.setdefault(id(module), (module, set(), set()))
        for operation, name in _operations(function.__code__):
            if operation == "STORE_ATTR":
                stored.add(name)
            elif operation == "STORE_GLOBAL":
                assigned.add(name)
                used.add(name)
            elif operation in ("LOAD_GLOBAL", "LOAD_NAME"):
                used.add(name)
                open_ += _functions(module.get(name))
    return frozenset(stored), [(module, frozenset(a), frozenset(u)) for module, a, u in modules.values()]


def _functions(value: Any) -> Iterator[FunctionType]:
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    for one in (value.fget, value.fset) if isinstance(value, property) else (value,):
        if isinstance(one, FunctionType):
            yield one


def _operations(code: CodeType) -> Iterator[tuple[str, str]]:
    for instruction in dis.get_instructions(code):
        if isinstance(instruction.argval, str):
            yield instruction.opname, instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _operations(constant)


def find_code(name: str, packages: set[str]) -> Any:
    """A builtin class, or a class or function of one of the packages, by the name of `name_of`; raises ValueError."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = vars(found).get(part) if hasattr(found, "__dict__") else None
    builtin = found if module == "builtins" and isinstance(found, type) else None
    if package(module) not in packages or package(found) != package(module) or name_of(found) != name:
        found = builtin
    if not isinstance(found, (type, FunctionType)):
        raise ValueError(f"{name} is not there to be put back")
    return found
