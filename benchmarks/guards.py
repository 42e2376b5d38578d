"""What the guards cost a training run: the same frames with and without them, in turns, in one process.

python benchmarks/guards.py --env HalfCheetah-v5 --frames 500 --rounds 10

The guards are the checks of what an environment returns and of actions before it sees them, the check of rows before
they are stored, and that of the learner's numbers where a row is logged. Two runs of the continuous recipe with its
defaults go on in turns; one of them has its guards taken out here, the conversions between environment and agent left
in. Times are of the processor, so that other processes matter less; a round gives one ratio.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase

from sac_torchrl import Agent, Continuous, Env, Every, ReplayRatio, Specs
from sac_torchrl.nstep import SPAN
from sac_torchrl.replay import layout
from sac_torchrl.spaces import Edge

WARMUP = 500


class Bare(Edge):
    """The edge of an environment with its conversions and nothing else."""

    def __init__(self, env: Any, id: str) -> None:
        super().__init__(env, id)
        box = env.action_space
        self._low, self._high, self._kind = box.low.astype(np.float64), box.high.astype(np.float64), box.dtype

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        return np.array(self.env.reset(seed=seed)[0], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an action in [-1, 1]."""
        t = (np.asarray(action, np.float64) + 1.0) / 2.0
        taken = np.minimum(np.maximum(self._low * (1.0 - t) + self._high * t, self._low), self._high)
        observation, reward, terminated, truncated, _ = self.env.step(taken.astype(self._kind))
        return np.array(observation, np.float32), float(reward), bool(terminated), bool(truncated), {}


def unchecked(batch: TensorDictBase, specs: Specs) -> TensorDict:
    """Do what replay.rows does with a batch of one step, without the checks."""
    tree: dict[str, Any] = {}
    for *path, name in layout(specs):
        if (name,) != (SPAN,):
            branch = tree
            for step in path:
                branch = branch.setdefault(step, {})
            branch[name] = batch.get((*path, name))
    return TensorDict(tree, batch_size=[batch.numel()])


def training(folder: Path, env: str, *, guarded: bool) -> Iterator[None]:
    """Run the loop of the recipe, without evaluations and checkpoints; a step an iteration."""
    cpu = torch.device("cpu")
    cfg = Continuous(env=Env(env), total_frames=1_000_000, random_frames=WARMUP)
    specs = cfg.specs()
    torch.manual_seed(0)
    agent: Agent = cfg.agent(specs, device=cpu)
    learner: Any = cfg.learner.build(agent)
    if not guarded:
        learner._check = lambda: None
    buffer = cfg.replay.build(folder, specs, rows=100_000, batch_size=cfg.batch_size, seed=0, device=cpu)
    experience = cfg.collector.build(
        cfg.env, agent.actor, buffer, specs=specs, total_frames=10**6, random_frames=cfg.random_frames, seed=0
    )
    replay_ratio = ReplayRatio(cfg.replay_ratio, after=cfg.updates_after, every=cfg.update_every)
    log_now = Every(cfg.log_every)
    for new_frames in experience:
        agent.observe(buffer)
        for _ in range(replay_ratio.due(new_frames)):
            learner.update(buffer.sample())
        if log_now(experience.frames):
            _ = experience.metrics() | learner.metrics()
        yield


def without(taken: bool) -> AbstractContextManager[Any]:
    """Take the check of rows out, or leave it."""
    return patch("sac_torchrl.collectors.direct.rows", unchecked) if taken else nullcontext()


def main() -> None:
    """Print the share of each round and their median."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--frames", type=int, default=500, help="of each run in a round")
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    with TemporaryDirectory() as folder:
        runs = {True: training(Path(folder) / "guarded", given.env, guarded=True)}
        with patch("sac_torchrl.envs.Edge", Bare):
            runs[False] = training(Path(folder) / "bare", given.env, guarded=False)
            take(runs[False], guarded=False, frames=WARMUP + 100)
        take(runs[True], guarded=True, frames=WARMUP + 100)
        shares = []
        for number in range(given.rounds):
            seconds = {
                guarded: take(runs[guarded], guarded=guarded, frames=given.frames)
                for guarded in ((True, False) if number % 2 else (False, True))
            }
            shares.append(100 * (seconds[True] / seconds[False] - 1))
            each = 1e6 * seconds[True] / given.frames
            print(f"{each:.0f} microseconds a frame with guards, {shares[-1]:+.2f} %", flush=True)
    deviation = statistics.stdev(shares) / len(shares) ** 0.5
    print(
        f"{given.env}: {statistics.median(shares):.2f} % (median), {statistics.fmean(shares):.2f} +- {deviation:.2f} %"
    )


def take(run: Iterator[None], *, guarded: bool, frames: int) -> float:
    """Have a run take so many frames; returns the processor's seconds."""
    begun = time.process_time()
    with without(not guarded):
        for _ in range(frames):
            next(run)
    return time.process_time() - begun


if __name__ == "__main__":
    main()
