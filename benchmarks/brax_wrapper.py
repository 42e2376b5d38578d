"""Frames per second of TorchRL's BraxWrapper as it comes, without its cache clearing, and of `brax/TASK` here.

python benchmarks/brax_wrapper.py [TASK] [COUNT]

With playground/TASK, of that alone.
"""

import sys
import time
import warnings

import torch

from sac_torchrl import EnvConfig

TASK, COUNT = [*sys.argv[1:], *("inverted_pendulum", "64")[len(sys.argv) - 1 :]]
STEPS = 20


def main() -> None:
    """Step each as often as the others, after as many that compile."""
    warnings.simplefilter("ignore")
    from torchrl.envs import BraxEnv

    count = int(COUNT)
    id = TASK if TASK.startswith("playground/") else f"brax/{TASK}"
    ours = {id: lambda: EnvConfig(id, count).build()}
    others = {
        "BraxEnv(cache_clear_frequency=False)": lambda: BraxEnv(
            TASK, batch_size=[count], device="cpu", cache_clear_frequency=False
        ),
        "BraxEnv": lambda: BraxEnv(TASK, batch_size=[count], device="cpu"),
    }
    for name, make in (ours if id == TASK else ours | others).items():
        env = make()
        env.set_seed(0)
        with torch.no_grad():
            env.rollout(STEPS, auto_reset=True, break_when_any_done=False)
            began = time.perf_counter()
            env.rollout(STEPS, auto_reset=True, break_when_any_done=False)
            seconds = time.perf_counter() - began
        print(f"{name:40} {STEPS * count / seconds:10.0f} frames/s", flush=True)


if __name__ == "__main__":
    main()
