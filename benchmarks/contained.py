"""What `Contained` costs a step: `python benchmarks/contained.py [--env HalfCheetah-v5] [--steps 20000]`.

Steps of the environment alone and empty blocks take turns; medians are printed.
"""

import argparse
import statistics
import time

import gymnasium
import torch

from sac_torchrl.envs.contained import Contained


def main() -> None:
    """Print nanoseconds a step, and the share of a step of the environment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--steps", type=int, default=20_000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    env = gymnasium.make(given.env)
    env.action_space.seed(0)
    env.reset(seed=0)
    steps, blocks = list[int](), list[int]()
    for _ in range(given.steps):
        action = env.action_space.sample()
        begun = time.perf_counter_ns()
        _, _, terminated, truncated, _ = env.step(action)
        steps.append(time.perf_counter_ns() - begun)
        if terminated or truncated:
            env.reset()
        begun = time.perf_counter_ns()
        with Contained(given.env):
            pass
        blocks.append(time.perf_counter_ns() - begun)
    step, block = statistics.median(steps), statistics.median(blocks)
    print(f"{block:.0f} ns a step, {100 * block / step:.1f} % of {step / 1000:.1f} microseconds, a step of {given.env}")


if __name__ == "__main__":
    main()
