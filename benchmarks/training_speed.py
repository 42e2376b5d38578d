"""Frames per second of whole training loops, side by side: this project, Stable-Baselines3 and SBX.

python benchmarks/training_speed.py --python sb3=PATH --python sbx=PATH

HalfCheetah-v5, one environment, batch 256, two layers of 256, twin Q, learned temperature, one update a frame, float32,
a buffer of a million rows: everybody's defaults, in everybody's own loop; `bfloat16` is the default but for its
precision. The clock sits in the environment's `step`.
A run is a process of its own, held to as many cores as it has threads. The processes of a round start one after the
other, then take turns of a block of frames, whose end the others wait for; ratios are those of neighboring blocks.
PATH is the Python of an environment in which the other system is installed.
"""

import argparse
import os
import resource
import runpy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from turns import Timed, in_turn, wait_for_turn

ROOT = Path(__file__).resolve().parent.parent
TASK = "HalfCheetah-v5"
RANDOM_FRAMES = 1_000
SYSTEMS = ["captured", "bfloat16", "compiled", "eager", "sb3", "sbx"]


def main() -> None:
    """Run every system in turn and print a table; `--child` is how it calls itself."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--systems", default="captured,bfloat16,sb3,sbx", help=f"of {','.join(SYSTEMS)}")
    parser.add_argument("--python", metavar="SYSTEM=PATH", action="append", default=[])
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=3, help="in each every system has a new process")
    parser.add_argument("--turns", type=int, default=30, help="of each process")
    parser.add_argument("--block", type=int, default=50, help="frames of one turn")
    parser.add_argument("--warmup", type=int, default=300, help="frames with updates before the first turn")
    parser.add_argument("--child", metavar="SYSTEM", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        os.sched_setaffinity(0, range(int(given.threads)))
        child(given.child, threads=int(given.threads), block=given.block, warmup=given.warmup)
        return
    pythons = dict(pair.split("=", 1) for pair in given.python)
    systems = given.systems.split(",")
    for threads in given.threads.split(","):
        told: dict[str, list[dict[str, float]]] = {system: [] for system in systems}
        lasts: dict[str, list[dict[str, float]]] = {system: [] for system in systems}
        for _ in range(given.rounds):
            with TemporaryDirectory() as folder:
                processes = [
                    start(system, pythons.get(system, sys.executable), threads, given.block, given.warmup, folder)
                    for system in systems
                ]
                for system, blocks in zip(systems, in_turn(processes, given.turns), strict=True):
                    told[system] += blocks
                    lasts[system].append(blocks[-1])
        print(f"\n| {threads} threads | frames/s | against sb3 | against sbx | start, s | peak, MB |")
        print("|---|---|---|---|---|---|")
        for system in systems:
            cells = [spread([given.block / block["seconds"] for block in told[system]], 0)]
            for other in ("sb3", "sbx"):
                pairs = zip(told.get(other, []), told[system], strict=False)
                cells.append(spread([theirs["seconds"] / mine["seconds"] for theirs, mine in pairs], 2))
            cells += [spread([last[fact] for last in lasts[system]], d) for fact, d in (("start_s", 1), ("peak_mb", 0))]
            print(f"| {system} | {' | '.join(cells)} |", flush=True)


def spread(values: list[float], digits: int) -> str:
    """Write the median and, in brackets, the range, or with many the quartiles."""
    if not values:
        return ""
    few = len(values) < 10
    low, high = (min(values), max(values)) if few else statistics.quantiles(values, n=4)[::2]
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def start(system: str, python: str, threads: str, block: int, warmup: int, folder: str) -> Timed:
    """Start one system in a process of its own, and return it at its first turn."""
    environment = {
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads),
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT) if python == sys.executable else "",
    }
    numbers = f"--threads {threads} --block {block} --warmup {warmup}".split()
    return Timed([python, __file__, "--child", system, *numbers], folder=Path(folder), environment=environment)


def child(system: str, *, threads: int, block: int, warmup: int) -> None:
    """Train until there is no other turn."""
    start_clock(block, warmup)
    loops: dict[str, Callable[[int], None]] = {"sb3": stable_baselines3, "sbx": sbx}
    loops.get(system, lambda threads: sac_torchrl(system, threads))(threads)


def sac_torchrl(system: str, threads: int) -> None:
    """Run the recipe as it is."""
    import torch

    torch.set_num_threads(threads)
    recipe = ROOT / "recipes" / "continuous.py"
    how = "learner.precision=bfloat16" if system == "bfloat16" else f"learner.execution={system}"
    settings = f"env.id={TASK} total_frames=1000000 random_frames={RANDOM_FRAMES} {how} seed=1"
    later = "evaluate.every=1000000 checkpoint.every=1000000"
    sys.argv = [str(recipe), *settings.split(), *later.split()]
    runpy.run_path(str(recipe), run_name="__main__")


def stable_baselines3(threads: int) -> None:
    """Its defaults; torch's build is that of the environment it is installed in."""
    import gymnasium
    import torch
    from stable_baselines3 import SAC

    torch.set_num_threads(threads)
    SAC("MlpPolicy", gymnasium.make(TASK), learning_starts=RANDOM_FRAMES, seed=1, device="cpu").learn(10**9)


def sbx(threads: int) -> None:
    """Its defaults, one actor update a critic update; JAX obeys the process's cores, not a number of threads."""
    import gymnasium
    import torch
    from sbx import SAC

    torch.set_num_threads(threads)
    SAC("MlpPolicy", gymnasium.make(TASK), learning_starts=RANDOM_FRAMES, policy_delay=1, seed=1).learn(10**9)


def start_clock(block: int, warmup: int) -> None:
    """Have every environment count its steps and wait for its turn after every block."""
    from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv

    step, seen, begun, started = HalfCheetahEnv.step, 0, 0.0, 0.0

    def timed(self: Any, action: Any) -> Any:
        nonlocal seen, begun, started
        seen += 1
        learning = seen - RANDOM_FRAMES - 5
        if learning == 0:
            started = age()
        if learning >= warmup and (learning - warmup) % block == 0:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            begun = wait_for_turn(time.perf_counter() - begun, start_s=started, peak_mb=peak)
        return step(self, action)

    HalfCheetahEnv.step = timed  # type: ignore[method-assign]


def age() -> float:
    """Seconds since this process was made: its imports count."""
    ticks = float(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
