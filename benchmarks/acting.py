"""Time one action of a deployed policy: `sac.Policy`, its TensorDict actor, ONNX Runtime and Stable-Baselines3.

python benchmarks/acting.py            HalfCheetah-v5, two layers of 256, one thread, fresh weights

ONNX Runtime acts by the exported file where the extra `export` is installed, Stable-Baselines3 by `predict`, with
networks of the same size, where it is. All take turns in a process, on one thread. Prints the median microseconds of a
call, and median and quartiles of its ratio to Policy's.
"""

import importlib
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

import sac_torchrl as sac
from sac_torchrl.deploy.export import export_policy
from sac_torchrl.deploy.recorded import environment_of, record_observations
from sac_torchrl.deploy.saved import SavedPolicy

ROUNDS, CALLS = 30, 100


def policy_in(folder: Path) -> sac.Policy:
    """A policy of HalfCheetah-v5 with fresh weights."""
    config = sac.TrainConfig(env=sac.EnvConfig("HalfCheetah-v5"), device="cpu")
    specs = config.specs()
    actor = config.agent(specs, device=torch.device("cpu")).actor
    return sac.Policy.load(SavedPolicy.of(actor, config, specs, frames=0).write(folder).parent)


def onnx_way(policy: sac.Policy, batch: Any, folder: Path) -> Callable[[], object]:
    """The policy as an ONNX file, as a program with NumPy and ONNX Runtime calls it."""
    runtime: Any = importlib.import_module("onnxruntime")
    path = folder / "policy.onnx"
    if not path.exists():
        export_policy(policy, path, record_observations(policy, environment_of(policy.saved), 300, seed=0))
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(path), options)
    return lambda: session.run(None, {"observation": batch})


def ways(policy: sac.Policy, observation: Any, folder: Path) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""

    def actor() -> object:
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            seen = torch.as_tensor(observation, dtype=torch.float32)
            return policy.actor(TensorDict(observation=seen, batch_size=seen.shape[:-1]))["action"]

    timed: dict[str, Callable[[], object]] = {"Policy": lambda: policy(observation), "TensorDict actor": actor}
    if importlib.util.find_spec("onnxscript") is not None:
        timed["ONNX Runtime"] = onnx_way(policy, np.atleast_2d(observation), folder)
    if importlib.util.find_spec("stable_baselines3") is not None:
        other: Any = importlib.import_module("stable_baselines3")
        model = other.SAC("MlpPolicy", "HalfCheetah-v5", device="cpu")
        timed["Stable-Baselines3"] = lambda: model.predict(observation, deterministic=True)
    return timed


def observations(count: int) -> Any:
    """Random ones `(count, 17)`, in the environment's own float64."""
    return np.random.default_rng(0).normal(size=(count, 17))


def main() -> None:
    """Print a table for one observation and one for 256."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        policy = policy_in(Path(name))
        for count in (1, 256):
            batch = observations(count)
            timed = ways(policy, batch[0] if count == 1 else batch, Path(name))
            seconds: dict[str, list[float]] = {way: [] for way in timed}
            for _ in range(ROUNDS):
                for way, call in timed.items():
                    start = time.thread_time()
                    for _ in range(CALLS):
                        call()
                    seconds[way].append((time.thread_time() - start) / CALLS)
            for way, times in seconds.items():
                ratios = [own / base for own, base in zip(times, seconds["Policy"], strict=True)]
                low, middle, high = statistics.quantiles(ratios, n=4)
                taken = statistics.median(times) * 1e6
                print(f"{count:4} {way:18} {taken:8.1f} us  {middle:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
