"""The config.yaml of a run: written, read back, and compared on a resume."""

import re
import shlex
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sac_torchrl.config.compose import from_layer, refuse_modules, with_environment
from sac_torchrl.config.layers import Layer, Setting, read
from sac_torchrl.config.schema import TrainConfig, chosen
from sac_torchrl.errors import ConfigError
from sac_torchrl.runs.device import resolve_device
from sac_torchrl.runs.folder import CONFIG, Run

# Keys that a resumed run may change: its length, place and reports, not what it learns from.
FREE_ON_RESUME = (
    "total_frames",
    "log_every",
    "device",
    "learner.execution",
    "env.faults",
    "env.single",
    "evaluate.",
    "checkpoint.",
    "stop.",
    "log.",
    "collector.workers",
    "collector.timeout",
    "collector.restarts",
    "collector.address",
    "run.",
)


def as_yaml(config: TrainConfig) -> str:
    """Write a configuration as plain YAML, without the run's folder, so that the folder can be moved."""
    return OmegaConf.to_yaml(OmegaConf.create(_content(config)))


def load(folder: Path, *, plugins: Sequence[str] = (), settings: Sequence[Setting] = ()) -> TrainConfig:
    """Read the configuration of a run, to use the run on any device of this machine, with other `env.` settings.

    The modules that its `env.plugins` names are code, and are not taken from a file: name them as `plugins`.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ConfigError(f"{folder} holds no run: there is no {CONFIG} in it.")
    changes = [
        Setting("device", "auto", "device=auto"),
        Setting("env.plugins", list(plugins), f"env.plugins={plugins}"),
    ]
    saved = read(path)
    refuse_modules(saved, path)
    try:
        config = from_layer(TrainConfig(), saved, changes)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return with_environment(config, settings)


def open_run(config: TrainConfig) -> AbstractContextManager[Run]:
    """Open the folder of a run, new or resumed, for as long as the `with` block lasts.

    Raises ConfigError where the folder holds a run that learned from another configuration, or the learner's precision
    is not one of the device.
    """
    config.learner.check(resolve_device(config.device))
    config.log.check()
    check_folder(config)
    return config.run.open(
        as_yaml(config), name=run_name(config), seed=config.seed, device=config.device, resume=_resume_command(config)
    )


def _resume_command(config: TrainConfig) -> str:
    """The command that resumes a run, with {folder} for its folder; plugins are code, and only a command names them."""
    if config.env.make is not None:
        return 'sac.train(..., env=make, run={{"folder": "{folder}"}})'
    plugins = shlex.quote(f"env.plugins=[{','.join(config.env.plugins)}]") if config.env.plugins else ""
    return f"sac-torchrl resume {{folder}} {plugins}".rstrip()


def check_folder(config: TrainConfig) -> None:
    """Raise ConfigError where `run.folder` holds other files, or a run that learned from another configuration."""
    saved = config.run.saved()
    if saved is not None:
        _refuse_differences(read(saved), config, folder=saved.parent)


def run_name(config: TrainConfig, *, seed: bool = True) -> str:
    """Task, variant and, unless it varies, seed, as a folder's name."""
    task = re.sub(r"[^\w.]+", "-", config.env.id)
    return f"{task}-{chosen(config)['variant']}" + (f"-seed{config.seed}" if seed else "")


def _content(config: TrainConfig) -> dict[str, Any]:
    content = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(content, dict)
    named = {key: {"name": name, **content[key]} for key, name in chosen(config).items()}
    del content["run"]
    return {**{str(key): value for key, value in content.items()}, **named}


def _refuse_differences(saved: Layer, config: TrainConfig, *, folder: Path) -> None:
    # A key that is younger than the run was at its default.
    before = _flat(_content(type(config)(variant=type(config.variant)(), collector=type(config.collector)())))
    before |= {setting.key: setting.value for setting in saved.settings}
    before |= {f"{key}.name": name for key, name in saved.names.items()}
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
