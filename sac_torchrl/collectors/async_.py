"""Collection that never waits for the learner, nor runs away from it."""

from dataclasses import dataclass

from sac_torchrl.collectors.experience import CollectorConfig, Experience, Job
from sac_torchrl.collectors.policy_workers import AsyncExperience
from sac_torchrl.collectors.workers import check, default_workers, refuse_batched
from sac_torchrl.errors import ConfigError


@dataclass
class Async(CollectorConfig):
    """Every worker steps its environments at its own pace, with a policy of its own, while the learner trains.

    `slack` bounds the ratio of updates to frames from both sides: no update comes before its frame, and at most
    `slack` frames have been made that were not learned from yet (16 steps of every environment where null). A policy
    gets new weights when `refresh` frames have been learned from since its last ones; `train/policy_lag` tells how
    many frames it was behind. What happens to a worker that fails is as in `processes`.
    """

    workers: int | None = None
    slack: int | None = None
    refresh: int = 1
    timeout: float = 10.0
    restarts: int = 0

    def __post_init__(self) -> None:
        check(workers=self.workers, timeout=self.timeout, restarts=self.restarts)
        if self.refresh < 1:
            raise ConfigError(f"collector.refresh={self.refresh}: give 1 frame or more.")
        if self.slack is not None and self.slack < 1:
            raise ConfigError(f"collector.slack={self.slack}: give at least env.count frames, or null.")

    def start(self, job: Job) -> Experience:
        """Connect them; raises ConfigError where the slack is less than a step of every environment."""
        refuse_batched(job.env)
        count = job.env.count
        slack = 16 * count if self.slack is None else self.slack
        if slack < count:
            raise ConfigError(f"collector.slack={slack}: give at least {count}, the env.count, or null.")
        return AsyncExperience(
            job,
            workers=self.workers or default_workers(),
            timeout=self.timeout,
            restarts=self.restarts,
            slack=slack,
            refresh=self.refresh,
        )
