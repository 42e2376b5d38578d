"""Microseconds to write one row to a replay buffer and to sample 256: `python benchmarks/replay.py [--rows N,N]`.

Rows of HalfCheetah-v5. Ours, on disk and in memory, beside TorchRL's own buffer of the same columns. Medians and ranges
over rounds in which the buffers take turns; every row has been written once before.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tensordict import TensorDict
from torchrl.data import Bounded, LazyMemmapStorage, RandomSampler, TensorDictReplayBuffer, Unbounded
from torchrl.data.replay_buffers import RoundRobinWriter

from sac_torchrl import ReplayConfig, Specs, Storage
from sac_torchrl.replay.buffer import layout, rows

SPECS = Specs(Unbounded(shape=torch.Size([17])), Bounded(-1, 1, shape=torch.Size([6])))
CPU = torch.device("cpu")
BATCH = 256


def main() -> None:
    """Print a line for each number of rows and each buffer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", default="10000,100000,1000000")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=500)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| rows | buffer | write one row, us | sample 256, us |\n|---|---|---|---|")
    for size in map(int, given.rows.split(",")):
        with TemporaryDirectory() as folder:
            buffers = build(Path(folder), size)
            for buffer in buffers.values():
                for start in range(0, size, 100_000):
                    buffer.extend(transitions(min(100_000, size - start)))
            row = transitions(1)
            writes: dict[str, list[float]] = {name: [] for name in buffers}
            samples: dict[str, list[float]] = {name: [] for name in buffers}
            for _ in range(given.rounds):
                for name, buffer in buffers.items():
                    writes[name].append(per_call(partial(write, buffer, row), given.calls))
                    samples[name].append(per_call(buffer.sample, given.calls))
            for name in buffers:
                print(f"| {size:,} | {name} | {spread(writes[name])} | {spread(samples[name])} |", flush=True)


def build(folder: Path, size: int) -> dict[str, TensorDictReplayBuffer]:
    """Make the buffers that are compared, with room for `size` rows."""
    ours = {
        f"ours, {storage.value}": ReplayConfig(size, storage).build(
            folder / storage.value, SPECS, rows=size, batch_size=BATCH, seed=0, device=CPU
        )
        for storage in (Storage.disk, Storage.ram)
    }
    torchrl = TensorDictReplayBuffer(
        storage=LazyMemmapStorage(size, scratch_dir=folder / "torchrl"),
        sampler=RandomSampler(),
        writer=RoundRobinWriter(),
        batch_size=BATCH,
        generator=torch.Generator().manual_seed(0),
    )
    return {**ours, "TorchRL, disk": torchrl}


def transitions(count: int) -> TensorDict:
    """Make rows `(count,)` of random numbers."""
    batch = TensorDict(batch_size=[count])
    for key, (dtype, shape) in layout(SPECS).items():
        batch.set(key, torch.rand(count, *shape).to(dtype))
    return batch


def write(buffer: TensorDictReplayBuffer, batch: TensorDict) -> None:
    """Check a collector's batch and store it."""
    buffer.extend(rows(batch, SPECS))


def per_call(function: Callable[[], object], calls: int) -> float:
    """Return the microseconds that a call takes."""
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls * 1e6


def spread(values: list[float]) -> str:
    """Write the median and, in brackets, the range."""
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


if __name__ == "__main__":
    main()
