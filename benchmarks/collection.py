"""Frames per second of collection, beside a bare loop: `python benchmarks/collection.py [--counts 1,16,64]`.

HalfCheetah-v5, environments in this process, one thread. The bare loop steps the same Gymnasium vector environment and
calls the same two layers of 256 in plain torch; it resets what ended and stores nothing. Ours draws the action from
the policy, keeps true final observations, counts returns and writes rows to the replay buffer. TorchRL's Collector,
with the same policy and without a buffer, is the third. They take turns; ratios are taken within a round.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn
from torchrl.collectors import Collector

from sac_torchrl import SAC, Direct, EnvConfig, ReplayConfig, Storage
from sac_torchrl.agents.policies import acting

TASK = "HalfCheetah-v5"
CPU = torch.device("cpu")


def main() -> None:
    """Print a line for each number of environments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--counts", default="1,16,64")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=300, help="of every environment, a round")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    print("| environments | ours, frames/s | ms a step | of the bare loop | of TorchRL's Collector |")
    print("|---|---|---|---|---|")
    for count in map(int, given.counts.split(",")):
        loops = {"ours": ours(count), "bare": bare(count), "torchrl": torchrl(count)}
        rates: dict[str, list[float]] = {name: [] for name in loops}
        for number in range(given.rounds + 1):
            for name, loop in loops.items():
                start = time.perf_counter()
                for _ in range(given.steps):
                    next(loop)
                if number:  # the first round warms up
                    rates[name].append(count * given.steps / (time.perf_counter() - start))
        per_step = [count / rate * 1e3 for rate in rates["ours"]]
        against = {other: [a / b for a, b in zip(rates["ours"], rates[other], strict=True)] for other in loops}
        cells = [
            spread(rates["ours"], 0),
            spread(per_step, 2),
            spread(against["bare"], 2),
            spread(against["torchrl"], 2),
        ]
        print(f"| {count} | {' | '.join(cells)} |", flush=True)


def ours(count: int) -> Iterator[object]:
    """Collect as the recipe does."""
    plan = EnvConfig(TASK, count)
    specs = plan.specs()
    buffer = ReplayConfig(100_000, Storage.ram).build(Path(), specs, rows=100_000, batch_size=256, seed=0, device=CPU)
    actor = SAC().build(specs, device=CPU).actor
    yield from Direct().build(plan, actor, buffer, specs=specs, total_frames=10**9, random_frames=0, seed=0)


def bare(count: int) -> Iterator[object]:
    """Step the vector environment with a network of the same size."""
    envs = SyncVectorEnv([lambda: gymnasium.make(TASK)] * count, autoreset_mode=AutoresetMode.DISABLED)
    network = nn.Sequential(nn.Linear(17, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 12))
    observation, _ = envs.reset(seed=0)
    while True:
        with torch.no_grad():
            mean, log_std = network(torch.from_numpy(observation).float()).chunk(2, -1)
            action = torch.tanh(mean + log_std.exp() * torch.randn_like(mean))
        observation, _, terminated, truncated, _ = envs.step(action.numpy())
        done = terminated | truncated
        if done.any():
            observation, _ = envs.reset(options={"reset_mask": done})
        yield observation


def torchrl(count: int) -> Iterator[object]:
    """Collect with TorchRL's Collector as it is."""
    plan = EnvConfig(TASK, count)
    actor = SAC().build(plan.specs(), device=CPU).actor
    yield from Collector(
        plan.build(),
        acting(actor),
        frames_per_batch=count,
        total_frames=-1,
        track_traj_ids=False,
        auto_register_policy_transforms=False,
    )


def spread(values: list[float], digits: int) -> str:
    """Write the median and, in brackets, the range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
