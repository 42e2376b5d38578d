"""Importing this registers an environment with several discrete actions."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, MultiBinary


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


gym.register("Buttons-v0", "buttons:Buttons")
