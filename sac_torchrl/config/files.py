"""Configurations as YAML: presets, and the config.yaml of a run."""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sac_torchrl.config.schema import RECIPES, Training, choices, chosen, plan, recipe_of
from sac_torchrl.errors import ConfigError
from sac_torchrl.runs.folder import CONFIG, Run

# What a resumed run may change: how long and where it goes on and what it reports, not what it learns from.
FREE_ON_RESUME = (
    "total_frames",
    "log_every",
    "device",
    "learner.execution",
    "env.faults",
    "evaluate.",
    "checkpoint.",
    "collector.workers",
    "collector.timeout",
    "collector.restarts",
    "collector.address",
    "run.",
)


@dataclass(frozen=True)
class Layer:
    """Settings read from a file, for one recipe; `names` are the plans that it chooses, by key."""

    recipe: str
    names: dict[str, str]
    settings: dict[str, Any]


def read(path: Path) -> Layer:
    """Read a preset or a saved run; `variant: NAME` and `variant: {name: NAME, FIELD: VALUE}` both choose.

    Raises ConfigError where the file is no YAML or names no recipe.
    """
    try:
        settings = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}.") from error
    recipe = settings.pop("recipe", None) if isinstance(settings, dict) else None
    if not isinstance(settings, dict) or recipe not in RECIPES:
        raise ConfigError(f"{path} needs a line `recipe: NAME` with one of {', '.join(RECIPES)}.")
    names: dict[str, str] = {}
    for key in choices(RECIPES[recipe]):
        value = settings.get(key)
        if isinstance(value, str):
            names[key] = settings.pop(key)
        elif isinstance(value, dict) and "name" in value:
            names[key] = value.pop("name")
    return Layer(recipe, names, {str(key): value for key, value in settings.items()})


def as_yaml(config: Training) -> str:
    """Write a configuration as plain YAML, without the run's folder, so that the folder can be moved."""
    return OmegaConf.to_yaml(OmegaConf.create(_content(config)))


def load(folder: Path, *, plugins: Sequence[str] = ()) -> Training:
    """Read the configuration of a run, to look at the run on any device of this machine.

    The modules that its `env.plugins` names are code, and are not taken from a file: name them as `plugins`.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ConfigError(f"{folder} holds no run: there is no {CONFIG} in it.")
    layer = read(path)
    schema = RECIPES[layer.recipe]
    raw = OmegaConf.structured(schema)
    try:
        for key, options in choices(schema).items():
            if layer.names.get(key) not in options:
                raise ConfigError(f"{path}: {key}={layer.names.get(key)} is none of {', '.join(options)}.")
            raw[key] = OmegaConf.structured(options[layer.names[key]])
        raw.merge_with(layer.settings, {"device": "auto", "env": {"plugins": list(plugins)}})
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}.") from error
    return plan(raw, schema)


def open_run(config: Training) -> AbstractContextManager[Run]:
    """Open the folder of a run, new or resumed, for as long as the `with` block lasts.

    Raises ConfigError where the folder holds a run that learned from another configuration.
    """
    saved = config.run.saved()
    if saved is not None:
        _refuse_differences(read(saved), config, folder=saved.parent)
    variant = chosen(config)["variant"]
    task = re.sub(r"[^\w.]+", "-", config.env.id)
    return config.run.open(
        as_yaml(config), name=f"{task}-{variant}-seed{config.seed}", seed=config.seed, device=config.device
    )


def _content(config: Training) -> dict[str, Any]:
    content = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(content, dict)
    named = {key: {"name": name, **content[key]} for key, name in chosen(config).items()}
    del content["run"]
    return {"recipe": recipe_of(type(config)), **{str(key): value for key, value in content.items()}, **named}


def _refuse_differences(saved: Layer, config: Training, *, folder: Path) -> None:
    sections = {key: {"name": name, **saved.settings.get(key, {})} for key, name in saved.names.items()}
    before = _flat({"recipe": saved.recipe, **saved.settings, **sections})
    now = _flat(_content(config))
    differences = [
        f"{key} was {before.get(key)} and is {now.get(key)}"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key) and not key.startswith(FREE_ON_RESUME)
    ]
    if differences:
        raise ConfigError(
            f"run.folder={folder} holds a run with another configuration: {'; '.join(differences)}. "
            "Give the saved values to resume it, or another folder."
        )


def _flat(content: dict[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{path}{key}.")
        else:
            flat[f"{path}{key}"] = value
    return flat
