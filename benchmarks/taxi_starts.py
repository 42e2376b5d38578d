"""The mean return of Taxi-v4 policies over all starts: `python benchmarks/taxi_starts.py RUN [RUN ...]`."""

import sys
from typing import Any

import gymnasium as gym
import numpy as np

import sac_torchrl as sac

LIMIT = 200  # steps of an episode


def main() -> None:
    """Play every start of every run's newest policy to its end; transitions and policy are deterministic."""
    env: Any = gym.make("Taxi-v4").unwrapped
    states = np.arange(env.observation_space.n)
    starts = np.flatnonzero(env.initial_state_distrib)
    for path in sys.argv[1:]:
        policy = sac.Policy.load(path)
        masks = np.stack([env.action_mask(state) for state in states]) if policy.takes_mask else None
        actions = policy(states, action_mask=masks)
        returns = [play(env, actions, int(start)) for start in starts]
        print(f"{path}: {np.mean(returns):.2f} over {len(returns)} starts, {min(returns):g} at the worst")


def play(env: Any, actions: Any, state: int) -> float:
    """The return from one start."""
    total, done, step = 0.0, False, 0
    while not done and step < LIMIT:
        [(_, state, reward, done)] = env.P[state][actions[state]]
        total, step = total + reward, step + 1
    return total


if __name__ == "__main__":
    main()
