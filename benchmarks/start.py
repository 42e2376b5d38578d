"""Processor time from a command to its first updates, beside Stable-Baselines3: `python benchmarks/start.py`.

python benchmarks/start.py --sb3 PATH [--tree OLDER]

HalfCheetah-v5, everybody's defaults, 1,000 random frames and the updates of the next ones, of which the second is
recorded. PATH is the Python of an environment with Stable-Baselines3 on the same build of torch, OLDER the folder of
another version of this project. Each is a process of its own, all take turns, and ratios are taken within a round.
"""

import argparse
import os
import runpy
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TASK = "HalfCheetah-v5"
RANDOM_FRAMES = 1_000


def main() -> None:
    """Print a line for each; `--child` is how it calls itself."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sb3", metavar="PATH", required=True)
    parser.add_argument("--tree", metavar="OLDER", action="append", default=[])
    parser.add_argument("--rounds", type=int, default=7)
    commands = {"this version": (sys.executable, str(ROOT))}
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2])
        return
    given = parser.parse_args()
    commands |= {tree: (sys.executable, tree) for tree in given.tree} | {"Stable-Baselines3": (given.sb3, "")}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(given.rounds + 1):
        for name, (python, tree) in commands.items():
            took = start(python, tree)
            if number:  # the first round writes bytecode and fills the page cache
                seconds[name].append(took)
    print("| | s | of Stable-Baselines3's |\n|---|---|---|")
    for name, own in seconds.items():
        ratios = [a / b for a, b in zip(own, seconds["Stable-Baselines3"], strict=True)]
        print(f"| {name} | {spread(own)} | {spread(ratios)} |")


def start(python: str, tree: str) -> float:
    """Run one process until its first updates and return its processor time in seconds."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with TemporaryDirectory() as folder:
        done = subprocess.run(
            [python, __file__, "--child", tree],
            cwd=folder,
            env=environment | {"PYTHONPATH": tree},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
    return float(done.stdout.splitlines()[-1])


def child(tree: str) -> None:
    """Train with the recipe of `tree`, or with Stable-Baselines3 where it is empty."""
    stop_after_first_updates()
    import torch

    torch.set_num_threads(1)
    if tree:
        recipe = f"{tree}/recipes/continuous.py"
        settings = f"env.id={TASK} total_frames=1000000 random_frames={RANDOM_FRAMES} seed=1 device=cpu"
        sys.argv = [recipe, *settings.split(), "evaluate.every=1000000", "checkpoint.every=1000000"]
        runpy.run_path(recipe, run_name="__main__")
        return
    import gymnasium
    from stable_baselines3 import SAC

    SAC("MlpPolicy", gymnasium.make(TASK), learning_starts=RANDOM_FRAMES, seed=1, device="cpu").learn(10**9)


def stop_after_first_updates() -> None:
    """Have the environment count its steps, print the processor time after some, and end the process."""
    from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv

    step, seen = HalfCheetahEnv.step, 0

    def counted(self: Any, action: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == RANDOM_FRAMES + 5:
            print(f"\n{time.process_time()}", flush=True)
            os._exit(0)
        return step(self, action)

    HalfCheetahEnv.step = counted  # type: ignore[method-assign]


def spread(values: list[float]) -> str:
    """Write the median and, in brackets, the range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
