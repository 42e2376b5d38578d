"""Importing this registers environments with several discrete actions, and with parameters of one."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, Tuple


class Buttons(gym.Env[Any, Any]):
    """Ten steps of three buttons; a press of the second one is rewarded."""

    observation_space = Box(-1, 1, (2,), np.float32)
    action_space = MultiBinary(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = 10
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.left -= 1
        return np.zeros(2, np.float32), float(action[1]), self.left == 0, False, {}


class Levers(Buttons):
    """Ten steps of one of three levers, pulled so far; the second one, pulled by 5, is rewarded most."""

    action_space = Tuple([Discrete(3), *(Box(0, size, (1,)) for size in (1, 10, 100))])  # type: ignore[assignment]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.left -= 1
        reward = 1.0 - abs(float(action[2][0]) - 5.0) / 5.0 if action[0] == 1 else 0.0
        return np.zeros(2, np.float32), reward, self.left == 0, False, {}


gym.register("Buttons-v0", "buttons:Buttons")
gym.register("Levers-v0", "buttons:Levers")
