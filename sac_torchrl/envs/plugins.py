"""Code that users name: modules that register environments, and wrappers by name."""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import gymnasium as gym
import gymnasium.wrappers

from sac_torchrl.envs.adapter import RAISED, say_where
from sac_torchrl.envs.contained import Contained
from sac_torchrl.errors import ConfigError, nearest, short


def load_plugins(plugins: Sequence[str]) -> list[ModuleType]:
    """Import each module, which registers its environments; of `MODULE:FUNCTION` also call the function."""
    return [_load(plugin) for plugin in plugins]


def _load(plugin: str) -> ModuleType:
    name, _, function = plugin.partition(":")
    try:
        with Contained(name):
            module = importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"env.plugins names {name}, which cannot be imported ({short(error)}): "
            "install it, or put its folder on PYTHONPATH."
        ) from error
    except RAISED as error:
        raise ConfigError(f"env.plugins names {name}, which raised {say_where(error)} when it was imported.") from error
    if function:
        register = getattr(module, function, None)
        if not callable(register):
            raise ConfigError(
                f"env.plugins={plugin}: {name} has no function {function}{nearest(function, dir(module))}"
            )
        _call_once(register)
    return module


@cache
def _call_once(register: Callable[[], object]) -> None:
    """Gymnasium warns of an environment that is registered twice."""
    register()


def wrap(
    env: gym.Env[Any, Any], wrappers: Sequence[str | Mapping[str, Any]], modules: Sequence[ModuleType], id: str
) -> gym.Env[Any, Any]:
    """Put `wrappers` around an environment, the first of them innermost; raises ConfigError, and closes it then.

    Each is NAME or {NAME: {ARGUMENT: VALUE}}. Names are looked up in the modules of env.plugins, in their `wrappers`,
    and in gymnasium.wrappers.
    """
    places = [*modules, *(inner for one in modules if (inner := getattr(one, "wrappers", None)) is not None)]
    for one in wrappers:
        name, arguments = _read(one)
        found = next((getattr(place, name) for place in (*places, gymnasium.wrappers) if hasattr(place, name)), None)
        try:
            if not (inspect.isclass(found) and issubclass(found, gym.Wrapper)):
                known = {word for place in (*places, gymnasium.wrappers) for word in dir(place) if word[:1].isupper()}
                raise ConfigError(
                    f"env.wrappers: {name} is not a wrapper of Gymnasium or of env.plugins{nearest(name, known)}"
                )
            env = found(env, **arguments)
        except ConfigError:
            env.close()
            raise
        except Exception as error:
            env.close()
            raise ConfigError(
                f"env.wrappers: {name} cannot wrap env.id={id}: {type(error).__name__}: {short(error)}"
                f"{_missing_package(error)}"
            ) from error
    return env


def _read(wrapper: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(wrapper, str):
        return wrapper, {}
    [(name, arguments)] = wrapper.items() if len(wrapper) == 1 else [("", None)]
    if not name or not isinstance(arguments, Mapping | None):
        raise ConfigError(f"env.wrappers={wrapper}: give NAME or {{NAME: {{ARGUMENT: VALUE}}}} for each.")
    # YAML has no tuples, and a shape is one for Gymnasium.
    given = (arguments or {}).items()
    return name, {str(key): tuple(value) if isinstance(value, list) else value for key, value in given}


def _missing_package(error: Exception) -> str:
    missing = isinstance(error, gym.error.DependencyNotInstalled)
    return ": pip install 'gymnasium[other]'." if missing and "gymnasium[other]" in str(error) else ""
