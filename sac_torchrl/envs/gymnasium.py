"""Gymnasium environments by id."""

from typing import Any

import gymnasium as gym

from sac_torchrl.envs.quiet import quiet
from sac_torchrl.errors import ConfigError, nearest, short


def open_gymnasium(id: str, render_mode: str | None, limit: int | None) -> gym.Env[Any, Any]:
    """Open a registered environment, truncated after `limit` steps; raises ConfigError where it cannot be made."""
    module, colon, name = id.partition(":")
    if colon:
        raise ConfigError(f"env.id={id} names a module: give env.id={name} env.plugins=[{module}] instead.")
    if id not in gym.registry:
        raise ConfigError(
            f"env.id={id} is not a registered environment{nearest(id, gym.registry)} "
            "One from another package needs env.plugins=[its module]."
        )
    entry = str(gym.registry[id].entry_point)
    options: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    try:
        with quiet(mujoco="mujoco" in entry):
            return gym.make(id, limit, disable_env_checker=True, **options)
    except gym.error.DependencyNotInstalled as error:
        family = entry.removeprefix("gymnasium.envs.").partition(".")[0].partition(":")[0].replace("_", "-")
        known = entry.startswith("gymnasium.envs.")
        advice = f"pip install 'gymnasium[{family}]'" if known else short(error)
        raise ConfigError(f"env.id={id} needs a package that is not installed: {advice}") from error
    except TypeError as error:
        if render_mode is None or "render_mode" not in str(error):
            raise
        raise ConfigError(f"env.id={id} cannot be rendered: it takes no render_mode.") from error
    except (gym.error.Error, ImportError) as error:
        raise ConfigError(f"env.id={id} cannot be made: {short(error)}") from error
