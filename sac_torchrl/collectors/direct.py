"""Collection in this process."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.collectors import Collector
from torchrl.data import TensorDictReplayBuffer
from torchrl.envs import EnvBase, GymWrapper
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor

from sac_torchrl.actors import acting
from sac_torchrl.agent import Specs
from sac_torchrl.collectors.experience import Collecting, Experience, Steps
from sac_torchrl.collectors.vector import VectorCollector
from sac_torchrl.envs import Env
from sac_torchrl.replay import rows
from sac_torchrl.simulators import Simulator


@dataclass
class Direct(Collecting):
    """All environments in this process, one step of each between two looks at the replay ratio."""

    def build(
        self,
        env: Env,
        actor: ProbabilisticActor,
        buffer: TensorDictReplayBuffer,
        *,
        specs: Specs,
        total_frames: int,
        random_frames: int,
        seed: int,
    ) -> Experience:
        """Connect them; the policy acts with the very parameters that the learner trains, so nothing is copied."""
        return InProcess(
            env.build(device=next(actor.parameters()).device),
            actor,
            buffer,
            specs=specs,
            total_frames=total_frames,
            random_frames=random_frames,
            seed=seed,
        )


class InProcess(Experience):
    """The environments of `env`, of batch size `(count,)`, stepped together by this process."""

    def __init__(
        self,
        env: EnvBase,
        actor: ProbabilisticActor,
        buffer: TensorDictReplayBuffer,
        *,
        specs: Specs,
        total_frames: int,
        random_frames: int,
        seed: int,
    ) -> None:
        super().__init__(
            actor,
            buffer,
            specs=specs,
            count=env.numel(),
            total_frames=total_frames,
            random_frames=random_frames,
            seed=seed,
            device=env.device,
        )
        self._env = env

    def _collect(self) -> Generator[list[Steps], None, None]:
        self._env.set_seed(self._seed + self.frames)
        remaining = max(0, self._random_frames - self.frames)
        with closing(stepping(self._env, self._actor, random_frames=remaining)) as batches:
            for batch in batches:
                yield [Steps(rows(batch, self._specs), batch["next", "done"].reshape(-1), slice(None))]


def stepping(env: EnvBase, actor: ProbabilisticActor, *, random_frames: int) -> Generator[TensorDictBase, None, None]:
    """Step all environments of `env` once at a time, and close them at the end: transitions `(count, 1)`."""
    if isinstance(env, Simulator):
        yield from _on_device(env, actor, random_frames=random_frames)
        return
    kind = VectorCollector if isinstance(env, GymWrapper) else Collector
    collector = kind(
        env,
        acting(actor),
        frames_per_batch=env.numel(),
        total_frames=-1,
        # Whole steps: TorchRL rounds up too, and warns.
        init_random_frames=-(-random_frames // env.numel()) * env.numel(),
        policy_device=next(actor.parameters()).device,
        env_device=env.device,
        storing_device=env.device,
        track_traj_ids=False,
        auto_register_policy_transforms=False,
    )
    try:
        yield from collector
    finally:
        collector.shutdown()


def _on_device(
    env: Simulator, actor: ProbabilisticActor, *, random_frames: int
) -> Generator[TensorDictBase, None, None]:
    """The same for a simulator of tensors: transitions `(count,)`.

    TorchRL's Collector asks the host after every step whether any episode ended. Here the reset is computed for all
    environments and taken where one ended, so that a GPU is never waited for.
    """
    policy = acting(actor)
    root = env.reset().select("observation")
    made = 0
    while True:
        with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
            action = env.action_spec.rand() if made < random_frames else policy(root)["action"]
            step = env._step(root.set("action", action))
            following = env._reset(TensorDict({"_reset": step["done"]}, batch_size=env.batch_size))
        yield root.set("next", step)
        made += env.numel()
        root = following
