"""Gymnasium environments stepped together in one process."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torchrl.envs import EnvBase, GymWrapper


def wrapped(envs: VectorEnv[Any, Any, Any]) -> EnvBase:
    """A vector environment, its autoreset disabled, as TorchRL's."""
    env: EnvBase = GymWrapper(envs, categorical_action_encoding=True)  # type: ignore[no-untyped-call]
    return env


def seeds(seed: int, count: int) -> list[int]:
    """One seed an environment, far apart: Gymnasium's own `seed + i` makes the runs of neighboring seeds overlap."""
    return [int(word) for word in np.random.SeedSequence(seed).generate_state(count)]


class SequentialVectorEnv(VectorEnv[Any, Any, Any]):
    """Gymnasium environments of the same spaces, stepped one after the other.

    Gymnasium's SyncVectorEnv takes twice the time, most of it when nothing is in the processor's caches, as after an
    update. TorchRL resets the finished ones itself, by mask: every mode of Gymnasium's own autoreset either replaces
    the final observation or inserts a transition that never happened.
    """

    autoreset_mode = AutoresetMode.DISABLED

    def __init__(self, envs: Sequence[gym.Env[Any, Any]]) -> None:
        self.envs = envs
        self.num_envs = len(envs)
        self.metadata = envs[0].metadata | {"autoreset_mode": self.autoreset_mode}
        self.render_mode = envs[0].render_mode
        self.single_observation_space = envs[0].observation_space
        self.single_action_space = envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._observations = np.zeros(self.observation_space.shape or (), self.observation_space.dtype)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start episodes, those of `options["reset_mask"]` or all; `seed` is a list of one for each, or for all."""
        given = list(seeds(seed, self.num_envs)) if isinstance(seed, int) else seed or [None] * self.num_envs
        mask = [True] * self.num_envs if options is None else options["reset_mask"]
        for number, (env, wanted, own) in enumerate(zip(self.envs, mask, given, strict=True)):
            if wanted:
                self._observations[number], _ = env.reset(seed=own)
        return self._observations.copy(), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take an action in every environment."""
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, np.bool_), np.zeros(self.num_envs, np.bool_)
        for number, env in enumerate(self.envs):
            result = env.step(actions[number])
            self._observations[number], rewards[number], terminated[number], truncated[number], _ = result
        return self._observations.copy(), rewards, terminated, truncated, {}

    def render(self) -> tuple[Any, ...]:
        """Draw every one."""
        return tuple(env.render() for env in self.envs)

    def close_extras(self, **options: Any) -> None:
        """Close them."""
        for env in self.envs:
            env.close()
