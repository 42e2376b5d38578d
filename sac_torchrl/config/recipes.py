"""Recipes by name: the files of recipes/ and a user's own, each with a TrainConfig called RECIPE."""

import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sac_torchrl.config.compose import compose
from sac_torchrl.config.layers import SHIPPED, Setting
from sac_torchrl.config.schema import TrainConfig
from sac_torchrl.errors import ConfigError, nearest


def configure(recipe: str | Path, *, preset: str | Sequence[str] = (), **keys: Any) -> TrainConfig:
    """Build the configuration of a recipe, by name or path, with the presets beside it and keys as for `train`."""
    path = recipe_path(recipe)
    chosen = [preset] if isinstance(preset, str) else list(preset)
    settings = [Setting(key, value, f"{key}={value}") for key, value in keys.items()]
    if chosen:
        settings.append(Setting("preset", chosen, f"preset={','.join(chosen)}"))
    return compose(recipe_in(path), settings, folder=path.parent)


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
