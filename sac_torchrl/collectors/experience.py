"""What every kind of collection is to a recipe: an iterator that stores transitions and counts them."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.data import TensorDictReplayBuffer
from torchrl.envs import EnvBase
from torchrl.modules import ProbabilisticActor

from sac_torchrl.actors import acting
from sac_torchrl.agent import Specs
from sac_torchrl.replay import rows


@dataclass(frozen=True)
class Episode:
    """A finished training episode: the sum of its rewards and its number of frames."""

    episode_return: float
    length: int


class Experience:
    """New transitions, stored as they come: iterating yields how many frames were just added to the buffer.

    `frames` counts the transitions of all environments since the start of the run; iteration ends when it reaches
    `total_frames`. `seed` seeds the environments. An episode that is running when the run is saved is not continued
    after a resume: its frames are in the buffer, and the environments start anew from a seed of their own.
    """

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
        self.frames = 0
        self._env = env
        self._actor = actor
        self._buffer = buffer
        self._specs = specs
        self._total_frames = total_frames
        self._random_frames = random_frames
        self._seed = seed
        self._returns = torch.zeros(env.batch_size, dtype=torch.float64)
        self._lengths = torch.zeros(env.batch_size, dtype=torch.int64)
        self._ended: list[Episode] = []
        self._told = time.monotonic()
        self._told_frames = 0

    def __iter__(self) -> Iterator[int]:
        """Step every environment once, store the transitions, yield their number; close the environments at the end.

        The first `random_frames` actions are drawn uniformly, the others from the policy.
        """
        if self.frames >= self._total_frames:
            return
        self._env.set_seed(self._seed + self.frames)
        collector = Collector(
            self._env,
            acting(self._actor),
            frames_per_batch=self._env.numel(),
            total_frames=-1,
            init_random_frames=max(0, self._random_frames - self.frames),
            policy_device=next(self._actor.parameters()).device,
            env_device=self._env.device,
            storing_device=self._env.device,
            track_traj_ids=False,
            auto_register_policy_transforms=False,
        )
        try:
            for batch in collector:
                transitions = rows(batch, self._specs)
                self._buffer.extend(transitions)
                self.frames += transitions.numel()
                self._count(batch)
                yield transitions.numel()
                if self.finished:
                    break
        finally:
            collector.shutdown()

    @property
    def finished(self) -> bool:
        """Whether `total_frames` have been collected."""
        return self.frames >= self._total_frames

    def metrics(self) -> dict[str, float]:
        """Mean return and length of the training episodes that ended since the last call, and frames per second.

        The first two are absent where no episode ended.
        """
        now = time.monotonic()
        metrics = {"time/frames_per_second": (self.frames - self._told_frames) / (now - self._told)}
        if self._ended:
            metrics["train/return"] = fmean(episode.episode_return for episode in self._ended)
            metrics["train/length"] = fmean(episode.length for episode in self._ended)
        self._told, self._told_frames, self._ended = now, self.frames, []
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The counter of frames."""
        return {"frames": self.frames}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue counting where a saved run stood."""
        self.frames = self._told_frames = state["frames"]

    def _count(self, batch: TensorDictBase) -> None:
        # A batch is one step of every environment: shape (environments, 1).
        self._returns += batch["next", "reward"].reshape(self._returns.shape).cpu()
        self._lengths += 1
        done = batch["next", "done"].reshape(self._lengths.shape).cpu()
        if done.any():
            self._ended += [
                Episode(float(self._returns[i]), int(self._lengths[i])) for i in done.nonzero().flatten().tolist()
            ]
            self._returns.masked_fill_(done, 0)
            self._lengths.masked_fill_(done, 0)


@dataclass
class Collecting(ABC):
    """What `collector=NAME` chooses."""

    @abstractmethod
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
        """Connect `actor`, acting in `env`, to `buffer`; nothing is stepped before the first iteration."""
