"""Recipes by name: the files of recipes/ and a user's own, each with a TrainConfig called RECIPE."""

import runpy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sac_torchrl.config.compose import compose
from sac_torchrl.config.layers import SHIPPED, Setting
from sac_torchrl.config.schema import TrainConfig
from sac_torchrl.errors import ConfigError, nearest


def configure(recipe: TrainConfig | str | Path, *, preset: str | Sequence[str] = (), **keys: Any) -> TrainConfig:
    """Build the configuration of a recipe, by name or path, with the presets beside it and keys as for `train`.

    A TrainConfig is returned as it is; raises TypeError where a preset or keys come with it.
    """
    if isinstance(recipe, TrainConfig):
        if preset or keys:
            raise TypeError("preset and keys change a recipe that is named; change the fields of a TrainConfig itself.")
        return recipe
    make = _taken_out(keys)
    path = recipe_path(recipe)
    chosen = [preset] if isinstance(preset, str) else list(preset)
    settings = [Setting(key, value, f"{key}={value}") for key, value in keys.items()]
    if chosen:
        settings.append(Setting("preset", chosen, f"preset={','.join(chosen)}"))
    config = compose(recipe_in(path), settings, folder=path.parent)
    if make is not None:
        config.env = replace(config.env, make=make)
    return config


def recipe_path(recipe: str | Path) -> Path:
    """The file of a recipe that is given by name or path; raises ConfigError where there is none."""
    path = SHIPPED / f"{recipe}.py" if str(recipe) in TrainConfig.variants else Path(recipe)
    if not path.is_file():
        known = list(TrainConfig.variants)
        raise ConfigError(
            f"no recipe {recipe}{nearest(str(recipe), known)} Give {' or '.join(known)}, or a Python file's path."
        )
    return path


def recipe_in(path: Path) -> TrainConfig:
    """The TrainConfig that a recipe's file calls RECIPE."""
    recipe = runpy.run_path(str(path)).get("RECIPE")
    if not isinstance(recipe, TrainConfig):
        raise ConfigError(f"{path} has no RECIPE: give it a line RECIPE = sac.TrainConfig(...).")
    return recipe


def _taken_out(keys: dict[str, Any]) -> Callable[..., Any] | None:
    """Remove the function that makes the environments from the keys of `train`: a file cannot hold it."""
    env = keys.get("env")
    make: Callable[..., Any] | None = None
    if callable(env):
        make = keys.pop("env")
    elif isinstance(env, Mapping) and "make" in env:
        make = env["make"]
        keys["env"] = {name: value for name, value in env.items() if name != "make"}
    return make
