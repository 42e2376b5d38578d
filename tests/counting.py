"""Importing this registers Counting-v0, whose every transition says where it belongs."""

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.spaces import Box, Dict, Discrete, Tuple
from tensordict import TensorDictBase
from torch import Tensor, nn

from sac_torchrl.envs.vector import seeds

__all__ = ["AlwaysUp", "check", "length", "seeds", "truncates"]


def length(number: int, episode: int) -> int:
    """The frames in an episode: 1 to 9, uneven over environments and episodes."""
    return 1 + (4 * number + 5 * episode) % 9


def truncates(number: int, episode: int) -> bool:
    """Whether an episode ends by its time limit; the others terminate."""
    return (number + episode) % 2 == 1


class Counting(gym.Env[npt.NDArray[np.float32], npt.NDArray[np.float32]]):
    """Observes (environment number, episode, step) in one array that it reuses; the reward is the step.

    The number comes from the seed, so that it differs also between processes. Episodes are counted from 0
    at each seeded reset.
    """

    def __init__(self) -> None:
        self.observation_space = Box(0.0, np.inf, (3,), np.float32)
        self.action_space = Box(-1.0, 1.0, (1,), np.float32)
        self._state = np.zeros(3, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        if seed is None:
            self._state[1] += 1
        else:
            self._state[:2] = seed % 9973, 0
        self._state[2] = 0
        return self._state, {}

    def step(
        self, action: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self._state[2] += 1
        number, episode, step = (int(value) for value in self._state)
        assert step <= length(number, episode), "stepped past the end of an episode"
        done = step == length(number, episode)
        truncated = done and truncates(number, episode)
        return self._state, float(step), done and not truncated, truncated, {}


gym.register("Counting-v0", f"{__name__}:Counting")


class AlwaysUp(nn.Module):
    """Parameters of a policy that squashes to 1 whatever it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.tensor(50.0))

    def forward(self, observation: Tensor) -> Tensor:
        return torch.cat([self.height.expand(*observation.shape[:-1], 1), torch.zeros(*observation.shape[:-1], 1)], -1)


def check(rows: TensorDictBase, *, environments: int | None, limit: int | None = None) -> set[int]:
    """Check that `rows`, in the order they came, hold every transition of each environment once; return their numbers.

    The first episode is number 0, or 1 where a collector reset the environments after they were seeded. With a `limit`
    it alone truncates episodes.
    """
    at: dict[int, tuple[int, int]] = {}
    for row in rows:
        number, episode, step = (int(value) for value in row["observation"])
        assert (episode, step) == at.get(number, (min(episode, 1), 0))
        assert row["next", "observation"].int().tolist() == [number, episode, step + 1]
        assert row["next", "reward"].item() == step + 1
        longest = length(number, episode)
        truncated = truncates(number, episode) if limit is None else longest > limit
        last = step + 1 == min(longest, limit or longest)
        assert row["next", "terminated"].item() == (last and not truncated)
        at[number] = (episode + 1, 0) if last else (episode, step + 1)
    assert environments is None or len(at) == environments
    return set(at)


class CountingLeaves(gym.ObservationWrapper[Any, Any, Any]):
    """The same in leaves: a vector, a pair and an index of its own."""

    def __init__(self) -> None:
        super().__init__(Counting())
        self.observation_space = Dict(
            observation=Box(0.0, np.inf, (1,), np.float32),
            rest=Tuple([Box(0.0, np.inf, (1, 1)), Discrete(99, start=7)]),
        )

    def observation(self, observation: Any) -> dict[str, Any]:
        number, episode, step = observation
        return {"observation": np.array([number]), "rest": (np.array([[episode]]), int(step) + 7)}


gym.register("CountingLeaves-v0", f"{__name__}:CountingLeaves", max_episode_steps=100)


def joined(rows: TensorDictBase) -> TensorDictBase:
    """Rows of leaves as those of `Counting`."""
    made = rows.copy()
    for key in ("observation", ("next", "observation")):
        leaves = rows[key]
        columns = [leaves["observation"], leaves["rest.0"], leaves["rest.1"].float().unsqueeze(-1)]
        made.set(key, torch.cat(columns, -1))
    return made
