"""What all collectors with workers share: their keys, the replacement of workers that fail, and the workers' seeds."""

import logging
import os
import sys
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch

from sac_torchrl.collectors.config import CollectorConfig
from sac_torchrl.collectors.experience import Dropped, Experience, Job
from sac_torchrl.collectors.slices import split
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.handed import refuse_unpicklable
from sac_torchrl.envs.vector import seeds
from sac_torchrl.errors import ConfigError, WorkerDied
from sac_torchrl.fields import check, field

log = logging.getLogger(__name__)


@dataclass
class WorkersConfig(CollectorConfig):
    """The keys of every collector with workers."""

    workers: int | None = field(None, "worker processes; null: one a core", least=1)
    timeout: float = field(10.0, "seconds that a worker may take for a step of its environments", above=0)
    restarts: int = field(0, "failed workers that are replaced in a run; the next failure ends it", least=0)

    def __post_init__(self) -> None:
        check(self, "collector")

    def slices(self, env: EnvConfig) -> list[range]:
        """The environments of each worker; raises ConfigError for environments that cannot be dealt out."""
        if env.in_one:
            raise ConfigError(f"env.id={env.id} steps all its environments at once: use collector=direct.")
        refuse_unpicklable(env.make, env.id)
        return split(env.count, self.workers or self.default_workers(env.count))

    def default_workers(self, count: int) -> int:
        """The number of workers for `count` environments where the config gives none."""
        return cores()


class _Replaceable(Protocol):
    environments: range

    def kill(self) -> None: ...


W = TypeVar("W", bound=_Replaceable)


class Workers(list[W]):
    """The workers of one collector; one that fails is replaced as long as any of the `restarts` is left.

    `start` starts the worker of some environments, after a number of replacements, `replaced`. It may raise WorkerDied.
    """

    def __init__(self, start: Callable[[range, int], W], *, restarts: int) -> None:
        super().__init__()
        self.replaced = 0
        self._restarts = restarts
        self._start = start

    def start(self, environments: range) -> None:
        """Start a worker of the run's first ones."""
        self.append(self._start(environments, 0))

    def replace(self, failed: W, died: WorkerDied) -> W:
        """Start another worker in the place of a failed one; raises the last failure where no restart is left."""
        place = self.index(failed)
        while self.replaced < self._restarts:
            self.replaced += 1
            log.warning("%s It is replaced (%d of %d).", died, self.replaced, self._restarts)
            log.debug("%s", died.remote_traceback)
            failed.kill()
            try:
                self[place] = self._start(failed.environments, self.replaced)
            except WorkerDied as error:
                died = error
            else:
                return self[place]
        raise died


@dataclass(frozen=True)
class WorkerSeeds:
    """How a worker with a policy begins: seeds of its environments and of its exploration, random steps of each."""

    seeds: list[int]
    exploration: int
    random_steps: int


class WorkersExperience(Experience, Generic[W]):
    """Collection by workers that hold environments and a copy of the policy."""

    _workers: Workers[W]

    def __init__(self, job: Job, config: WorkersConfig) -> None:
        super().__init__(job)
        self._slices = config.slices(job.env)
        self._timeout = config.timeout
        self._restarts = config.restarts

    @abstractmethod
    def _start(self, environments: range, seeds: WorkerSeeds) -> W:
        """Start the worker of these environments; may raise WorkerDied."""

    def _open(self) -> None:
        """Prepare to start workers."""
        log_new_episodes(self.frames)
        self._workers = Workers(self._start_seeded, restarts=self._restarts)

    def _start_seeded(self, environments: range, replaced: int) -> W:
        # The episodes of `direct` for the first workers of a run, and others for each that replaces one.
        words = spread(self._job.seed + self.frames, self._job.env.count, replaced)
        seeds = WorkerSeeds(
            words[environments.start : environments.stop],
            exploration=int(np.random.SeedSequence([*words, environments.start]).generate_state(1)[0]),
            # Whole steps, as everywhere.
            random_steps=-(-max(0, self._job.random_frames - self.frames) // self._job.env.count),
        )
        return self._start(environments, seeds)

    def _replace(self, failed: W, died: WorkerDied) -> Dropped:
        """Start another worker in the place of a failed one, and say which episodes ended with it."""
        self._workers.replace(failed, died)
        return Dropped(torch.arange(failed.environments.start, failed.environments.stop))


def spread(seed: int, count: int, replaced: int) -> list[int]:
    """The seeds of `count` environments after `replaced` replacements of workers."""
    return seeds([seed, replaced] if replaced else seed, count)


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def log_new_episodes(frames: int) -> None:
    """Say in the log that a resumed run starts new episodes."""
    if frames:
        log.info("resuming is not exact: the environments in workers start new episodes, of other seeds")
