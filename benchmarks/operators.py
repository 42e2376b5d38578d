"""Operators that a run launches on a GPU, and what waits for it, counted on the pretend device of the tests.

python benchmarks/operators.py
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from pretend_device import counting, pretending

import sac_torchrl as sac
from sac_torchrl.agents.normalization import with_normalization
from sac_torchrl.learner.capture import Execution
from sac_torchrl.learner.learner import Order
from sac_torchrl.replay.buffer import Storage

COUNT = 64


def count(name: str, times: int, what: Callable[[], Any]) -> None:
    """Print what one of `times` calls launches and waits for."""
    with counting() as counts:
        for _ in range(times):
            what()
    operators, waits = sum(counts.operators.values()) / times, sum(counts.waits.values()) / times
    print(f"| {name} | {operators:.1f} | {waits:.1f} |", flush=True)
    for line, number in counts.waits.most_common():
        print(f"    {number / times:.2f} x {line}", file=sys.stderr)


def measure(name: str, variant: Any, device: torch.device, **learner_options: Any) -> None:
    """All parts of a run of torch/pendulum, with its observations normalized where the variant does so."""
    torch.manual_seed(0)
    env = sac.EnvConfig("torch/pendulum", COUNT)
    specs = env.specs()
    agent = variant.build(specs, device=device)
    if variant.training.get("normalize"):
        agent = with_normalization(agent, specs, device=device)
    learner = sac.LearnerConfig(execution=Execution.captured, **learner_options).build(agent)
    with tempfile.TemporaryDirectory() as folder:
        buffer = sac.ReplayConfig(10_000, Storage.device).build(
            Path(folder), specs, rows=10**6, batch_size=256, seed=0, device=device
        )
    experience = sac.Direct().build(
        env, agent.actor, buffer, specs=specs, total_frames=10**9, random_frames=2 * COUNT, seed=0
    )
    steps = iter(experience)
    next(steps)
    count(f"{name}: a random step", 1, lambda: next(steps))
    for _ in range(6):
        next(steps)
        agent.observe(buffer)
    count(f"{name}: a collected step of all environments", 4, lambda: next(steps))
    count(f"{name}: what the normalizer takes in", 1, lambda: agent.observe(buffer))
    count(f"{name}: a batch", 4, buffer.sample)
    for _ in range(20):
        learner.update(buffer.sample())
    batch = buffer.sample()
    count(f"{name}: an update", 4, lambda: learner.update(batch))
    eager = sac.LearnerConfig(execution=Execution.eager, **learner_options).build(agent)
    eager.update(batch)
    count(f"{name}: an update, eager", 4, lambda: eager.update(batch))
    count(f"{name}: a log line", 1, lambda: (learner.metrics(), experience.metrics()))
    test_env = env.build(count=4, device=device, seed=1)
    count(f"{name}: an evaluation of 200 steps", 1, lambda: sac.evaluate(agent.actor, test_env, episodes=4, seed=1))


if __name__ == "__main__":
    print("| | operators | waits |\n|---|---|---|")
    with pretending() as device:
        measure("sac", sac.SAC(), device)
        fast = {"betas": (0.9, 0.95), "weight_decay": 1e-3, "actor_every": 4, "order": Order.critics_first}
        measure("fastsac", sac.FastSAC(), device, **fast)
