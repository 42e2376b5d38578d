"""The fields of a config: a default, one line of explanation and a range, checked and shown in one way."""

import copy
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sac_torchrl.errors import ConfigError

T = TypeVar("T")

_DOC = "doc"


@dataclass(frozen=True)
class Doc:
    """What a field means (`text`: what, unit, source) and which numbers it accepts; lists are checked by element.

    Bounds are `above` < number < `below` and `least` <= number <= `most`, where given; `choices` are the strings that
    a text field accepts. NaN is in no range, and infinity only where no bound is given.
    """

    text: str
    above: float | None = None
    least: float | None = None
    below: float | None = None
    most: float | None = None
    choices: Sequence[str] = ()

    def accepts(self, value: Any) -> bool:
        """Whether the value, or every element of it, is None, of another kind than a number, or within the range."""
        if isinstance(value, list | tuple):
            return all(self.accepts(element) for element in value)
        if self.choices:
            return value is None or value in self.choices
        if not isinstance(value, int | float) or isinstance(value, bool) or not self.range:
            return True
        return (
            math.isfinite(value)
            and (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.below is None or value < self.below)
            and (self.most is None or value <= self.most)
        )

    @property
    def range(self) -> str:
        """The range in words, as in `above 0, at most 1`; empty where there is none."""
        if self.choices:
            return ", ".join(self.choices)
        if self.least is not None and self.most is not None:
            return f"{self.least:,} to {self.most:,}"
        low = f"above {self.above:,}" if self.above is not None else ""
        low = f"{self.least:,} or more" if self.least is not None else low
        high = f"below {self.below:,}" if self.below is not None else ""
        high = f"at most {self.most:,}" if self.most is not None else high
        return ", ".join(bound for bound in (low, high) if bound)


def field(
    default: T,
    text: str,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    choices: Sequence[str] = (),
) -> T:
    """Declare a dataclass field with a line of explanation; a mutable default is copied for every instance.

    The range is that of `Doc`. The declared type is the default's, so that type checkers see `lr: float = 3e-4`.
    """
    metadata = {_DOC: Doc(text, above=above, least=least, below=below, most=most, choices=choices)}
    declared: Any
    if isinstance(default, list | dict) or dataclasses.is_dataclass(default):
        declared = dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    else:
        declared = dataclasses.field(default=default, metadata=metadata)
    result: T = declared
    return result


def keys(config: Any) -> list[dataclasses.Field[Any]]:
    """The fields of a config that are keys: all but those that only Python can set (`omegaconf_ignore`)."""
    return [part for part in dataclasses.fields(config) if not part.metadata.get("omegaconf_ignore")]


def doc(declared: dataclasses.Field[Any]) -> Doc:
    """The explanation and the range of a field; an empty one for a field of plain dataclasses."""
    documented: Doc = declared.metadata.get(_DOC, Doc(""))
    return documented


def check(config: Any, section: str, *rules: tuple[bool, str]) -> None:
    """Raise one ConfigError for all fields out of their range and for all `rules`, (holds, sentence), that do not hold.

    `section` is the key of `config` in the whole configuration, empty for the whole.
    """
    prefix = f"{section}." if section else ""
    wrong = [
        f"{prefix}{part.name}={_shown(getattr(config, part.name))}: give {_wanted(part)}."
        for part in dataclasses.fields(config)
        if not doc(part).accepts(getattr(config, part.name))
    ]
    wrong += [sentence for holds, sentence in rules if not holds]
    if wrong:
        raise ConfigError(" ".join(wrong))


def _wanted(part: dataclasses.Field[Any]) -> str:
    optional = " or null" if part.default is None else ""
    if doc(part).choices:
        return f"one of {doc(part).range}{optional}"
    return f"{'a number ' if doc(part).least is None else ''}{doc(part).range}{optional}"


def _shown(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
