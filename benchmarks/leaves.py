"""Frames per second with a Dict of three vectors against one Box: `python benchmarks/leaves.py [--counts 1,16]`.

HalfCheetah-v5, whose 17 numbers one of the two environments returns as vectors of 8, 8 and 1, environments in this
process, one thread; collection alone, and with an update of SAC a frame, batch 256. The two take turns; ratios are
taken within a round.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium.spaces import Box, Dict

from sac_torchrl import SAC, Direct, EnvConfig, LearnerConfig, ReplayConfig, Storage

CPU = torch.device("cpu")
PARTS = {"place": slice(0, 8), "speed": slice(8, 16), "last": slice(16, 17)}


class Split(gym.ObservationWrapper[Any, Any, Any]):
    """The observation as a Dict of three vectors."""

    def __init__(self) -> None:
        super().__init__(gym.make("HalfCheetah-v5"))
        box: Any = self.env.observation_space
        self.observation_space = Dict(
            {name: Box(box.low[part], box.high[part], dtype=box.dtype.type) for name, part in PARTS.items()}
        )

    def observation(self, observation: Any) -> Any:
        """Split it."""
        return {name: observation[part] for name, part in PARTS.items()}


def main() -> None:
    """Print a line for each number of environments, without and with updates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--counts", default="1,16")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--frames", type=int, default=800, help="a round of collection; a tenth with updates")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    print("| environments | updates | one Box, frames/s | Dict of three, of it |")
    print("|---|---|---|---|")
    for count in map(int, given.counts.split(",")):
        for learns in (False, True):
            loops = [loop(EnvConfig("HalfCheetah-v5", count), learns), loop(EnvConfig(count=count, make=Split), learns)]
            frames = given.frames // (10 if learns else 1)
            rates: list[list[float]] = [[], []]
            for number in range(given.rounds + 1):
                for which in (0, 1) if number % 2 else (1, 0):
                    start = time.perf_counter()
                    for _ in range(frames // count):
                        next(loops[which])
                    if number:  # the first round warms up
                        rates[which].append(frames // count * count / (time.perf_counter() - start))
            ratios = [split / whole for whole, split in zip(*rates, strict=True)]
            cells = [f"{statistics.median(rates[0]):.0f}", f"{statistics.median(ratios):.2f}"]
            spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"| {count} | {'one a frame' if learns else 'none'} | {' | '.join(cells)} {spread} |", flush=True)


def loop(plan: EnvConfig, learns: bool) -> Iterator[int]:
    """Collect as the recipe does, and learn."""
    specs = plan.specs()
    buffer = ReplayConfig(100_000, Storage.ram).build(Path(), specs, rows=100_000, batch_size=256, seed=0, device=CPU)
    agent = SAC().build(specs, device=CPU)
    learner = LearnerConfig().build(agent)
    for new in Direct().build(plan, agent.actor, buffer, specs=specs, total_frames=10**9, random_frames=0, seed=0):
        for _ in range(new if learns else 0):
            learner.update(buffer.sample())
        yield new


if __name__ == "__main__":
    main()
