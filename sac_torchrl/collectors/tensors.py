"""Stepping tensor environments: no step waits for the device."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor

from sac_torchrl.agents.policies import acting
from sac_torchrl.envs.tensors import TensorEnv
from sac_torchrl.learner.capture import Captured, CudaGraph
from sac_torchrl.replay.packing import unchecked


class TensorCollector:
    """In place of TorchRL's Collector: yields a transition `(count,)` of all environments, valid until the next step.

    TorchRL's asks the host after every step whether an episode ended. Here the reset is computed for all environments
    and applied where one ended. The policy is captured.
    """

    _carrier: TensorDictBase

    def __init__(self, env: TensorEnv, actor: ProbabilisticActor, *, random_frames: int) -> None:
        self._env = env
        self._policy = acting(actor)
        self._random_frames = random_frames
        self._act: Callable[[Tensor], Sequence[Tensor]] = Captured(self._choose)
        self.reset()

    def __iter__(self) -> Iterator[Any]:
        made, count = 0, self._env.batch_size[0]
        while True:
            with torch.no_grad():
                actions = [self._env.random_action()] if made < self._random_frames else []
                transition, observation = self._step(self._carrier.get("observation"), *actions)
            self._carrier.set("observation", observation)
            made += count
            yield transition

    def reset(self) -> None:
        """Start new episodes."""
        self._carrier = self._env.reset().select("observation")

    def shutdown(self) -> None:
        """Nothing is open."""

    def _step(self, observation: Tensor, *actions: Tensor) -> tuple[Any, Tensor]:
        """Take the actions, or act: the transition `(count,)`, and the observation that the next step starts from."""
        taken = actions or self._act(observation)
        following, reward, terminated, truncated = self._env.take(taken[0])
        done = terminated | truncated
        names = ["action"] if actions else self._policy.out_keys
        after = {"observation": following, "reward": reward, "terminated": terminated, "done": done}
        columns = {"observation": observation, **dict(zip(names, taken, strict=True)), "next": after}
        return unchecked(columns, self._env.batch_size[0]), self._env.restart(done)

    def _choose(self, observation: Tensor) -> list[Tensor]:
        with set_exploration_type(ExplorationType.RANDOM):
            acted = self._policy(TensorDict({"observation": observation}, batch_size=self._env.batch_size))
        return [acted.get(key) for key in self._policy.out_keys]


class RecordingCollector(TensorCollector):
    """Yields `record(transition)`, a tensor, and captures the whole step with it; on a GPU as one CUDA graph.

    `record` computes with tensors and changes others in place. The environments are `in_place`.
    """

    def __init__(
        self,
        env: TensorEnv,
        actor: ProbabilisticActor,
        *,
        random_frames: int,
        record: Callable[[TensorDictBase], Tensor],
    ) -> None:
        super().__init__(env, actor, random_frames=random_frames)
        self._record = record
        self._act = self._choose
        on_gpu = self._carrier.get("observation").is_cuda
        self._captured: Callable[..., Sequence[Tensor]] = (
            CudaGraph(self._recorded, generators=[env.generator]) if on_gpu else Captured(self._recorded)
        )

    def _step(self, observation: Tensor, *actions: Tensor) -> tuple[Any, Tensor]:
        recorded, following = (self._recorded if actions else self._captured)(observation, *actions)
        return recorded, following

    def _recorded(self, observation: Tensor, *actions: Tensor) -> Sequence[Tensor]:
        transition, following = super()._step(observation, *actions)
        return [self._record(transition), following]
