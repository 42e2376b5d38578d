"""The command line of a recipe: Hydra's, with its mistakes found beforehand and told in one line."""

import argparse
import inspect
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from sac_torchrl.config.files import Layer, read
from sac_torchrl.config.schema import T, choices, chosen, plan, recipe_of
from sac_torchrl.errors import ConfigError, exit_codes, nearest
from sac_torchrl.orphans import marked
from sac_torchrl.runs.folder import CONFIG

_PACKAGE = Path(__file__).parents[1]
# Beside the package in a clone, inside it where it was installed from a wheel.
SHIPPED = next(path for path in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes") if path.is_dir())

_HEADER = """\
Train Soft Actor-Critic (recipe: {recipe}). Give KEY=VALUE to change anything below.

  {command}
  {command} preset={preset} seed=1
  {command} env.id={env} total_frames=100000
  {command} -m seed=0,1,2                      (one run after the other)
  {command} run.folder=runs/NAME               (a new folder, or a run to go on with)

Results go to a new folder below runs/: config.yaml, metrics.csv, curve.png, checkpoints, evaluation.json.
A preset is a task with its length or a published system's settings: preset=NAME, or several, of which later ones
win: preset=[TASK,SYSTEM]. Keys on the command line win over presets.
"""
_TEMPLATE = """\
${hydra.help.header}
Choose by name (KEY=NAME):

$APP_CONFIG_GROUPS
Set any value (KEY=VALUE, dots between the levels: env.id=..., variant.gamma=...):

$CONFIG
"""


def launch(main: Callable[[T], None], schema: type[T]) -> None:
    """Call `main` with the configuration that the command line asks for: the last line of a recipe.

    Values come from the defaults of `schema`, then from the run that `run.folder` holds, then from
    `preset=NAME` (a file in the folder presets/ beside the recipe) or `preset=[NAME,NAME]`, of which later ones win,
    then from the command line. Mistakes end the process with one line and exit code 64 before `main` is called;
    what `main` raises ends it as `run.exit_codes` says.
    Hydra's own flags work (--help, --cfg job, --multirun, ...), and it writes nothing.
    """
    with exit_codes(), ExitStack() as stack:
        arguments = _arguments()
        sweeping = arguments.multirun or "hydra.mode=MULTIRUN" in arguments.overrides
        line = _CommandLine.read(schema, Path(inspect.getfile(main)).resolve().parent, arguments.overrides)
        # Hydra insists on a folder for its notes on a sweep.
        notes = stack.enter_context(tempfile.TemporaryDirectory(prefix="sac-torchrl-")) if sweeping else "."
        line.register(notes=notes)
        if not (arguments.config_dir or arguments.config_name or arguments.config_path):
            for overrides in line.jobs() if sweeping else [line.overrides]:
                line.check(overrides)

        def task(raw: DictConfig) -> None:
            with exit_codes(), marked():
                main(plan(raw, schema))

        hydra.main(version_base="1.3", config_path=None, config_name=line.recipe)(task)()


def _arguments() -> argparse.Namespace:
    """Hydra's own flags; raises ConfigError for one that it does not have."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        flag = message.rpartition(": ")[2].split(" ")[0]
        known = [word for action in parser._actions for word in action.option_strings]
        raise ConfigError(f"{message}{nearest(flag, known)} --help shows what to give.")

    parser.error = refuse  # type: ignore[method-assign]  # argparse offers no other way to keep it from exiting with 2
    return parser.parse_args()


@dataclass(frozen=True)
class _CommandLine(Generic[T]):
    schema: type[T]
    recipe: str
    overrides: list[Override]
    presets: dict[str, Layer]
    saved: Layer | None

    @classmethod
    def read(cls, schema: type[T], folder: Path, words: list[str]) -> "_CommandLine[T]":
        overrides = [_parse(word) for word in words]
        recipe = recipe_of(schema)
        presets = folder / "presets" if (folder / "presets").is_dir() else SHIPPED / "presets"
        return cls(
            schema,
            recipe,
            overrides,
            presets={path.stem: read(path) for path in sorted(presets.glob("*.yaml"))},
            saved=_saved(overrides, recipe),
        )

    def register(self, *, notes: str) -> None:
        """Give Hydra the schema, the plans to choose from, the presets and the saved run."""
        store = ConfigStore.instance()
        base = OmegaConf.structured(self.schema)
        for key, options in choices(self.schema).items():
            base[key] = "???"
            store.repo.pop(key, None)  # The other recipe's, where both are launched in one process.
            for name, option in options.items():
                node = {key: OmegaConf.structured(option), **getattr(option, "training", {})}
                store.store(group=key, name=name, node=node, package="_global_")
        store.repo.pop("preset", None)
        for name, layer in self.presets.items():
            if layer.recipe == self.recipe:
                store.store(group="preset", name=name, node=_node(layer), package="_global_")
        store.store(name="schema", node=base)
        saved = [] if self.saved is None else ["saved"]
        if self.saved is not None:
            store.store(name="saved", node=_node(self.saved), package="_global_")
        defaults = [
            "schema",
            *({key: name} for key, name in chosen(self.schema()).items()),
            *saved,
            {"preset": None},
            "_self_",
            {"override hydra/job_logging": "none"},
            {"override hydra/hydra_logging": "none"},
        ]
        store.store(name=self.recipe, node={"defaults": defaults, "hydra": self._hydra(notes)})

    def jobs(self) -> Iterator[list[Override]]:
        """The jobs of a sweep that show every value once, as Hydra would run them."""
        sweeps = {
            index: [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
            for index, override in enumerate(self.overrides)
            if override.is_choice_sweep() or override.is_range_sweep()
        }
        for number in range(max(map(len, sweeps.values()), default=1)):
            yield [
                _parse(sweeps[index][min(number, len(sweeps[index]) - 1)]) if index in sweeps else override
                for index, override in enumerate(self.overrides)
            ]

    def check(self, overrides: list[Override]) -> None:
        """Raise one ConfigError for all unknown keys and names, wrong types and rules that are broken."""
        names = {*choices(self.schema), "preset"}
        choosing = [one for one in overrides if one.key_or_group in names or one.is_hydra_override()]
        setting = [one for one in overrides if one not in choosing]
        problems = [
            f"{one.input_line} gives several values: add -m to run one after the other."
            for one in overrides
            if one.is_sweep_override()
        ]
        problems += [problem for one in choosing if not problems for problem in self._misnamed(one)]
        if problems:
            raise ConfigError(" ".join(problems))
        config = self._compose(choosing)
        known = [*names, *_paths(config)]
        problems = [problem for one in setting for problem in _set(config, one, known)]
        try:
            plan(config if problems else self._compose(overrides), self.schema)
        except ConfigError as error:
            problems.append(str(error))
        if problems:
            raise ConfigError(" ".join(problems))

    def _misnamed(self, override: Override) -> Iterator[str]:
        key, value = override.key_or_group, override.value()
        options = choices(self.schema).get(key, self.presets)
        if override.is_hydra_override() or override.is_delete() or (key == "preset" and value is None):
            return
        names = value if key == "preset" and isinstance(value, list) else [value]
        unknown = [name for name in names if not isinstance(name, str) or name not in options]
        for name in unknown:
            given = override.input_line if len(names) == 1 else f"{key}={name}"
            yield f"{given} is unknown{nearest(str(name), options)} --help lists all names."
        if unknown:
            return
        if key == "preset":
            layers = {str(name): self.presets[str(name)] for name in names}
            for name, layer in layers.items():
                if layer.recipe != self.recipe:
                    yield f"preset={name} is for recipes/{layer.recipe}.py; this is {self.recipe}."
            variants = {name: layer.names["variant"] for name, layer in layers.items() if "variant" in layer.names}
            if len(set(variants.values())) > 1:
                chosen = " and ".join(f"{name} variant={variant}" for name, variant in variants.items())
                yield f"{override.input_line}: {chosen} exclude one another."
        elif self.saved is not None and key in self.saved.names and value != self.saved.names[key]:
            yield f"{key}={value}: run.folder holds a run with {key}={self.saved.names[key]}; give another."

    def _compose(self, overrides: list[Override]) -> DictConfig:
        words = [str(override.input_line) for override in overrides]
        try:
            with hydra.initialize(version_base="1.3", config_path=None):
                return hydra.compose(self.recipe, words)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_one_line(error)) from error

    def _hydra(self, notes: str) -> dict[str, Any]:
        preset, env = {"continuous": ("hopper", "Hopper-v5"), "discrete": ("acrobot", "Acrobot-v1")}[self.recipe]
        shipped = sys.argv[0] == str(SHIPPED / f"{self.recipe}.py")
        command = f"sac-torchrl train {self.recipe}" if shipped else f"python {sys.argv[0]}"
        header = _HEADER.format(recipe=self.recipe, command=command, preset=preset, env=env)
        return {
            "run": {"dir": "."},
            "sweep": {"dir": notes, "subdir": "."},
            "output_subdir": None,
            "job": {"name": self.recipe, "chdir": False},
            "help": {"app_name": self.recipe, "header": header, "footer": "", "template": _TEMPLATE},
        }


def assignment(key: str, text: str) -> str:
    """Write `text` as a value on Hydra's command line, whatever characters it holds."""
    return f"{key}={QuotedString(text, Quote.single).with_quotes()}"


def _parse(word: str) -> Override:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException as error:
        advice = "quote what is special to Hydra, as in \"env.id='a=b'\"" if "=" in word else "give KEY=VALUE"
        raise ConfigError(f"{word}: {advice} ({_one_line(error)})") from error


def _set(config: DictConfig, override: Override, known: list[str]) -> Iterator[str]:
    """Set one value, or yield what is wrong with it."""
    key = override.key_or_group
    if override.is_delete() and key in known:
        yield f"~{key}: a key cannot be removed; set it to another value."
        return
    try:
        if isinstance(OmegaConf.select(config, key), DictConfig) and not isinstance(override.value(), dict):
            keys = [path for path in known if path.startswith(f"{key}.")]
            yield f"{override.input_line}: {key} is a group of keys; set {', '.join(keys)}."
        else:
            OmegaConf.update(config, key, override.value())
    except (ConfigAttributeError, ConfigKeyError):
        yield f"unknown key {key}{nearest(key, known)}"
    except OmegaConfBaseException as error:
        yield f"{override.input_line}: {str(error).splitlines()[0].rstrip('.')}."


def _saved(overrides: list[Override], recipe: str) -> Layer | None:
    """Read the run in `run.folder`, if there is one: a run goes on with its own configuration."""
    given = [one for one in overrides if one.key_or_group == "run.folder" and not one.is_sweep_override()]
    path = Path(str(given[-1].value())).expanduser() / CONFIG if given else Path()
    if not path.is_file():
        return None
    layer = read(path)
    if layer.recipe != recipe:
        raise ConfigError(f"{path.parent} holds a run of recipes/{layer.recipe}.py, and this is {recipe}.")
    # Modules are code: they are named on the command line, never by a file that came with a run.
    layer.settings.get("env", {}).pop("plugins", None)
    return layer


def _node(layer: Layer) -> dict[str, Any]:
    overrides = [{f"override /{key}": name} for key, name in layer.names.items()]
    return {"defaults": [*overrides, "_self_"], **layer.settings}


def _paths(config: DictConfig, path: str = "") -> Iterator[str]:
    for name in config:
        yield f"{path}{name!s}"
        if isinstance(config[name], DictConfig):
            yield from _paths(config[name], f"{path}{name!s}.")


def _one_line(error: BaseException) -> str:
    """Join the messages of an error and its causes, without Hydra's advice on how to see more."""
    said = []
    cause: BaseException | None = error
    while cause is not None:
        said.append(" ".join(line.strip() for line in str(cause).splitlines() if "hydra.cc" not in line))
        cause = cause.__cause__
    return ": ".join(dict.fromkeys(said)).rstrip(".") + "."
