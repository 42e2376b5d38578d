"""The mean return of uniformly random actions: `python benchmarks/random_policy.py ID [PLUGIN ...]`."""

import statistics
import sys

from sac_torchrl import EnvConfig

EPISODES = 200


def main(id: str, *plugins: str) -> None:
    """Play whole episodes one after the other, and print mean and standard error."""
    env = EnvConfig(id, plugins=list(plugins)).build(seed=0)
    returns, total = list[float](), 0.0
    root = env.reset()
    while len(returns) < EPISODES:
        step, root = env.step_and_maybe_reset(env.rand_action(root))
        total += step["next", "reward"].item()
        if step["next", "done"].item():
            returns.append(total)
            total = 0.0
    error = statistics.stdev(returns) / EPISODES**0.5
    print(f"{id}: {statistics.fmean(returns):.3f}, standard error {error:.3f}, of {EPISODES} episodes")


if __name__ == "__main__":
    main(*sys.argv[1:])
