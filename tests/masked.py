"""Importing this registers environments that say which actions are legal, and that fail at any other one."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Tuple

FAULTS: dict[str, Callable[[Any], Any]] = {
    "length": lambda legal: legal[:-1],
    "kind": lambda legal: np.full(legal.shape, 2),
    "empty": np.zeros_like,
    "missing": lambda legal: None,
}


class Masked(gym.Env[Any, Any]):
    """Eight steps; of n actions the first 2 to n are legal, whatever the seed draws, and 0 is rewarded.

    `sizes` are those of several actions. The mask is in the `source` that env.mask calls so, and `fault` spoils it at
    the third step. No action is legal at the end.
    """

    def __init__(self, source: str = "info", sizes: tuple[int, ...] = (5,), fault: str = "") -> None:
        self.action_space = Discrete(sizes[0]) if len(sizes) == 1 else MultiDiscrete(list(sizes))
        self.observation_space = Box(-1, 1, (2,), np.float32)
        self.source, self.sizes, self.fault = source, sizes, fault
        if source == "observation":
            self.observation_space = Dict(
                observation=self.observation_space, action_mask=Box(0, 1, (sum(sizes),), np.int8)
            )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.step_number = 0
        return self._seen()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        legal = (np.atleast_1d(action) < self.counts).all()
        assert legal, f"{action} is not below {self.counts}"
        self.step_number += 1
        seen, info = self._seen()
        return seen, float(np.sum(action) == 0), self.step_number == 8, False, info

    def _seen(self) -> tuple[Any, dict[str, Any]]:
        self.counts = self.np_random.integers(2, np.array(self.sizes) + 1)
        self.legal = np.concatenate(
            [np.arange(size) < count for size, count in zip(self.sizes, self.counts, strict=True)]
        ).astype(np.int8)
        if self.step_number == 8:
            self.legal[:] = 0
        if self.fault and self.step_number == 3:
            self.legal = FAULTS[self.fault](self.legal)
        numbers = np.array([self.step_number / 8, self.counts[0] / self.sizes[0]], np.float32)
        seen = {"observation": numbers, "action_mask": self.legal} if self.source == "observation" else numbers
        self.seen_last = seen, {"action_mask": self.legal} if self.source == "info" else {}
        return self.seen_last


class MaskedMethod(Masked):
    """The same with the method that sb3-contrib asks for."""

    def action_masks(self) -> Any:
        return self.legal


class InTuple(gym.ActionWrapper[Any, Any, Any]):
    """Takes the actions of an environment in a Tuple, with a number that it does not read."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.action_space = Tuple([env.action_space, Box(0, 1, (1,))])

    def action(self, action: Any) -> Any:
        return action[0]


gym.register("Masked-v0", f"{__name__}:Masked", max_episode_steps=100)
gym.register("MaskedMethod-v0", f"{__name__}:MaskedMethod", max_episode_steps=100)
