"""Asynchronous collection: it never waits for the learner, and its lead over the learner is bounded."""

from collections.abc import Generator
from dataclasses import dataclass

from sac_torchrl.collectors.experience import Dropped, Experience, Job, Steps
from sac_torchrl.collectors.policy_workers import PolicyWorkers, Step
from sac_torchrl.collectors.worker_process import listen
from sac_torchrl.collectors.workers import WorkersConfig
from sac_torchrl.errors import ConfigError, WorkerDied
from sac_torchrl.fields import field


@dataclass
class Async(WorkersConfig):
    """Every worker steps its environments at its own pace, with its own policy, while the learner trains.

    `slack` bounds the ratio of updates to frames from both sides: no update comes before its frame, and collection
    waits for the learner. `train/policy_lag` logs how many frames the policies were behind. A worker that fails is
    treated as in `processes`.
    """

    slack: int | None = field(
        None, "frames that may be collected ahead of the learner; null: 16 steps of every environment", least=1
    )
    refresh: int = field(1, "frames that the learner trains on between new weights for a policy", least=1)

    def start(self, job: Job) -> Experience:
        """Connect them; raises ConfigError where the slack is less than a step of every environment."""
        return AsyncExperience(job, self)


class AsyncExperience(PolicyWorkers):
    """Every worker steps on by itself, at most `slack` frames of all together ahead of what was trained on."""

    def __init__(self, job: Job, config: Async) -> None:
        super().__init__(job, config)
        count = job.env.count
        slack = 16 * count if config.slack is None else config.slack
        if slack < count:
            raise ConfigError(f"collector.slack={slack}: give at least {count}, the env.count, or null.")
        self._ahead = slack // count
        self._refresh = config.refresh

    def _iterate(self) -> Generator[list[Steps | Dropped], None, None]:
        dropped = list[Steps | Dropped]()
        while True:
            collected = dropped + self._take_some()
            if collected:
                yield collected
            dropped = self._grant()

    def _grant(self) -> list[Steps | Dropped]:
        """Allow every worker that is ready its whole lead, with fresh weights where they are due."""
        dropped = list[Steps | Dropped]()
        for worker in list(self._workers):
            if worker.ready and worker.granted < self._ahead:
                if self.frames - worker.learned >= self._refresh:
                    worker.refresh(self._job.actor, learned=self.frames)
                try:
                    worker.grant(self._ahead - worker.granted)
                except WorkerDied as died:
                    dropped.append(self._replace(worker, died))
        return dropped

    def _take_some(self) -> list[Steps | Dropped]:
        """Wait for one step and take the others that are there, half a worker's lead at most, so that it continues."""
        collected = list[Steps | Dropped]()
        for worker in listen([worker for worker in self._workers if worker.granted or not worker.ready]):
            made, dropped = list[Step](), list[Steps | Dropped]()
            try:
                for _ in range(max(1, self._ahead // 2)):
                    step = worker.take(stored=self.frames)
                    made += [] if step is None else [step]
                    if not worker.granted or not worker.has_answered:
                        break
            except WorkerDied as died:
                dropped.append(self._replace(worker, died))
            if made:
                collected.append(self._steps([(worker.environments, made)]))
            collected += dropped
        return collected
