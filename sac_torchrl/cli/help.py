"""The page that --help shows: every key with its line, its range and its default."""

import dataclasses
import enum
import types
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from sac_torchrl.config.compose import presets_in
from sac_torchrl.config.layers import read
from sac_torchrl.config.schema import TrainConfig, choices, chosen
from sac_torchrl.fields import doc, keys

_HEADER = """\
Train Soft Actor-Critic (recipe: {recipe}). Give KEY=VALUE to change anything below.

  {command}
  {command} preset={preset} seed=1
  {command} env.id={env} total_frames=1e5
  {command} -m seed=0,1,2                      (one run after the other)
  {command} run.folder=runs/NAME               (a new folder, or a run to resume)

Results go to a new folder below runs/: config.yaml, metrics.csv, curve.png, checkpoints, evaluation.json.
A preset is a task with its length or a published system's settings: preset=NAME, or several, of which later ones
win: preset=[TASK,SYSTEM]. Keys on the command line win over presets.

Flags: -m or --multirun for sweeps; -c job or --cfg job shows the configuration as YAML; -h or --help shows this.
"""


def text(recipe: TrainConfig, command: str, folder: Path) -> str:
    """Compose the page for a recipe in `folder` that is launched by `command`."""
    presets = [name for name, path in presets_in(folder).items() if read(path).head in (None, recipe.head)]
    header = _HEADER.format(recipe=recipe.head, command=command, preset=next(iter(presets), "NAME"), env=recipe.env.id)
    lines = [header, "Choose by name (KEY=NAME):"]
    names = {"preset": presets} | {key: list(options) for key, options in choices(recipe).items()}
    lines += [f"  {key}: {', '.join(sorted(options))}" for key, options in names.items()]
    lines += ["", "Set any value (KEY=VALUE), shown with its meaning, range and default:"]
    sections = [part for part in keys(recipe) if dataclasses.is_dataclass(getattr(recipe, part.name))]
    lines += _keys(recipe, "", skip={part.name for part in sections})
    for part in sections:
        section = getattr(recipe, part.name)
        if part.name not in names:
            lines += ["", f"{part.name}: {doc(part).text}", *_keys(section, f"{part.name}.")]
            continue
        lines += ["", f"{part.name}={chosen(recipe)[part.name]}: {_summary(section)}", *_keys(section, f"{part.name}.")]
        shown = set(_keys(section, f"{part.name}."))
        for name, option in choices(recipe)[part.name].items():
            if option is not type(section):
                own = [line for line in _keys(option(), f"{part.name}.") if line not in shown]
                lines += ["", f"{part.name}={name}: {_summary(option)}", *own]
    return "\n".join(lines)


def _keys(config: Any, path: str, skip: Collection[str] = ()) -> Iterator[str]:
    hints = get_type_hints(type(config))
    for part in keys(config):
        value = getattr(config, part.name)
        if part.name in skip:
            continue
        if dataclasses.is_dataclass(value):
            yield from _keys(value, f"{path}{part.name}.")
            continue
        described = "; ".join(filter(None, (doc(part).text, _choices(hints[part.name]) or doc(part).range)))
        yield f"  {path}{part.name}={_shown(value)}".ljust(38) + f"  {described}"


def _choices(hint: Any) -> str:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else [hint]
    for option in options:
        if isinstance(option, type) and issubclass(option, enum.Enum):
            return ", ".join(str(member.value) for member in option)
        if option is bool:
            return "true or false"
    return ""


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_shown, value))}]"
    if isinstance(value, enum.Enum):
        return str(value.value)
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _summary(option: object) -> str:
    return (option.__doc__ or "").split("\n")[0]
