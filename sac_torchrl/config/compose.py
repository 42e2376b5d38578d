"""One composition: a recipe, the saved run, presets and single keys become one TrainConfig."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from sac_torchrl.config.layers import CHOOSING, SHIPPED, Layer, Setting, layer, read
from sac_torchrl.config.schema import T, choices, chosen
from sac_torchrl.config.typed import typed
from sac_torchrl.errors import ConfigError, nearest
from sac_torchrl.runs.folder import CONFIG

log = logging.getLogger(__name__)

RENAMED = {
    "normalise": "normalize",
    "replay.prioritised": "replay.prioritized",
}


def compose(recipe: T, settings: Sequence[Setting], *, folder: Path = SHIPPED) -> T:
    """Build the configuration of a run; raises one ConfigError for everything that is wrong with the settings.

    Values come from `recipe`, then from what the chosen variant brings, then from the run that `run.folder` holds, then
    from `preset`, a name or several of files in presets/ below `folder`, of which later ones win, then from the other
    settings. Where these set `total_frames` alone, what does not fit into so short a run is shortened with a warning.
    """
    settings = [part for setting in settings for part in _parts(setting)]
    saved = _saved(recipe, settings)
    presets, problems = _presets(recipe, settings, presets_in(folder))
    names = chosen(recipe) | dict(saved.names if saved else {})
    for preset in presets:
        names |= preset.names
    for setting in settings:
        if setting.key in CHOOSING:
            problems += _misnamed(recipe, setting, saved)
            names[setting.key] = setting.value
    if problems:
        raise ConfigError(" ".join(dict.fromkeys(problems)))
    keys = [setting for setting in settings if setting.key not in (*CHOOSING, "preset")]
    raw = _base(recipe, names)
    layers = ([saved] if saved else []) + presets
    for setting in [*(setting for below in layers for setting in below.settings), *keys]:
        problems += _set(raw, setting)
    if not problems and saved is None and any(setting.key == "total_frames" for setting in keys):
        _shorten(raw, {setting.key for setting in keys})
    try:
        config = typed(raw, type(recipe))
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError(" ".join(dict.fromkeys(problems)))
    return config


def from_layer(recipe: T, saved: Layer, settings: Sequence[Setting] = ()) -> T:
    """Build the configuration that a file holds, of any head, with some settings changed; raises ConfigError."""
    options = _options(recipe, saved)
    raw = OmegaConf.structured(recipe)
    for key, name in saved.names.items():
        raw[key] = OmegaConf.structured(options[key][name])
    problems = [problem for setting in (*saved.settings, *settings) for problem in _set(raw, setting)]
    if problems:
        raise ConfigError(" ".join(problems))
    return typed(raw, type(recipe))


def with_environment(config: T, settings: Sequence[Setting]) -> T:
    """The configuration with other `env.` keys; raises ConfigError for any other key."""
    for setting in settings:
        if not setting.key.startswith("env."):
            raise ConfigError(f"{setting.text}: here only the keys of the environment, env.KEY=VALUE, can be set.")
    raw = OmegaConf.structured(config)
    problems = [problem for part in settings for setting in _parts(part) for problem in _set(raw, setting)]
    if problems:
        raise ConfigError(" ".join(problems))
    return typed(raw, type(config))


def refuse_modules(saved: Layer, path: Path) -> None:
    """Raise ConfigError where the config.yaml of a run names code: only the command line may."""
    for setting in saved.settings:
        if setting.key == "env.id" and ":" in str(setting.value) and "${" not in str(setting.value):
            module, _, name = str(setting.value).rpartition(":")
            raise ConfigError(
                f"{path}: env.id={setting.value} names a module: write {name}, and give env.plugins=[{module}]."
            )


def presets_in(folder: Path) -> dict[str, Path]:
    """The presets beside a recipe by name, or the package's where there is no folder presets/."""
    presets = folder / "presets" if (folder / "presets").is_dir() else SHIPPED / "presets"
    return {path.stem: path for path in sorted(presets.glob("*.yaml"))}


def _options(recipe: T, saved: Layer) -> dict[str, dict[str, type[Any]]]:
    """The dataclasses of all heads by key and name; raises ConfigError where a run names none of them."""
    variants = {name: option for options in recipe.variants.values() for name, option in options.items()}
    options: dict[str, dict[str, type[Any]]] = {"variant": variants, "collector": dict(recipe.collectors)}
    for key, known in options.items():
        if saved.names.get(key) not in known:
            raise ConfigError(f"{key}={saved.names.get(key)} is none of {', '.join(known)}.")
    return options


def _parts(setting: Setting) -> Iterator[Setting]:
    """Split a mapping given for a group of keys into its keys; `variant={name: NAME}` chooses as well."""
    if not isinstance(setting.value, dict):
        yield setting
        return
    inner = layer({setting.key: setting.value})
    yield from (Setting(key, name, f"{key}={name}") for key, name in inner.names.items())
    yield from inner.settings


def _saved(recipe: T, settings: Sequence[Setting]) -> Layer | None:
    """Read the run in `run.folder`, if there is one: a run resumes with its own configuration."""
    folders = [setting.value for setting in settings if setting.key == "run.folder"]
    folder = folders[-1] if folders else recipe.run.folder
    if folder is None or not (path := Path(str(folder)).expanduser() / CONFIG).is_file():
        return None
    saved = read(path)
    refuse_modules(saved, path)
    _options(recipe, saved)
    head = next(head for head, options in recipe.variants.items() if saved.names["variant"] in options)
    if head != recipe.head:
        raise ConfigError(f"{path.parent} holds a run of recipes/{head}.py, and this is {recipe.head}.")
    # Modules are code: they are named on the command line, never by a file that came with a run.
    kept = [setting for setting in saved.settings if setting.key != "env.plugins"]
    return Layer(saved.names, tuple(kept))


def _presets(recipe: T, settings: Sequence[Setting], known: dict[str, Path]) -> tuple[list[Layer], list[str]]:
    """Read the chosen presets in their order; also returns what is wrong with the choice."""
    problems: list[str] = []
    presets: dict[str, Layer] = {}
    for setting in settings:
        if setting.key != "preset" or setting.value is None:
            continue
        names = setting.value if isinstance(setting.value, list) else [setting.value]
        for name in names:
            text = setting.text if len(names) == 1 else f"preset={name}"
            if not isinstance(name, str) or name not in known:
                problems.append(f"{text} is unknown{nearest(str(name), known)} --help lists all names.")
                continue
            preset = read(known[name])
            if preset.head not in (None, recipe.head):
                problems.append(f"{text} is for recipes/{preset.head}.py; this is {recipe.head}.")
            presets[name] = preset
    variants = {name: preset.names["variant"] for name, preset in presets.items() if "variant" in preset.names}
    if len(set(variants.values())) > 1:
        both = " and ".join(f"{name} variant={variant}" for name, variant in variants.items())
        problems.append(f"preset=[{','.join(presets)}]: {both} exclude one another.")
    return list(presets.values()), problems


def _misnamed(recipe: T, setting: Setting, saved: Layer | None) -> Iterator[str]:
    options = choices(recipe)[setting.key]
    other = [head for head, variants in recipe.variants.items() if setting.value in variants]
    if isinstance(setting.value, str) and setting.value in options:
        if saved is not None and setting.value != saved.names.get(setting.key):
            yield f"{setting.text}: run.folder holds a run with {setting.key}={saved.names.get(setting.key)}; "
            "give another."
    elif setting.key == "variant" and other:
        yield f"{setting.text} is for recipes/{other[0]}.py; this is {recipe.head}."
    else:
        yield f"{setting.text} is unknown{nearest(str(setting.value), options)} --help lists all names."


def _base(recipe: T, names: Mapping[str, str]) -> DictConfig:
    """The recipe with the chosen variant and collector, and with the settings that another variant brings."""
    raw: DictConfig = OmegaConf.structured(recipe)
    for key, options in choices(recipe).items():
        option = options[names[key]]
        if option is not type(getattr(recipe, key)):
            raw[key] = OmegaConf.structured(option)
            for setting in layer(getattr(option, "training", {})).settings:
                OmegaConf.update(raw, setting.key, setting.value)
    return raw


def _set(raw: DictConfig, setting: Setting) -> Iterator[str]:
    """Set one value, or yield what is wrong with it. Where an integer is wanted, 1e6 is one."""
    key, origin = setting.key, f"{setting.source}: " if setting.source else ""
    if key in RENAMED:
        yield f"{origin}{key} is called {RENAMED[key]} now."
        return
    try:
        if isinstance(OmegaConf.select(raw, key), DictConfig):
            inside = [path for path in paths(raw) if path.startswith(f"{key}.")]
            yield f"{origin}{setting.text}: {key} is a group of keys; set {', '.join(inside)}."
            return
        try:
            OmegaConf.update(raw, key, setting.value)
        except OmegaConfBaseException:
            whole = _whole(setting.value)
            if repr(whole) == repr(setting.value):
                raise
            OmegaConf.update(raw, key, whole)
    except (ConfigAttributeError, ConfigKeyError):
        yield f"{origin}unknown key {key}{nearest(key, [*CHOOSING, 'preset', *paths(raw)])}"
    except OmegaConfBaseException as error:
        yield f"{origin}{setting.text}: {str(error).splitlines()[0].rstrip('.')}."


def _whole(value: Any) -> Any:
    if isinstance(value, list):
        return [_whole(element) for element in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _shorten(raw: DictConfig, given: set[str]) -> None:
    """Fit random frames and evaluations into a run of `total_frames`, but for those that are set beside it."""
    total = raw.total_frames
    shorter = {}
    for key in ("random_frames", "learning_starts"):
        if (OmegaConf.select(raw, key) or 0) >= total:
            shorter[key] = total // 10
    if raw.evaluate.every > total:
        shorter["evaluate.every"] = max(1, total // 2)
    shorter = {key: value for key, value in shorter.items() if key not in given}
    for key, value in shorter.items():
        OmegaConf.update(raw, key, value)
    if shorter:
        values = ", ".join(f"{key}={value}" for key, value in shorter.items())
        log.warning("%s: shortened to fit total_frames=%d.", values, total)


def paths(raw: DictConfig, path: str = "") -> Iterator[str]:
    """Every key of a configuration, dotted, groups of keys too."""
    for name in raw:
        yield f"{path}{name!s}"
        if isinstance(raw[name], DictConfig):
            yield from paths(raw[name], f"{path}{name!s}.")
