"""Gymnasium environments by id."""

import re
from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from sac_torchrl.envs.autoreset import resets_itself
from sac_torchrl.envs.dmc import known_tasks
from sac_torchrl.envs.quiet import quiet
from sac_torchrl.errors import ConfigError, nearest, short

# What installs the environments below gymnasium.envs that need more than Gymnasium, by folder.
_EXTRAS = {
    "box2d": "sac_torchrl[box2d]",
    "toy_text": "sac_torchrl[toy-text]",
    "phys2d": "gymnasium[jax]",
    "tabular": "gymnasium[jax]",
}


def open_gymnasium(
    id: str, arguments: Mapping[str, Any], *, render_mode: str | None, limit: int | None
) -> gym.Env[Any, Any]:
    """Open a registered environment with the constructor's `arguments`, truncated after `limit` steps.

    Raises ConfigError where it cannot be made, whatever its constructor raises.
    """
    if id not in gym.registry:
        raise ConfigError(
            f"env.id={id} is not a registered environment{_nearest_id(id)} "
            "One from another package needs its module: env.plugins=[MODULE], of a policy --plugin MODULE."
        )
    for name, key in (("max_episode_steps", "env.max_episode_steps"), ("render_mode", "evaluate.video")):
        if name in arguments:
            raise ConfigError(f"env.kwargs.{name}: give {key} instead.")
    entry = str(gym.registry[id].entry_point)
    options: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    try:
        with quiet(mujoco="mujoco" in entry):
            made = gym.make(id, limit, disable_env_checker=True, **options, **arguments)
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        family = entry.removeprefix("gymnasium.envs.").partition(".")[0].partition(":")[0]
        extra = _EXTRAS.get(family, f"gymnasium[{family}]") if entry.startswith("gymnasium.envs.") else None
        advice = f"{short(error)}{_module(error)}" if extra is None else f"pip install '{extra}'"
        raise ConfigError(f"env.id={id} needs a package that is not installed: {advice}") from error
    except Exception as error:
        if render_mode is not None and "render_mode" in str(error):
            raise ConfigError(f"env.id={id} cannot be rendered: it takes no render_mode.") from error
        raise ConfigError(
            f"env.id={id} cannot be made: {type(error).__name__}: {short(_without_kwargs(error))}{_advice(error)}"
        ) from error
    if resets_itself(made):
        made.close()
        raise ConfigError(
            f"env.id={id} steps many environments at once: make it by a function, EnvConfig(make=...), or register "
            "that in a plugin with sac_torchrl.register(ID, make)."
        )
    return made


def _nearest_id(id: str) -> str:
    """Suggest ids that are close, those with a namespace by what follows it too."""
    known = [*gym.registry, *known_tasks()]
    same = [one for one in known if one.partition("/")[2].lower() == id.lower()]
    return f": did you mean {' or '.join(same[:3])}?" if same else nearest(id, known)


def _module(error: Exception) -> str:
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    return "" if name is None else f": pip install '{name.partition('.')[0]}', or the package that it is in"


def _without_kwargs(error: Exception) -> str:
    # Gymnasium adds all arguments to the constructor's message.
    return str(error).partition(" was raised from the environment creator")[0]


def _advice(error: Exception) -> str:
    if not isinstance(error, TypeError):
        return ""
    if unknown := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
        return f": leave out env.kwargs.{unknown[1]}."
    if missing := re.search(r"missing \d+ required (?:positional|keyword-only) arguments?: (.*)", str(error)):
        names = re.findall(r"'(\w+)'", missing[1].partition(" was raised")[0])
        given = " ".join(f"env.kwargs.{name}=VALUE" for name in names)
        return f": give {given}, or in Python EnvConfig(make=...) where it is no number, text or list."
    return ""
