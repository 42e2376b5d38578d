"""Settings from presets, run folders, Python and the command line, in one form."""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import AliasToken, YAMLError

from sac_torchrl.config.schema import TrainConfig
from sac_torchrl.errors import ConfigError
from sac_torchrl.files import read_plain

# Bytes, brackets and tokens of a preset or a config.yaml. A run's own has some 1,500, 3 and 400; 20,000 take 0.7 s.
_MOST, _DEEPEST, _TOKENS = 100_000, 100, 20_000
PACKAGE = Path(__file__).parents[1]
# Beside the package in a clone, inside it where it was installed from a wheel.
SHIPPED = next(path for path in (PACKAGE / "recipes", PACKAGE.parent / "recipes") if path.is_dir())
# Keys that choose a dataclass by name.
CHOOSING = ("variant", "collector")


@dataclass(frozen=True)
class Setting:
    """A key and its value, with the words of the user for messages: `text` is as typed, `source` a file or empty."""

    key: str
    value: Any
    text: str
    source: str = ""


@dataclass(frozen=True)
class Layer:
    """Settings of a file or of a call. `names` are those of CHOOSING that it has; `head` is what a preset needs."""

    names: Mapping[str, str]
    settings: tuple[Setting, ...]
    head: str | None = None


def layer(content: Mapping[str, Any], *, source: str = "") -> Layer:
    """Turn nested settings into a layer; `variant: NAME` and `variant: {name: NAME, FIELD: VALUE}` both choose.

    A key may be dotted. `recipe: NAME` is the head that the settings need.
    """
    content = dict(content)
    head = content.pop("recipe", None)
    if head not in (None, *TrainConfig.variants):
        raise ConfigError(f"{source}: recipe={head}: give one of {', '.join(TrainConfig.variants)}, or leave it out.")
    names: dict[str, str] = {}
    for key in CHOOSING:
        value = content.get(key)
        if isinstance(value, str):
            names[key] = content.pop(key)
        elif isinstance(value, Mapping) and "name" in value:
            names[key] = str(value["name"])
            content[key] = {name: inner for name, inner in value.items() if name != "name"}
    return Layer(names, tuple(_flat(content, "", source)), head)


def _depth(text: str) -> int:
    """How many brackets are open at most."""
    return max(accumulate((character in "[{") - (character in "]}") for character in text), default=0)


def read(path: Path) -> Layer:
    """Read a preset or the config.yaml of a run; raises ConfigError where the file holds no YAML mapping."""
    try:
        # A preset may be a link: its target is read.
        text = read_plain(path.resolve(), most=_MOST).decode()
        if _depth(text) > _DEEPEST:
            raise ConfigError(f"{path} is nested more than {_DEEPEST} deep.")
        for number, token in enumerate(yaml.scan(text)):
            if isinstance(token, AliasToken):
                raise ConfigError(f"{path} has an alias (*NAME): write the value out.")
            if number > _TOKENS:
                raise ConfigError(f"{path} has more than {_TOKENS:,} words and signs of YAML.")
        content = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    except RecursionError as error:
        raise ConfigError(f"{path} cannot be read as YAML: it is nested too deep.") from error
    except (YAMLError, ValueError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no settings: give lines KEY: VALUE.")
    return layer({str(key): value for key, value in content.items()}, source=str(path))


def _flat(content: Mapping[str, Any], path: str, source: str) -> Iterator[Setting]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.", source)
        else:
            plain = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
            yield Setting(f"{path}{name}", plain, f"{path}{name}={plain}", source)
