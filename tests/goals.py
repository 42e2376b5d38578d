"""Importing this registers environments with goals."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict

NEAR = 0.3


class Line(gym.Env[Any, Any]):
    """A point on a line that is to come near a goal in six steps; one number names the episode in all of them.

    In a worker, where there is no file `dies`, it makes one in the middle of an episode, and ends the process. Every
    step with a number that `fails` divides raises.
    """

    observation_space = Dict(
        observation=Box(-np.inf, np.inf, (2,), np.float64),
        achieved_goal=Box(-10, 10, (1, 1), np.float64),
        desired_goal=Box(-3, 3, (1, 1), np.float64),
    )
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, dies: str = "", fails: int = 0) -> None:
        self.dies, self.fails, self.taken = dies, fails, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.name, self.step_number = self.np_random.uniform(), 0
        self.point, self.goal = self.np_random.uniform(-1, 1, (2, 1, 1))
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.taken += 1
        if self.fails and self.taken % self.fails == 0:
            raise ArithmeticError("a glitch")
        ready = multiprocessing.parent_process() and self.step_number == 3 and self.taken > 20
        if self.dies and ready and not Path(self.dies).exists():
            Path(self.dies).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        self.step_number += 1
        self.point = self.point + 0.5 * action
        done = bool(self.compute_terminated(self.point, self.goal, {}))
        return self._seen(), self._reward(), done, False, {"is_success": done}

    def _reward(self) -> float:
        return float(self.compute_reward(self.point, self.goal, {}))

    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: Any) -> Any:
        return -np.linalg.norm(achieved_goal - desired_goal, axis=(-2, -1))

    def compute_terminated(self, achieved_goal: Any, desired_goal: Any, info: Any) -> Any:
        return np.linalg.norm(achieved_goal - desired_goal, axis=(-2, -1)) < NEAR

    def _seen(self) -> dict[str, Any]:
        observation = np.array([self.name, self.step_number])
        return {"observation": observation, "achieved_goal": self.point, "desired_goal": self.goal}


class One(Line):
    """Its methods take one step only; they are wrong for arrays of them, and count their calls."""

    calls = 0

    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: Any) -> Any:
        One.calls += 1
        return -np.linalg.norm(achieved_goal - desired_goal)

    def compute_terminated(self, achieved_goal: Any, desired_goal: Any, info: Any) -> Any:
        return bool(np.linalg.norm(achieved_goal - desired_goal) < NEAR)


class Costly(Line):
    """Its reward is no function of the goals."""

    def _reward(self) -> float:
        return super()._reward() - 0.1 * self.step_number


class Informed(Line):
    """Reads the info."""

    def _reward(self) -> float:
        return float(self.compute_reward(self.point, self.goal, {"cost": 0.1}))

    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: Any) -> Any:
        return super().compute_reward(achieved_goal, desired_goal, info) - info["cost"]


class Ending(Line):
    """Terminates for another cause too."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        *seen, terminated, truncated, info = super().step(action)
        return seen[0], seen[1], terminated or self.step_number == 5, truncated, info


class Wide(Line):
    """Has goals of two kinds."""

    observation_space = Dict(Line.observation_space.spaces | {"desired_goal": Box(-3, 3, (1,), np.float64)})

    def _seen(self) -> dict[str, Any]:
        return super()._seen() | {"desired_goal": self.goal[0]}


class Rewardless(Line):
    """Has no compute_reward."""

    compute_reward: Any = property(doc="none")

    def _reward(self) -> float:
        return 0.0


class Halved(gym.RewardWrapper[Any, Any]):
    """Halves the rewards of steps."""

    def reward(self, reward: Any) -> float:
        return 0.5 * float(reward)


for _class in (Line, One, Costly, Informed, Ending, Wide, Rewardless):
    gym.register(f"{_class.__name__}-v0", f"{__name__}:{_class.__name__}", max_episode_steps=6)
gym.register("Limitless-v0", f"{__name__}:Line")
