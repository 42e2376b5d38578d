"""Dataclasses from what files, calls and commands set."""

import dataclasses
import math
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf

from sac_torchrl.errors import ConfigError
from sac_torchrl.fields import keys

T = TypeVar("T")


def typed(raw: DictConfig, schema: type[T]) -> T:
    """Turn what was read into dataclasses; raises one ConfigError that lists everything wrong with it.

    Values are data: interpolations such as ${oc.env:HOME} are refused, and so are keys that no dataclass has.
    """
    problems: list[str] = []
    config = _section(raw, schema, path="", problems=problems)
    if problems:
        raise ConfigError(" ".join(dict.fromkeys(problems)))
    assert isinstance(config, schema)
    return config


def _section(node: DictConfig, schema: type[Any], *, path: str, problems: list[str]) -> object | None:
    """Build a dataclass from the leaves up; each problem is noted, and the default takes its place."""
    hints = get_type_hints(schema)
    parts = {part.name: part for part in keys(schema)}
    problems += [f"{path}{key!s} is not a key of the configuration." for key in node if key not in parts]
    values: dict[str, Any] = {}
    for name, part in parts.items():
        if problem := _unusable(node, name):
            problems.append(f"{path}{name}{problem}")
            values[name] = _default(part)
            continue
        value = node[name]
        inner = OmegaConf.get_type(value) if isinstance(value, DictConfig) else None
        if inner is not None and dataclasses.is_dataclass(inner):
            section = _section(value, inner, path=f"{path}{name}.", problems=problems)
            values[name] = _default(part) if section is None else section
        elif isinstance(value, DictConfig | ListConfig):
            content = OmegaConf.to_container(value)
            values[name] = tuple(content) if _is_tuple(hints[name]) and isinstance(content, list) else content
        else:
            values[name] = value
    try:
        built: object = schema(**values)
    except ConfigError as error:
        problems.append(str(error))
        return None
    return built


def _unusable(node: DictConfig, name: str) -> str:
    """The problem of a value, whatever its key; empty if there is none."""
    if name not in node or OmegaConf.is_missing(node, name):
        return " has no value: give one."
    if OmegaConf.is_interpolation(node, name) or (
        isinstance(node[name], ListConfig) and "${" in str(OmegaConf.to_container(node[name]))
    ):
        return " holds an interpolation: give the value itself."
    if isinstance(node[name], float) and math.isnan(node[name]):
        return " is not a number."
    return ""


def _default(part: dataclasses.Field[Any]) -> object:
    if part.default_factory is not dataclasses.MISSING:
        return part.default_factory()
    return part.default


def _is_tuple(hint: object) -> bool:
    # OmegaConf reads a tuple back as a list.
    return get_origin(hint) is tuple or any(get_origin(argument) is tuple for argument in get_args(hint))
