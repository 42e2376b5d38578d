"""Collection that never waits for the learner, nor runs away from it."""

from dataclasses import dataclass

from sac_torchrl.collectors.experience import CollectorConfig, Experience, Job
from sac_torchrl.collectors.policy_workers import AsyncExperience
from sac_torchrl.collectors.workers import default_workers, refuse_batched
from sac_torchrl.errors import ConfigError
from sac_torchrl.fields import check, field


@dataclass
class Async(CollectorConfig):
    """Every worker steps its environments at its own pace, with its own policy, while the learner trains.

    `slack` bounds the ratio of updates to frames from both sides: no update comes before its frame, and collection
    waits for the learner. `train/policy_lag` logs how many frames the policies were behind. A worker that fails is
    treated as in `processes`.
    """

    workers: int | None = field(None, "worker processes; null: one a core", least=1)
    slack: int | None = field(
        None, "frames that may be collected ahead of the learner; null: 16 steps of every environment", least=1
    )
    refresh: int = field(1, "frames that the learner trains on between new weights for a policy", least=1)
    timeout: float = field(10.0, "seconds that a worker may take for a step of its environments", above=0)
    restarts: int = field(0, "failed workers that are replaced in a run; the next failure ends it", least=0)

    def __post_init__(self) -> None:
        check(self, "collector")

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
