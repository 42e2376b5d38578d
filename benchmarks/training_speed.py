"""Frames per second of whole training loops, side by side: this project, Stable-Baselines3 and SBX.

python benchmarks/training_speed.py --threads 1,2 --rounds 5 --python sb3=PATH --python sbx=PATH

HalfCheetah-v5, one environment, batch 256, two layers of 256, twin Q, learned temperature, one update a frame, float32,
a buffer of a million rows: everybody's defaults, in everybody's own loop; `bfloat16` is the default but for its
precision. The clock sits in the environment's `step`.
A run is a process of its own, held to as many cores as it has threads; systems take turns within a round, and ratios
are taken within a round. PATH is the Python of an environment in which the other system is installed.
"""

import argparse
import json
import os
import resource
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TASK = "HalfCheetah-v5"
RANDOM_FRAMES = 1_000
SYSTEMS = ["captured", "bfloat16", "compiled", "eager", "sb3", "sbx"]


def main() -> None:
    """Run every system in turn and print a table; `--child` is how it calls itself."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--systems", default="captured,compiled,sb3,sbx", help=f"of {','.join(SYSTEMS)}")
    parser.add_argument("--python", metavar="SYSTEM=PATH", action="append", default=[])
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=2_000, help="that are timed")
    parser.add_argument("--warmup", type=int, default=500, help="frames with updates before them")
    parser.add_argument("--child", metavar="SYSTEM", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        os.sched_setaffinity(0, range(int(given.threads)))
        child(given.child, threads=int(given.threads), frames=given.frames, warmup=given.warmup)
        return
    pythons = dict(pair.split("=", 1) for pair in given.python)
    systems = given.systems.split(",")
    results: dict[tuple[str, str], list[dict[str, float]]] = {}
    for number in range(given.rounds):
        for threads in given.threads.split(","):
            for system in systems if number % 2 == 0 else systems[::-1]:
                result = run(system, pythons.get(system, sys.executable), threads, given.frames, given.warmup)
                print(json.dumps({"round": number, "threads": int(threads), "system": system, **result}), flush=True)
                results.setdefault((threads, system), []).append(result)
    for threads in given.threads.split(","):
        print(f"\n| {threads} threads | frames/s | against sb3 | against sbx | start, s | peak, MB |")
        print("|---|---|---|---|---|---|")
        for system in systems:
            mine = results[threads, system]
            cells = [spread([one["frames_per_s"] for one in mine], 0)]
            for other in ("sb3", "sbx"):
                theirs = results.get((threads, other), [])
                pairs = zip(mine, theirs, strict=bool(theirs))
                cells.append(spread([a["frames_per_s"] / b["frames_per_s"] for a, b in pairs], 2))
            cells += [spread([one["start_s"] for one in mine], 1), spread([one["peak_mb"] for one in mine], 0)]
            print(f"| {system} | {' | '.join(cells)} |")


def spread(values: list[float], digits: int) -> str:
    """Write the median and, in brackets, the range."""
    if not values:
        return ""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def run(system: str, python: str, threads: str, frames: int, warmup: int) -> dict[str, float]:
    """Run one system in a process of its own and return what its last line says."""
    environment = {
        **os.environ,
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads),
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT) if python == sys.executable else "",
    }
    command = [
        python,
        __file__,
        "--child",
        system,
        "--threads",
        threads,
        "--frames",
        str(frames),
        "--warmup",
        str(warmup),
    ]
    with TemporaryDirectory() as folder:
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{system} failed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def child(system: str, *, threads: int, frames: int, warmup: int) -> None:
    """Train until the clock stops the process."""
    start_clock(frames, warmup)
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


def start_clock(frames: int, warmup: int) -> None:
    """Have every environment count its steps; the process prints its result and ends after the last one."""
    from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv

    step, seen, begun = HalfCheetahEnv.step, 0, 0.0
    started = 0.0

    def timed(self: Any, action: Any) -> Any:
        nonlocal seen, begun, started
        seen += 1
        if seen == RANDOM_FRAMES + 5:
            started = age()
        if seen == RANDOM_FRAMES + 5 + warmup:
            begun = time.perf_counter()
        if seen == RANDOM_FRAMES + 5 + warmup + frames:
            rate = frames / (time.perf_counter() - begun)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(json.dumps({"frames_per_s": round(rate, 1), "start_s": round(started, 1), "peak_mb": round(peak)}))
            sys.stdout.flush()
            os._exit(0)
        return step(self, action)

    HalfCheetahEnv.step = timed  # type: ignore[method-assign]


def age() -> float:
    """Seconds since this process was made: its imports count."""
    ticks = float(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
