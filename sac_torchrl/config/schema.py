"""The whole configuration of each recipe as one dataclass."""

import dataclasses
import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from sac_torchrl.agents.agent import Agent
from sac_torchrl.agents.crossq import CrossQ
from sac_torchrl.agents.discrete_sac import DiscreteSAC
from sac_torchrl.agents.droq import DroQ
from sac_torchrl.agents.fastsac import FastSAC
from sac_torchrl.agents.normalization import with_normalization
from sac_torchrl.agents.redq import REDQ
from sac_torchrl.agents.sac import SAC
from sac_torchrl.agents.sac_v1 import SACv1
from sac_torchrl.agents.simba import SimBa
from sac_torchrl.agents.tqc import TQC
from sac_torchrl.agents.variant import Variant
from sac_torchrl.collectors.async_ import Async
from sac_torchrl.collectors.direct import Direct
from sac_torchrl.collectors.experience import CollectorConfig
from sac_torchrl.collectors.processes import Processes
from sac_torchrl.collectors.ray import Ray
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.errors import ConfigError
from sac_torchrl.learner.learner import LearnerConfig
from sac_torchrl.replay.buffer import ReplayConfig
from sac_torchrl.replay.offline import OfflineConfig
from sac_torchrl.runs.checkpoint import CheckpointConfig
from sac_torchrl.runs.device import resolve_device
from sac_torchrl.runs.evaluation import EvaluationConfig
from sac_torchrl.runs.folder import RunConfig
from sac_torchrl.specs import Specs


@dataclass
class Training:
    """What every recipe is configured by, in the words of the command line; raises ConfigError.

    `total_frames` and `random_frames` (the first ones, drawn uniformly) count transitions over all
    environments. `replay_ratio` is updates per frame; they begin after `learning_starts` frames (null: after the
    random ones), and those of each `update_every` frames come at once. A row of the replay buffer spans `n_steps`
    frames, and `normalize` gives the networks observations of mean 0 and variance 1 (the replay buffer keeps them as
    they came). `log_every` frames lie between two rows of metrics.csv, `device` is auto, cpu, cuda or cuda:N.
    """

    variants: ClassVar[dict[str, type[Variant]]] = {
        "sac": SAC,
        "sac_v1": SACv1,
        "redq": REDQ,
        "droq": DroQ,
        "crossq": CrossQ,
        "tqc": TQC,
        "simba": SimBa,
        "fastsac": FastSAC,
    }
    collectors: ClassVar[dict[str, type[CollectorConfig]]] = {
        "direct": Direct,
        "processes": Processes,
        "async": Async,
        "ray": Ray,
    }

    variant: Variant = field(default_factory=SAC)
    collector: CollectorConfig = field(default_factory=Direct)
    env: EnvConfig = field(default_factory=EnvConfig)
    seed: int = 0
    total_frames: int = 10_000
    random_frames: int = 1_000
    learning_starts: int | None = None
    replay_ratio: float = 1.0
    update_every: int = 1
    batch_size: int = 256
    n_steps: int = 1
    normalize: bool = False
    log_every: int = 500
    device: str = "auto"
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    offline: OfflineConfig = field(default_factory=OfflineConfig)
    evaluate: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        rows = min(self.replay.capacity, self.total_frames)
        wrong = [
            line
            for line, right in (
                (f"seed={self.seed}: give 0 or more.", self.seed >= 0),
                (f"total_frames={self.total_frames}: give 1 or more.", self.total_frames >= 1),
                (f"log_every={self.log_every}: give 1 or more.", self.log_every >= 1),
                (
                    f"random_frames={self.random_frames}: give 0 to {self.total_frames}, the total_frames.",
                    0 <= self.random_frames <= self.total_frames or self.total_frames < 1,
                ),
                (
                    f"learning_starts={self.learning_starts}: give 0 to {self.total_frames}, or null.",
                    self.learning_starts is None or 0 <= self.learning_starts <= max(0, self.total_frames),
                ),
                (f"update_every={self.update_every}: give 1 or more frames.", self.update_every >= 1),
                (
                    f"replay_ratio={self.replay_ratio}: give a positive number of updates per frame.",
                    0 < self.replay_ratio < math.inf,
                ),
                (
                    f"batch_size={self.batch_size}: give 1 to {rows}, the smaller of replay.capacity and total_frames.",
                    1 <= self.batch_size <= rows or self.total_frames < 1,
                ),
                (
                    f"offline.dataset={self.offline.dataset}: rows of two sources are drawn uniformly; give "
                    "replay.prioritized=false.",
                    self.offline.dataset is None or not self.replay.prioritized,
                ),
                (
                    f"offline.dataset={self.offline.dataset}: its rows do not tell the entropy of the policy that made "
                    "them; give variant.entropy_penalty=0.",
                    self.offline.dataset is None or not self.variant.needs_entropy,
                ),
                (f"n_steps={self.n_steps}: give 1 or more.", self.n_steps >= 1),
                (
                    f"n_steps={self.n_steps} with env.count={self.env.count}: give random_frames of at least "
                    f"{self.n_steps * self.env.count}, or learning_starts, so that there is a row to learn from.",
                    self.n_steps <= 1 or self.updates_after >= self.n_steps * self.env.count,
                ),
                (
                    f"env.count={self.env.count}: a step of all does not fit into replay.capacity="
                    f"{self.replay.capacity}; change one of them.",
                    self.env.count <= self.replay.capacity,
                ),
            )
            if not right
        ]
        try:
            resolve_device(self.device)
        except ConfigError as error:
            wrong.append(str(error))
        if wrong:
            raise ConfigError(" ".join(wrong))

    @property
    def updates_after(self) -> int:
        """The number of first frames that bring no updates."""
        return self.random_frames if self.learning_starts is None else self.learning_starts

    def specs(self) -> Specs:
        """The spaces of the environment and what a replay row spans; makes one environment, and closes it."""
        specs = self.env.specs()
        return replace(specs, n_steps=self.n_steps, gamma=self.variant.gamma, entropy=self.variant.needs_entropy)

    def agent(self, specs: Specs, *, device: torch.device) -> Agent:
        """Build the agent of the variant, with a normalizer of observations where one is wanted."""
        build = partial(self.variant.build, specs, device=device)
        agent = replace(build(), rebuild=build)
        return with_normalization(agent, specs, device=device) if self.normalize else agent


@dataclass
class Continuous(Training):
    """The configuration of recipes/continuous.py."""


@dataclass
class Discrete(Training):
    """The configuration of recipes/discrete.py."""

    variants: ClassVar[dict[str, type[Variant]]] = {"discrete_sac": DiscreteSAC}

    variant: Variant = field(default_factory=DiscreteSAC)
    env: EnvConfig = field(default_factory=lambda: EnvConfig(id="CartPole-v1"))
    total_frames: int = 24_000


RECIPES: dict[str, type[Training]] = {"continuous": Continuous, "discrete": Discrete}

T = TypeVar("T", bound=Training)


def recipe_of(schema: type[Training]) -> str:
    """Name the recipe of a configuration, as in RECIPES."""
    return next(name for name, known in RECIPES.items() if issubclass(schema, known))


def choices(schema: type[Training]) -> dict[str, dict[str, type[Any]]]:
    """The keys that choose a plan by name, each with the plans to choose from."""
    return {"variant": dict(schema.variants), "collector": dict(schema.collectors)}


def chosen(config: Training) -> dict[str, str]:
    """The names of the plans that a configuration holds, by key."""
    return {
        key: next(name for name, plan in options.items() if plan is type(getattr(config, key)))
        for key, options in choices(type(config)).items()
    }


def plan(raw: DictConfig, schema: type[T]) -> T:
    """Turn what was read into dataclasses; raises one ConfigError that lists everything wrong with it.

    Values are data: interpolations such as ${oc.env:HOME} are refused, and so are keys that no dataclass has.
    """
    problems: list[str] = []
    config = _instantiate(raw, schema, path="", problems=problems)
    if problems:
        raise ConfigError(" ".join(dict.fromkeys(problems)))
    assert isinstance(config, schema)
    return config


def _instantiate(node: DictConfig, schema: type[Any], *, path: str, problems: list[str]) -> object | None:
    """Build a dataclass from the leaves up; what is wrong is noted, and a default stands in for it."""
    hints = get_type_hints(schema)
    parts = {part.name: part for part in dataclasses.fields(schema)}
    problems += [f"{path}{key!s} is not a key of the configuration." for key in node if key not in parts]
    values: dict[str, Any] = {}
    for name, part in parts.items():
        if problem := _unusable(node, name):
            problems.append(f"{path}{name}{problem}")
            values[name] = _default(part)
            continue
        value = node[name]
        inner = OmegaConf.get_type(value) if isinstance(value, DictConfig) else None
        if inner is not None and dataclasses.is_dataclass(inner):
            section = _instantiate(value, inner, path=f"{path}{name}.", problems=problems)
            values[name] = _default(part) if section is None else section
        elif isinstance(value, DictConfig | ListConfig):
            content = OmegaConf.to_container(value)
            values[name] = tuple(content) if _is_tuple(hints[name]) and isinstance(content, list) else content
        else:
            values[name] = value
    try:
        built: object = schema(**values)
    except ConfigError as error:
        problems.append(str(error))
        return None
    return built


def _unusable(node: DictConfig, name: str) -> str:
    """Say what is wrong with a value before its meaning is looked at; empty where nothing is."""
    if name not in node or OmegaConf.is_missing(node, name):
        return " has no value: give one."
    if OmegaConf.is_interpolation(node, name) or (
        isinstance(node[name], ListConfig) and "${" in str(OmegaConf.to_container(node[name]))
    ):
        return " holds an interpolation: give the value itself."
    if isinstance(node[name], float) and math.isnan(node[name]):
        return " is not a number."
    return ""


def _default(part: dataclasses.Field[Any]) -> object:
    if part.default_factory is not dataclasses.MISSING:
        return part.default_factory()
    return part.default


def _is_tuple(hint: object) -> bool:
    # OmegaConf reads a tuple back as a list.
    return get_origin(hint) is tuple or any(get_origin(argument) is tuple for argument in get_args(hint))
