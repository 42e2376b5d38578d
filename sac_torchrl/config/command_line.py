"""Settings in the grammar of Hydra's command line, the jobs of a sweep, and Hydra's plugins for sweeps."""

import itertools
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from sac_torchrl.config.compose import compose
from sac_torchrl.config.layers import Setting
from sac_torchrl.config.schema import T
from sac_torchrl.errors import ConfigError

# Characters with a meaning in Hydra's grammar; a value without any of these is text.
_SPECIAL = re.compile(r"""['"\[\]{}()$,]""")


@dataclass(frozen=True)
class Job:
    """One run of a sweep: all of its settings, and the swept ones as (key, value)."""

    settings: list[Setting]
    swept: list[tuple[str, str]]

    @property
    def name(self) -> str:
        """The swept values, as in `learner.lr=0.001 seed=0`."""
        return " ".join(f"{key}={value}" for key, value in self.swept)


@dataclass(frozen=True)
class CommandLine:
    """The KEY=VALUE words of a command."""

    overrides: list[Override]

    @classmethod
    def read(cls, words: Sequence[str]) -> "CommandLine":
        """Parse them; raises ConfigError for one that is not KEY=VALUE in Hydra's grammar."""
        return cls([_parse(word) for word in words])

    @property
    def for_hydra(self) -> bool:
        """Whether a word is for Hydra itself, as in `hydra/sweeper=NAME`."""
        return any(override.is_hydra_override() for override in self.overrides)

    def settings(self) -> list[Setting]:
        """The settings of a single run; raises ConfigError where a key has several values."""
        for override in self.overrides:
            if override.is_sweep_override():
                raise ConfigError(f"{override.input_line} gives several values: add -m to run one after the other.")
        return [_setting(override) for override in self.overrides]

    def fixed(self) -> list[Setting]:
        """The settings that are neither swept nor Hydra's."""
        return [
            _setting(override)
            for override in self.overrides
            if not (override.is_sweep_override() or override.is_hydra_override())
        ]

    def jobs(self) -> list[Job]:
        """The runs of a sweep: every combination of the swept values, the last key moves fastest."""
        columns = [list(_values(override)) for override in self.overrides]
        return [
            Job(
                [_setting(override) for override in combination],
                [
                    (override.get_key_element(), override.get_value_string())
                    for override, given in zip(combination, self.overrides, strict=True)
                    if given.is_sweep_override()
                ],
            )
            for combination in itertools.product(*columns)
        ]


def assignment(key: str, text: str) -> str:
    """Write `text` as a value in Hydra's grammar, whatever characters it holds."""
    return f"{key}={QuotedString(text, Quote.single).with_quotes()}"


def under_hydra(recipe: T, line: CommandLine, task: Callable[[T], object], *, folder: Path, sweep: bool) -> None:
    """Hand the command to Hydra, for its sweepers and launchers; each job is composed as everywhere else.

    What `task` returns is Hydra's result of the job: a sweeper's objective.
    """
    config = compose(recipe, line.fixed(), folder=folder)
    keys = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(keys, dict)

    def job(raw: DictConfig) -> object:
        return task(compose(recipe, CommandLine.read(HydraConfig.get().overrides.task).settings(), folder=folder))

    # Hydra insists on a folder for its notes on a sweep.
    with tempfile.TemporaryDirectory(prefix="sac-torchrl-") as notes:
        settings = {
            "run": {"dir": "."},
            "sweep": {"dir": notes, "subdir": "."},
            "output_subdir": None,
            "job": {"name": recipe.head, "chdir": False},
        }
        quiet = [{"override hydra/job_logging": "none"}, {"override hydra/hydra_logging": "none"}]
        node = {"defaults": ["_self_", *quiet], "hydra": settings, "preset": None, **keys}
        ConfigStore.instance().store(name="sac_torchrl", node=node)
        # `++` sets a key whether it is there or not: what Hydra composes is not used.
        words = [
            str(one.input_line) if one.is_hydra_override() else f"++{str(one.input_line).lstrip('+')}"
            for one in line.overrides
        ]
        sys.argv = [sys.argv[0], *(["-m"] if sweep else []), *words]
        hydra.main(version_base="1.3", config_path=None, config_name="sac_torchrl")(job)()


def _parse(word: str) -> Override:
    key, equals, value = word.partition("=")
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException as error:
        if equals and not _SPECIAL.search(value):  # an accent or an equals sign: text without quotes
            return OverridesParser.create().parse_override(assignment(key, value))
        advice = "quote what is special to Hydra, as in \"env.id='a,b'\"" if equals else "give KEY=VALUE"
        raise ConfigError(f"{word}: {advice} ({' '.join(str(error).split())})") from error
    if override.is_delete():
        raise ConfigError(f"{word}: a key cannot be removed; give KEY=VALUE.")
    return override


def _setting(override: Override) -> Setting:
    return Setting(override.key_or_group, override.value(), str(override.input_line).lstrip("+"))


def _values(override: Override) -> Iterator[Override]:
    if not override.is_sweep_override():
        yield override
        return
    try:
        values = list(override.sweep_string_iterator())
    except HydraException as error:
        raise ConfigError(
            f"{override.input_line}: give values as in {override.key_or_group}=A,B or range(FROM,TO), or a sweeper "
            "that draws them (hydra/sweeper=NAME)."
        ) from error
    for value in values:
        yield _parse(f"{override.key_or_group}={value}")
