"""What the guards cost a training run: frames with and without them in turns, in one process.

python benchmarks/guards.py --env HalfCheetah-v5 --frames 3000

The guards are the checks of what an environment returns and of actions before it sees them, the check of rows before
they are stored, and that of the learner's numbers where a row is logged. Two runs of the continuous recipe with its
defaults take turns, a frame each; one of them has its guards taken out here, the conversions between environment and
agent left in. Medians over frames are compared, and the learner's check is spread over the frames between two rows.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

from sac_torchrl import EnvConfig, Learner, ReplayRatio, TrainConfig
from sac_torchrl.envs.adapter import SpaceAdapter
from sac_torchrl.replay.packing import Packing

WARMUP = 300


class Bare(SpaceAdapter):
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


def unchecked(packing: Packing, rows: TensorDictBase) -> Tensor:
    """Do what Packing.pack does, without the checks."""
    count, branches = len(rows), {(): rows}
    packed = torch.empty(count, packing.width, dtype=torch.uint8)
    for dtype, place, group in packing._groups:
        columns = []
        for (*path, name), shape in group:
            parent = tuple(path)
            if parent not in branches:
                branches[parent] = rows.get(parent)
            column = branches[parent].get(name)
            columns.append(column if len(shape) == 1 else column.reshape(count, -1))
        torch.cat(columns, dim=1, out=packed[:, place].view(dtype))
    return packed


def training(folder: Path, env: str, *, guarded: bool) -> Iterator[Learner]:
    """Run the loop of the recipe, without evaluations, checkpoints and log; a frame an iteration."""
    cpu = torch.device("cpu")
    cfg = TrainConfig(env=EnvConfig(env), total_frames=1_000_000, random_frames=WARMUP)
    specs = cfg.specs()
    torch.manual_seed(0)
    agent = cfg.agent(specs, device=cpu)
    learner = cfg.learner.build(agent)
    buffer = cfg.replay.build(folder, specs, rows=100_000, batch_size=cfg.batch_size, seed=0, device=cpu)
    if not guarded:
        packing = buffer.storage.packing
        packing.pack = partial(unchecked, packing)
    experience = cfg.collector.build(
        cfg.env, agent.actor, buffer, specs=specs, total_frames=10**6, random_frames=cfg.random_frames, seed=0
    )
    replay_ratio = ReplayRatio(cfg.replay_ratio, after=cfg.updates_after, every=cfg.update_every)
    for new_frames in experience:
        agent.observe(buffer)
        for _ in range(replay_ratio.due(new_frames)):
            learner.update(buffer.sample())
        yield learner


def main() -> None:
    """Print the share that the guards have in a frame, for ten parts of the frames and for all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--frames", type=int, default=3_000, help="of each run")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    with TemporaryDirectory() as folder:
        runs = {whole: training(Path(folder) / str(whole), given.env, guarded=whole) for whole in (True, False)}
        with patch("sac_torchrl.envs.config.SpaceAdapter", Bare):
            next(runs[False])
        times: dict[bool, list[float]] = {True: [], False: []}
        for number in range(WARMUP + 100 + given.frames):
            # Who goes first changes, so that what one leaves in the processor's caches helps both alike.
            for whole in (number % 2 == 0, number % 2 == 1):
                begun = time.perf_counter()
                learner = next(runs[whole])
                times[whole].append(time.perf_counter() - begun)
        checks = [timed(learner.metrics) - timed(partial(dict, learner._newest)) for _ in range(200)]
    each = statistics.median(checks) / TrainConfig().log_every
    print(f"the check of the learner takes {1e6 * statistics.median(checks):.0f} microseconds a logged row")
    taken = {whole: every[WARMUP + 100 :] for whole, every in times.items()}
    part = given.frames // 10
    shares = [share(*(taken[whole][start : start + part] for whole in (True, False)), each)
              for start in range(0, 10 * part, part)]  # fmt: skip
    print("parts:", ", ".join(f"{one:+.2f} %" for one in sorted(shares)))
    median = statistics.median(taken[True])
    print(f"{given.env}: {share(taken[True], taken[False], each):.2f} % of {1e6 * median:.0f} microseconds a frame")


def share(whole: list[float], bare: list[float], each: float) -> float:
    """How much longer a frame takes with the guards, in per cent."""
    return 100 * ((statistics.median(whole) + each) / statistics.median(bare) - 1)


def timed(call: Callable[[], object]) -> float:
    """The seconds that a call takes."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
