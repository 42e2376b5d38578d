"""What `collector=NAME` chooses: the configs of all collectors."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torchrl.data import TensorDictReplayBuffer
from torchrl.modules import ProbabilisticActor

from sac_torchrl.collectors.experience import Experience, Job
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.specs import Specs


@dataclass
class CollectorConfig(ABC):
    """What `collector=NAME` chooses."""

    def build(
        self,
        env: EnvConfig,
        actor: ProbabilisticActor,
        buffer: TensorDictReplayBuffer,
        *,
        specs: Specs,
        total_frames: int,
        random_frames: int,
        seed: int,
    ) -> Experience:
        """Connect `actor`, acting in the environments of `env`, to `buffer`; nothing is stepped before an iteration."""
        return self.start(Job(env, actor, buffer, specs, total_frames, random_frames, seed))

    @abstractmethod
    def start(self, job: Job) -> Experience:
        """What `build` returns; raises ConfigError for a job that this kind cannot do."""
