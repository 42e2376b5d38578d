"""Collection in this process."""

from dataclasses import dataclass

from torchrl.data import TensorDictReplayBuffer
from torchrl.envs import EnvBase
from torchrl.modules import ProbabilisticActor

from sac_torchrl.agent import Specs
from sac_torchrl.collectors.experience import Collecting, Experience


@dataclass
class Direct(Collecting):
    """All environments in this process, one step of each between two looks at the replay ratio."""

    def build(
        self,
        env: EnvBase,
        actor: ProbabilisticActor,
        buffer: TensorDictReplayBuffer,
        *,
        specs: Specs,
        total_frames: int,
        random_frames: int,
        seed: int,
    ) -> Experience:
        """Connect them; the policy acts with the very parameters that the learner trains, so nothing is copied."""
        return Experience(
            env, actor, buffer, specs=specs, total_frames=total_frames, random_frames=random_frames, seed=seed
        )
