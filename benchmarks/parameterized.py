"""Two tasks of hybrid actions with a known optimum, as a plugin, and what policies reach of it.

PYTHONPATH=benchmarks python recipes/continuous.py env.id=parameterized:Gaps-v0
PYTHONPATH=benchmarks python benchmarks/parameterized.py RUN [RUN ...]
"""

import math
import sys
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete, Tuple

import sac_torchrl as sac

EPISODES = 500


class Gaps(gym.Env[Any, Any]):
    """A course of length 1 with two gaps: run, hop or leap, each so far, without ending a step in a gap.

    A step gains the distance and costs 0.005 (run), 0.01 (hop) or 0.02 (leap). Who runs across a gap, or lands in one,
    falls, gains nothing and ends the episode. Positions of gaps are multiples of 0.01.
    """

    lengths, costs = (0.1, 0.15, 0.3), (0.005, 0.01, 0.02)
    action_space = Tuple([Discrete(3), Tuple([Box(0, length, (1,)) for length in lengths])])
    observation_space = Box(-1, 1, (5,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        starts = self.np_random.integers([15, 60], [35, 75])
        widths = self.np_random.integers([5, 5], [25, 25])
        self.starts, self.ends = starts / 100, (starts + widths) / 100
        self.place = 0.0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Run, hop or leap."""
        kind, numbers = action
        length = float(numbers[kind][0])
        place = self.place + length
        inside = (self.starts < place) & (place < self.ends)
        across = (self.place <= self.starts) & (self.ends <= place)
        falls = inside.any() or (kind == 0 and across.any())
        self.place = min(place, 1.0)
        reward = (0.0 if falls else min(length, 1.0 - (place - length))) - self.costs[kind]
        return self._seen(), reward, bool(falls or place >= 1), False, {}

    def optimum(self) -> float:
        """The best return from the start, by dynamic programming over places that are multiples of 0.01."""
        starts, ends = (np.round(100 * edge).astype(int) for edge in (self.starts, self.ends))
        best = np.zeros(101)
        for place in range(99, -1, -1):
            options = [-self.costs[0]]
            for kind, length in enumerate(self.lengths):
                for after in range(place + 1, min(100, place + round(100 * length)) + 1):
                    inside, across = (starts < after) & (after < ends), (place <= starts) & (ends <= after)
                    if not (inside.any() or (kind == 0 and across.any())):
                        options.append((after - place) / 100 - self.costs[kind] + best[after])
            best[place] = max(options)
        return float(best[0])

    def _seen(self) -> Any:
        gaps = [self.starts - self.place, self.ends - self.place]
        return np.concatenate([[self.place], *gaps]).clip(-1, 1).astype(np.float32)


class Driving(gym.Env[Any, Any]):
    """Turn by an angle, accelerate or brake by a part, and stop within 0.1 of the target at the origin.

    A step moves by the speed, at most 0.4, and gains how much nearer it comes, less 0.02. A stop there gains 1.
    """

    action_space = Tuple([Discrete(3), Box(-math.pi, math.pi, (1,)), Box(0, 1, (1,)), Box(0, 1, (1,))])
    observation_space = Box(-4, 4, (5,))
    gain, fastest, radius, cost = 0.2, 0.4, 0.1, 0.02

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        angle, self.heading = self.np_random.uniform(-math.pi, math.pi, 2)
        self.place = self.np_random.uniform(0.3, 1.0) * np.array([math.cos(angle), math.sin(angle)])
        self.speed, self.distance = 0.0, float(np.hypot(*self.place))
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Turn, accelerate or brake, and move."""
        kind, turn, gas, brake = action
        if kind == 0:
            self.heading = math.remainder(self.heading + float(turn[0]), 2 * math.pi)
        elif kind == 1:
            self.speed = min(self.speed + self.gain * float(gas[0]), self.fastest)
        else:
            self.speed *= 1.0 - float(brake[0])
        self.place = self.place + self.speed * np.array([math.cos(self.heading), math.sin(self.heading)])
        before, self.distance = self.distance, float(np.hypot(*self.place))
        stopped = kind == 2 and self.speed < 0.02 and self.distance < self.radius
        reward = before - self.distance - self.cost + float(stopped)
        return self._seen(), reward, bool(stopped or self.distance > 2), False, {}

    def optimum(self) -> float:
        """The return of the best plan that turns to the target, drives straight and stops."""
        plans, speed, driven = [], 0.0, 0.0
        for steps in range(1, 20):
            speed = min(speed + self.gain, self.fastest)
            driven += speed
            missing = max(0.0, self.distance - driven)
            if missing < self.radius:
                plans.append(self.distance - missing - self.cost * (steps + 2) + 1)
        return max(plans)

    def _seen(self) -> Any:
        bearing = math.atan2(-self.place[1], -self.place[0]) - self.heading
        seen = [*self.place, self.speed, math.cos(bearing), math.sin(bearing)]
        return np.clip(seen, -4, 4).astype(np.float32)


gym.register("Gaps-v0", f"{__name__}:Gaps", max_episode_steps=40)
gym.register("Driving-v0", f"{__name__}:Driving", max_episode_steps=40)


def main() -> None:
    """Play every run's newest policy from the same starts."""
    for path in sys.argv[1:]:
        policy = sac.Policy.load(path)
        env: Any = gym.make(policy.spec.env)
        returns, best = [], []
        for seed in range(EPISODES):
            seen, _ = env.reset(seed=1000 + seed)
            best.append(env.unwrapped.optimum())
            returns.append(0.0)
            done = False
            while not done:
                seen, reward, terminated, truncated, _ = env.step(policy(seen))
                returns[-1] += reward
                done = terminated or truncated
        part = np.mean(returns) / np.mean(best)
        print(f"{path}: {np.mean(returns):.3f} of {np.mean(best):.3f}, {part:.3f} of the optimum", flush=True)


if __name__ == "__main__":
    main()
