"""Toy environments of docs/results.md; a plugin: `PYTHONPATH=benchmarks ... env.plugins=[toys]`."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete
from numpy.typing import NDArray


class BitFlipping(gym.Env[Any, Any]):
    """An action flips one of `bits`, each -1 or 1, and the episode ends where all are those of the goal.

    The reward is -1 a step and 0 for the last one (Andrychowicz et al. 2017, arXiv 1707.01495, section 3.1).
    """

    def __init__(self, bits: int = 15) -> None:
        bit = Box(-1, 1, (bits,), np.float32)
        self.observation_space = Dict(observation=bit, achieved_goal=bit, desired_goal=bit)
        self.action_space = Discrete(bits)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draw bits and goal, which differ."""
        super().reset(seed=seed)
        self.bits = self.goal = self._draw()
        while np.array_equal(self.bits, self.goal):
            self.goal = self._draw()
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Flip a bit."""
        self.bits = self.bits.copy()
        self.bits[action] *= -1
        done = bool(self.compute_terminated(self.bits, self.goal, {}))
        return self._seen(), float(done) - 1.0, done, False, {"is_success": done}

    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: Any) -> NDArray[np.float64]:
        """-1, or 0 where the goal is achieved, `(...)` for goals `(..., bits)`."""
        reward: NDArray[np.float64] = self.compute_terminated(achieved_goal, desired_goal, info) - 1.0
        return reward

    def compute_terminated(self, achieved_goal: Any, desired_goal: Any, info: Any) -> NDArray[np.bool_]:
        """Whether the goal is achieved, `(...)`."""
        equal: NDArray[np.bool_] = np.all(achieved_goal == desired_goal, axis=-1)
        return equal

    def _draw(self) -> NDArray[np.float32]:
        return self.np_random.choice(np.array([-1, 1], np.float32), self.action_space.n)

    def _seen(self) -> dict[str, NDArray[np.float32]]:
        return {"observation": self.bits, "achieved_goal": self.bits, "desired_goal": self.goal}


class TwoDoors(gym.Env[Any, Any]):
    """A sign says which of two doors pays 1; the choice made, a step through the hall behind it leads to the reward.

    In the hall the sign is legible in one of ten episodes only: `hidden` has the paying door always, -1 or 1.
    """

    observation_space = Dict(room=Box(-1, 1, (3,), np.float32), hidden=Box(-1, 1, (1,), np.float32))
    action_space = Discrete(2)
    legible = 0.1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draw the door that pays."""
        super().reset(seed=seed)
        self.paying = int(self.np_random.integers(2)) * 2 - 1
        self.door = 0
        return self._seen(self.paying), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Choose door 0 or 1, or walk on through the hall, whatever the action."""
        if self.door:
            return self._seen(0), float(self.door == self.paying), True, False, {}
        self.door = int(action) * 2 - 1
        return self._seen(self.paying if self.np_random.random() < self.legible else 0), 0.0, False, False, {}

    def _seen(self, sign: int) -> dict[str, NDArray[np.float32]]:
        room = np.array([self.door != 0, self.door, sign], np.float32)
        return {"room": room, "hidden": np.array([self.paying], np.float32)}


gym.register("BitFlipping-v0", BitFlipping, max_episode_steps=15)
gym.register("TwoDoors-v0", TwoDoors, max_episode_steps=2)
