"""What each kind of collection gains, as ratios of speeds in one run.

python benchmarks/collectors.py [--rounds 5] [processes] [waiting] [halfcheetah] [direct]

`processes`: on a simulator that waits 5 ms a step, against workers times one environment stepped alone. `waiting` (the
same simulator, as many updates as take the learner the collector's time) and `halfcheetah` (HalfCheetah-v5, an update
every four frames): the pipelined and the free-running collection with a learner against the slower of the two alone,
with lock-step beside them. `direct`: 16 and 64 environments against a bare loop over Gymnasium's vector environment
with the same policy in plain PyTorch. In brackets the range over the rounds.
"""

import argparse
import logging
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn

from sac_torchrl import (
    SAC,
    Async,
    Direct,
    EnvConfig,
    Experience,
    LearnerConfig,
    Processes,
    ReplayConfig,
    ReplayRatio,
    Storage,
)
from sac_torchrl.collectors.config import CollectorConfig

MODULE = Path(__file__).stem
CPU = torch.device("cpu")


class Waiting(gym.Env[Any, Any]):
    """Waits 5 ms a step and computes nothing."""

    observation_space = gym.spaces.Box(-1, 1, (17,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (6,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start."""
        super().reset(seed=seed)
        return np.zeros(17, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Wait."""
        time.sleep(0.005)
        return np.zeros(17, np.float32), 0.0, False, False, {}


if "Waiting-v0" not in gym.registry:  # Workers import this as a module and as their main program.
    gym.register("Waiting-v0", Waiting)


def build(kind: CollectorConfig, env: EnvConfig, *, frames: int) -> tuple[Experience, Any, Any]:
    """Build an experience, a learner and their buffer."""
    torch.manual_seed(0)
    specs = env.specs()
    agent = SAC().build(specs, device=CPU)
    buffer = ReplayConfig(storage=Storage.ram).build(Path(), specs, rows=frames, batch_size=256, seed=0, device=CPU)
    experience = kind.build(env, agent.actor, buffer, specs=specs, total_frames=frames, random_frames=0, seed=0)
    return experience, LearnerConfig().build(agent), buffer


def speed(kind: CollectorConfig, env: EnvConfig, *, steps: int, ratio: float = 0.0) -> float:
    """Frames per second after twenty steps, with `ratio` updates a frame."""
    frames = (steps + 20) * env.count
    experience, learner, buffer = build(kind, env, frames=frames)
    replay_ratio = ReplayRatio(ratio or 1.0, after=0)
    began = start = 0.0
    for new_frames in experience:
        due = replay_ratio.due(new_frames) if ratio else 0
        for _ in range(due):
            learner.update(buffer.sample())
        if not began and experience.frames >= 20 * env.count:
            began, start = time.perf_counter(), experience.frames
    return (experience.frames - start) / (time.perf_counter() - began)


def updates_alone(env: EnvConfig, *, updates: int) -> float:
    """Updates per second of the learner."""
    experience, learner, buffer = build(Direct(), env, frames=64)
    for _ in experience:
        pass
    for _ in range(3):  # The second is recorded, which takes a second.
        learner.update(buffer.sample())
    began = time.perf_counter()
    for _ in range(updates):
        learner.update(buffer.sample())
    return updates / (time.perf_counter() - began)


def bare(count: int, *, steps: int) -> float:
    """Frames per second of a loop over the vector environment, with a policy of the same size in plain PyTorch."""
    envs = SyncVectorEnv([lambda: gym.make("Pendulum-v1")] * count, autoreset_mode=AutoresetMode.SAME_STEP)
    policy = nn.Sequential(nn.Linear(3, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 2))
    observation, _ = envs.reset(seed=0)
    with torch.no_grad():
        began = time.perf_counter()
        for _ in range(steps):
            mean, log_std = policy(torch.from_numpy(observation)).chunk(2, -1)
            action = torch.tanh(mean + torch.randn_like(mean) * log_std.clamp(-20, 2).exp())
            observation, *_ = envs.step(2 * action.numpy())
    return count * steps / (time.perf_counter() - began)


def median(measure: Callable[[], dict[str, float]], *, rounds: int) -> None:
    """Print the median of ratios that were measured one after the other, so that a busy moment hits both."""
    found = [measure() for _ in range(rounds)]
    for name in found[0]:
        ratios = sorted(one[name] for one in found)
        print(f"{name:62} {statistics.median(ratios):8.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})", flush=True)


def processes() -> dict[str, float]:
    """Four workers with one, two and four environments each."""
    alone = gym.make("Waiting-v0", disable_env_checker=True)
    alone.reset()
    began = time.perf_counter()
    for _ in range(200):
        alone.step(None)
    single = 200 / (time.perf_counter() - began)
    return {
        f"processes, 4 workers, {count} environments / (4 x one alone)": speed(
            Processes(workers=4), EnvConfig("Waiting-v0", count, plugins=[MODULE]), steps=100
        )
        / (4 * single)
        for count in (4, 8, 16)
    }


def direct() -> dict[str, float]:
    """Environments in this process."""
    return {
        f"direct, {count} environments / bare loop": speed(Direct(), EnvConfig("Pendulum-v1", count), steps=150)
        / bare(count, steps=150)
        for count in (16, 64)
    }


def waiting() -> dict[str, float]:
    """As many updates a frame as take the learner the time of the collector."""
    env = EnvConfig("Waiting-v0", 4, plugins=[MODULE])
    learner, collector = updates_alone(env, updates=40), speed(Processes(workers=4), env, steps=100)
    ratio = round(learner / collector, 3)
    slower = min(collector, learner / ratio)
    return overlap(env, workers=4, steps=100, ratio=ratio, slower=slower, lock_step=Processes(workers=4))


def halfcheetah() -> dict[str, float]:
    """A learner that is slower than its collector."""
    env = EnvConfig("HalfCheetah-v5")
    learner, collector = updates_alone(env, updates=40), speed(Direct(), env, steps=300)
    slower = min(collector, learner / 0.25)
    return overlap(env, workers=1, steps=600, ratio=0.25, slower=slower, lock_step=Direct())


def overlap(
    env: EnvConfig, *, workers: int, steps: int, ratio: float, slower: float, lock_step: CollectorConfig
) -> dict[str, float]:
    """Frames per second with learning in parts of `slower`."""
    kinds: dict[str, CollectorConfig] = {
        "lock-step": lock_step,
        "pipelined": Processes(workers=workers, pipelined=True),
        "async": Async(workers=workers),
    }
    return {
        f"{env.id}, {name}, training / the slower one alone": speed(kind, env, steps=steps, ratio=ratio) / slower
        for name, kind in kinds.items()
    }


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    measures = {one.__name__: one for one in (processes, waiting, halfcheetah, direct)}
    parser.add_argument("measure", nargs="*", help="which (all)")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).parent))
    for name in arguments.measure or measures:
        median(measures[name], rounds=arguments.rounds)


if __name__ == "__main__":
    main()
