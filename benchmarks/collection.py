"""Frames per second of collection, beside a bare loop: `python benchmarks/collection.py [--counts 1,16,64]`.

Environments in this process, one thread, processor time. The bare loop steps the same Gymnasium vector environment and
calls the same two layers of 256 in plain torch; it resets what ended and stores nothing. Ours draws the action from
the policy, keeps true final observations, counts returns and writes rows to the replay buffer. TorchRL's Collector,
with the same policy and without a buffer, is the third. They take turns; ratios are taken within a round. Of few rounds
the range is printed, of ten and more the quartiles.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import torch
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import Categorical
from torchrl.modules import ProbabilisticActor

from sac_torchrl import SAC, Direct, DiscreteSAC, EnvConfig, ReplayConfig, Specs, Storage
from sac_torchrl.agents.policies import acting

CPU = torch.device("cpu")


def main() -> None:
    """Print a line for each number of environments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--task", default="HalfCheetah-v5")
    parser.add_argument("--counts", default="1,16,64")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=300, help="of every environment, a round")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    print("| environments | ours, frames/s | ms a step | of the bare loop | of TorchRL's Collector |")
    print("|---|---|---|---|---|")
    for count in map(int, given.counts.split(",")):
        loops = {name: loop(given.task, count) for name, loop in (("ours", ours), ("bare", bare), ("torchrl", torchrl))}
        rates: dict[str, list[float]] = {name: [] for name in loops}
        for number in range(given.rounds + 1):
            for name, loop in loops.items():
                start = time.process_time()
                for _ in range(given.steps):
                    next(loop)
                if number:  # the first round warms up
                    rates[name].append(count * given.steps / (time.process_time() - start))
        per_step = [count / rate * 1e3 for rate in rates["ours"]]
        against = {other: [a / b for a, b in zip(rates["ours"], rates[other], strict=True)] for other in loops}
        cells = [
            spread(rates["ours"], 0),
            spread(per_step, 2),
            spread(against["bare"], 2),
            spread(against["torchrl"], 2),
        ]
        print(f"| {count} | {' | '.join(cells)} |", flush=True)


def ours(task: str, count: int) -> Iterator[object]:
    """Collect as the recipe does."""
    plan = EnvConfig(task, count)
    specs = plan.specs()
    buffer = ReplayConfig(100_000, Storage.ram).build(Path(), specs, rows=100_000, batch_size=256, seed=0, device=CPU)
    yield from Direct().build(plan, policy(specs), buffer, specs=specs, total_frames=10**9, random_frames=0, seed=0)


def bare(task: str, count: int) -> Iterator[object]:
    """Step the vector environment with a network of the same size."""
    envs = SyncVectorEnv([lambda: gymnasium.make(task)] * count, autoreset_mode=AutoresetMode.DISABLED)
    (inputs,), action = envs.single_observation_space.shape or (), envs.single_action_space
    outputs = int(action.n) if isinstance(action, Discrete) else 2 * (action.shape or (0,))[0]
    network = nn.Sequential(nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, outputs))
    observation, _ = envs.reset(seed=0)
    while True:
        with torch.no_grad():
            output = network(torch.from_numpy(observation).float())
            if isinstance(action, Discrete):
                chosen = output.softmax(-1).multinomial(1).squeeze(-1)
            else:
                mean, log_std = output.chunk(2, -1)
                chosen = torch.tanh(mean + log_std.exp() * torch.randn_like(mean))
        observation, _, terminated, truncated, _ = envs.step(chosen.numpy())
        done = terminated | truncated
        if done.any():
            observation, _ = envs.reset(options={"reset_mask": done})
        yield observation


def torchrl(task: str, count: int) -> Iterator[object]:
    """Collect with TorchRL's Collector as it is."""
    plan = EnvConfig(task, count)
    yield from Collector(
        plan.build(),
        acting(policy(plan.specs())),
        frames_per_batch=count,
        total_frames=-1,
        track_traj_ids=False,
        auto_register_policy_transforms=False,
    )


def policy(specs: Specs) -> ProbabilisticActor:
    """The actor of the variant that the recipe for these actions has."""
    variant = DiscreteSAC() if isinstance(specs.action, Categorical) else SAC()
    return variant.build(specs, device=CPU).actor


def spread(values: list[float], digits: int) -> str:
    """Write the median and, in brackets, the range or the quartiles."""
    low, high = (min(values), max(values)) if len(values) < 10 else statistics.quantiles(values, n=4)[::2]
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


if __name__ == "__main__":
    main()
