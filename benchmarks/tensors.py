"""Frames per second of tensor environments: one or more checkouts of this project beside a bare loop, in turn.

python benchmarks/tensors.py FOLDER [FOLDER ...] --count 256            collection alone
python benchmarks/tensors.py FOLDER [FOLDER ...] --count 256 --learn    an update with every step

torch/pendulum, the default policy, rows in memory. The bare loop steps the same tensors with two layers of 256 in plain
torch, and neither stores rows nor counts returns; with `--learn` it makes no update. Prints the medians of the time
and of the processor's time of a step of all environments, and medians and quartiles of their ratios in the same round.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from turns import Timed, in_turn, wait_for_turn

CPU = torch.device("cpu")


def bare(count: int) -> Iterator[object]:
    """Act and step; start new episodes where some ended."""
    from sac_torchrl.envs.tensors import Pendulum

    env = Pendulum(count, CPU)
    env.set_seed(0)
    network = nn.Sequential(nn.Linear(3, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 2))
    observation = env.restart(torch.ones(count, dtype=torch.bool))
    with torch.no_grad():
        while True:
            mean, log_std = network(observation).chunk(2, -1)
            action = torch.tanh(mean + log_std.exp() * torch.randn_like(mean))
            _, _, terminated, truncated = env.take(action)
            observation = env.restart(terminated | truncated)
            yield observation


def ours(count: int, learn: bool) -> Iterator[object]:
    """Collect as the recipe does, and update if wanted."""
    import sac_torchrl as sac

    def config(*names: str) -> Any:  # the second name is that of older checkouts
        return next(getattr(sac, name) for name in names if hasattr(sac, name))

    env = config("EnvConfig", "Env")("torch/pendulum", count)
    specs = env.specs()
    storage = next(member for member in sac.Storage if member.name in ("ram", "memory"))
    buffer = config("ReplayConfig", "Replay")(200_000, storage).build(
        Path(), specs, rows=200_000, batch_size=256, seed=0, device=CPU
    )
    agent = sac.SAC().build(specs, device=CPU)
    learner = config("LearnerConfig", "Learning")().build(agent)
    for frames in sac.Direct().build(
        env, agent.actor, buffer, specs=specs, total_frames=10**9, random_frames=0, seed=0
    ):
        if learn:
            learner.update(buffer.sample())
        yield frames


def steps(loop: Iterator[object], number: int) -> None:
    """Step in blocks, one a turn."""
    for _ in range(20):
        next(loop)
    wall, cpu = time.perf_counter(), time.process_time()
    while True:
        for _ in range(number):
            next(loop)
        wall = wait_for_turn(time.perf_counter() - wall, cpu=time.process_time() - cpu)
        cpu = time.process_time()


def main() -> None:
    """Compare, or be one of the loops."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--count", type=int, default=256, help="environments")
    parser.add_argument("--learn", action="store_true")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100, help="of a turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--loop", choices=["bare", "ours"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.loop:
        torch.set_num_threads(options.threads)
        with suppress(ImportError):  # older checkouts have none
            from sac_torchrl.runs.device import keep_freed_memory

            keep_freed_memory()  # as a run does, which also leaves PyTorch half of its threads between updates
            from sac_torchrl.learner.capture import half_the_threads

            held = ExitStack()  # until this process ends
            held.enter_context(half_the_threads())
        loop = bare(options.count) if options.loop == "bare" else ours(options.count, options.learn)
        steps(loop, options.steps)
    script = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:]]
    newest = options.folders[-1]
    names = ["bare", *map(str, options.folders)]
    processes = [
        Timed(
            [*script, "--loop", "bare" if name == "bare" else "ours"],
            folder=newest if name == "bare" else Path(name),
            environment={
                "OMP_NUM_THREADS": str(options.threads),
                "PYTHONPATH": str((newest if name == "bare" else Path(name)).resolve()),
            },
        )
        for name in names
    ]
    rounds = in_turn(processes, options.rounds + 1)
    walls, computing = (
        [[turn[what] / options.steps * 1e3 for turn in turns[1:]] for turns in rounds] for what in ("seconds", "cpu")
    )
    for name, wall, cpu in zip(names, walls, computing, strict=True):
        step = statistics.median(wall)
        rate = options.count / step * 1e3
        print(
            f"{name}: {step:.2f} ms a step, {rate:,.0f} frames/s; of the processor {statistics.median(cpu):.2f}, "
            f"in the fastest round {min(cpu):.2f}"
        )
    for what, times in (("time", walls), ("processor time", computing)):
        for other, name in zip(times[:-1], names, strict=False):
            low, median, high = statistics.quantiles([b / a for a, b in zip(other, times[-1], strict=True)], n=4)
            print(f"{what} of the last to {name}: {median:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
