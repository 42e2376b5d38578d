"""The whole configuration of a run as one dataclass."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer
from torchrl.modules import ProbabilisticActor

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
from sac_torchrl.collectors.config import CollectorConfig
from sac_torchrl.collectors.direct import Direct
from sac_torchrl.collectors.experience import Experience
from sac_torchrl.collectors.processes import Processes
from sac_torchrl.collectors.ray import Ray
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.errors import ConfigError
from sac_torchrl.fields import check, field
from sac_torchrl.learner.learner import LearnerConfig
from sac_torchrl.replay.buffer import Hindsight, ReplayConfig
from sac_torchrl.replay.offline import OfflineConfig
from sac_torchrl.runs.checkpoint import CheckpointConfig
from sac_torchrl.runs.device import resolve_device
from sac_torchrl.runs.evaluation import EvaluationConfig
from sac_torchrl.runs.folder import RunConfig
from sac_torchrl.runs.init import InitConfig
from sac_torchrl.runs.schedule import ReplayRatio, StopConfig
from sac_torchrl.runs.sinks import LogConfig
from sac_torchrl.runs.snapshot import frames_in
from sac_torchrl.specs import Specs

if TYPE_CHECKING:
    from sac_torchrl.envs.goals import Goals

T = TypeVar("T", bound="TrainConfig")


@dataclass
class TrainConfig:
    """Everything a run is configured by, under the names of the command line; raises ConfigError.

    `variants` holds the variants by the head that they build: the kind of actions, and the name of the recipe for it.
    """

    variants: ClassVar[Mapping[str, Mapping[str, type[Variant]]]] = {
        "continuous": {
            "sac": SAC,
            "sac_v1": SACv1,
            "redq": REDQ,
            "droq": DroQ,
            "crossq": CrossQ,
            "tqc": TQC,
            "simba": SimBa,
            "fastsac": FastSAC,
        },
        "discrete": {"discrete_sac": DiscreteSAC},
    }
    collectors: ClassVar[Mapping[str, type[CollectorConfig]]] = {
        "direct": Direct,
        "processes": Processes,
        "async": Async,
        "ray": Ray,
    }

    variant: Variant = field(SAC(), "the algorithm")
    collector: CollectorConfig = field(Direct(), "where environments are stepped")
    env: EnvConfig = field(EnvConfig(), "the task")
    seed: int = field(0, "of environments, weights, exploration, sampling and evaluation", least=0)
    total_frames: int = field(10_000, "length of the run in transitions over all environments", least=1)
    random_frames: int = field(1_000, "first frames, with actions drawn uniformly", least=0)
    learning_starts: int | None = field(None, "first frames without updates; null: random_frames", least=0)
    replay_ratio: float = field(1.0, "updates per frame, fractions included", above=0)
    update_every: int = field(1, "frames between bursts of updates; replay_ratio stays", least=1)
    batch_size: int = field(256, "replay rows in an update (Haarnoja et al. 2018b, table 1)", least=1)
    n_steps: int = field(1, "frames that a replay row spans", least=1)
    normalize: bool = field(False, "normalize the networks' observations to mean 0 and variance 1")
    log_every: int = field(500, "frames between rows of metrics.csv", least=1)
    device: str = field("auto", "auto, cpu, cuda or cuda:N")
    learner: LearnerConfig = field(LearnerConfig(), "losses and optimizers")
    replay: ReplayConfig = field(ReplayConfig(), "the replay buffer")
    init: InitConfig = field(InitConfig(), "another run's weights to begin with")
    offline: OfflineConfig = field(OfflineConfig(), "offline data in every batch")
    evaluate: EvaluationConfig = field(EvaluationConfig(), "episodes with deterministic actions")
    stop: StopConfig = field(StopConfig(), "the end before total_frames")
    checkpoint: CheckpointConfig = field(CheckpointConfig(), "what the run resumes from")
    log: LogConfig = field(LogConfig(), "trackers of experiments")
    run: RunConfig = field(RunConfig(), "the run folder")

    def __post_init__(self) -> None:
        rows = min(self.replay.capacity, self.total_frames)
        first = self.n_steps * self.env.count
        seen = self.variant.actor_keys, self.variant.critic_keys
        problem = ""
        try:
            resolve_device(self.device)
        except ConfigError as error:
            problem = str(error)
        check(
            self,
            "",
            (
                self.random_frames <= self.total_frames or self.total_frames < 1,
                f"random_frames={self.random_frames}: give 0 to {self.total_frames}, the total_frames.",
            ),
            (
                self.learning_starts is None or self.learning_starts <= max(0, self.total_frames),
                f"learning_starts={self.learning_starts}: give 0 to {self.total_frames}, the total_frames, or null.",
            ),
            (
                self.batch_size <= rows or rows < 1,
                f"batch_size={self.batch_size}: give 1 to {rows}, the smaller of replay.capacity and total_frames.",
            ),
            (
                self.learner.at_once == 1 or not self.replay.prioritized,
                f"learner.at_once={self.learner.at_once}: priorities are set between two draws; give 1, or "
                "replay.prioritized=false.",
            ),
            (
                self.offline.dataset is None or not self.replay.prioritized,
                f"offline.dataset={self.offline.dataset}: rows of two sources are drawn uniformly; give "
                "replay.prioritized=false.",
            ),
            (
                self.offline.dataset is None or not self.variant.needs_entropy,
                f"offline.dataset={self.offline.dataset}: it does not store the behavior policy's entropy; give "
                "variant.entropy_penalty=0.",
            ),
            *(
                (not in_the_way, f"replay.hindsight=future: {why}")
                for in_the_way, why in (
                    (self.n_steps > 1, "a row of several frames has rewards of one goal; give n_steps=1."),
                    (self.normalize, "goals would be normalized by other ones than are sampled; give normalize=false."),
                    (
                        self.offline.dataset is not None,
                        "rows of a dataset have no episodes to take goals from; give offline.dataset=null.",
                    ),
                    (
                        self.variant.needs_entropy,
                        "the stored entropy is that of the policy with another goal; give variant.entropy_penalty=0.",
                    ),
                    (
                        any("desired_goal" not in keys for keys in seen if keys is not None),
                        "networks learn of goals that they do not see; add desired_goal to variant.actor_keys and "
                        "variant.critic_keys.",
                    ),
                )
                if self.replay.hindsight is not Hindsight.none
            ),
            (
                self.n_steps <= 1 or self.updates_after >= first,
                f"n_steps={self.n_steps} with env.count={self.env.count}: give random_frames of at least {first}, or "
                "learning_starts, so that a row is complete before the first update.",
            ),
            (
                not self.env.single or isinstance(self.collector, Direct),
                "env.single=true: only one can be open, and it is evaluated in this process: give collector=direct.",
            ),
            (
                self.env.count <= self.replay.capacity,
                f"env.count={self.env.count}: a step of all environments does not fit into replay.capacity="
                f"{self.replay.capacity}; change one of them.",
            ),
            (not problem, problem),
        )

    @property
    def head(self) -> str:
        """The head of the variant, as in `variants`; raises ConfigError for a class that is not in there."""
        for head, options in self.variants.items():
            if type(self.variant) in options.values():
                return head
        name = type(self.variant).__name__
        raise ConfigError(f"variant {name} has no name: subclass TrainConfig and add {name} to its `variants`.")

    @property
    def updates_after(self) -> int:
        """The number of first frames without updates."""
        return self.random_frames if self.learning_starts is None else self.learning_starts

    @property
    def updates(self) -> int:
        """The number of updates of the whole run."""
        return ReplayRatio(self.replay_ratio, after=self.updates_after, every=self.update_every).due(self.total_frames)

    def specs(self) -> Specs:
        """The spaces of the environment and what a replay row spans; makes one environment, and closes it."""
        specs = self.env.specs()
        return replace(
            specs,
            n_steps=self.n_steps,
            gamma=self.variant.gamma,
            entropy=self.variant.needs_entropy,
            episodes=self.replay.hindsight is not Hindsight.none,
        )

    def goals(self) -> "Goals | None":
        """What computes the rewards of other goals, where rows are sampled with them; it holds an environment.

        Raises ConfigError where that cannot be, or where the first update might come before an episode is finished.
        """
        if self.replay.hindsight is Hindsight.none:
            return None
        from sac_torchrl.envs.goals import Goals  # only where it is used

        goals = Goals(self.env)
        # In as many frames, and one more, some environment has begun a second episode.
        longest = goals.limit * self.env.count
        rows = min(self.replay.capacity, self.total_frames)
        if self.updates_after >= longest and rows > longest:
            return goals
        goals.close()
        raise ConfigError(
            f"replay.hindsight=future draws rows of finished episodes, and the first may end after {longest} frames "
            f"(env.count={self.env.count}, {goals.limit} steps each): give learning_starts of at least that, and more "
            f"total_frames and replay.capacity (they are {self.updates_after}, {self.total_frames} and "
            f"{self.replay.capacity})."
        )

    def agent(self, specs: Specs, *, device: torch.device) -> Agent:
        """Build the agent of the variant, with a normalizer of observations where one is wanted."""
        build = partial(self.variant.build, specs, device=device)
        agent = replace(build(), rebuild=build)
        return with_normalization(agent, specs, device=device) if self.normalize else agent

    def buffer(
        self, specs: Specs, folder: Path, *, seed: int, device: torch.device, parts: ExitStack
    ) -> TensorDictReplayBuffer:
        """Build the replay buffer, empty, with its files in `folder` where they are on disk.

        Hindsight opens an environment, which `parts` closes.
        """
        goals = self.goals()
        if goals is not None:
            parts.callback(goals.close)
        return self.replay.build(
            folder, specs, rows=self.total_frames, batch_size=self.batch_size, seed=seed, device=device, goals=goals
        )

    def experience(
        self, actor: ProbabilisticActor, buffer: TensorDictReplayBuffer, specs: Specs, *, seed: int
    ) -> Experience:
        """Build the collector of the environments, in which `actor` acts and fills `buffer`."""
        return self.collector.build(
            self.env,
            actor,
            buffer,
            specs=specs,
            total_frames=self.total_frames,
            random_frames=self.random_frames,
            seed=seed,
        )

    def initial_weights(self, specs: Specs) -> dict[str, Tensor]:
        """The weights that `init.run` gives a new run, by their names in the loss; empty for a run with checkpoints.

        Raises ConfigError where they do not fit.
        """
        saved = self.run.saved()
        if self.init.run is None or (saved is not None and frames_in(saved.parent / "checkpoints")):
            return {}
        with torch.random.fork_rng(devices=[]):
            agent = self.agent(specs, device=torch.device("cpu"))
        return self.init.prepare(agent, specs)


def choices(config: TrainConfig) -> dict[str, dict[str, type[Any]]]:
    """The keys that choose a dataclass by name, each with its options; variants are those of the head."""
    return {"variant": dict(config.variants[config.head]), "collector": dict(config.collectors)}


def chosen(config: TrainConfig) -> dict[str, str]:
    """The names of the dataclasses that a configuration holds, by key."""
    return {
        key: next(name for name, option in options.items() if option is type(getattr(config, key)))
        for key, options in choices(config).items()
    }
