"""Microseconds to write one row to a replay buffer and to sample 256: `python benchmarks/replay.py [--rows N,N]`.

Rows of HalfCheetah-v5. Ours, on disk and in memory, beside TorchRL's own buffer of the same columns. Medians and ranges
over rounds in which the buffers take turns; every row has been written once before. `--prioritized` measures
prioritized rows instead: a draw beside a uniform one and the trees' search, new priorities beside the trees' writing,
and TorchRL's sampler in the same buffer.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tensordict import TensorDict
from torchrl.data import (
    Bounded,
    LazyMemmapStorage,
    PrioritizedSampler,
    RandomSampler,
    TensorDictReplayBuffer,
    Unbounded,
)
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
    parser.add_argument("--prioritized", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.prioritized:
        prioritized(rounds=given.rounds, calls=given.calls)
        return
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


def prioritized(*, rounds: int, calls: int) -> None:
    """Print what a draw of 256 from 200,000 rows and an update of their priorities take, part by part."""
    size = 200_000
    uniform, ours, theirs = (
        ReplayConfig(size, Storage.ram, prioritized=kind).build(
            Path(), SPECS, rows=size, batch_size=BATCH, seed=0, device=CPU
        )
        for kind in (False, True, True)
    )
    theirs._sampler = PrioritizedSampler(size, alpha=0.6, beta=0.4, device=CPU)
    for buffer in (uniform, ours, theirs):
        for _ in range(size // 50_000):
            buffer.extend(transitions(50_000))
    # Other rows at each call, as in training: those of the call before are in the processor's caches.
    generator = torch.Generator().manual_seed(0)
    errors = [3 * torch.rand(BATCH, generator=generator) for _ in range(size // BATCH)]
    for error in errors:
        index = torch.randint(size, (BATCH,), generator=generator)
        for buffer in (ours, theirs):
            buffer.update_priority(index, error)
    drawn = [ours.sample().set("td_error", error) for error in errors]
    batches = cycle(drawn)
    tree: Any = ours._sampler
    total = tree._sum_tree.query(0, size)
    searched = cycle([total * torch.rand(BATCH, generator=generator) for _ in errors])
    written = cycle([(batch["index"], error**0.6) for batch, error in zip(drawn, errors, strict=True)])

    def search() -> None:
        tree._sum_tree[tree._sum_tree.scan_lower_bound(next(searched))]

    def put() -> None:
        index, powers = next(written)
        tree._sum_tree[index] = powers
        tree._min_tree[index] = powers

    def draw_and_search() -> None:
        uniform.sample()
        search()

    parts: dict[str, Callable[[], object]] = {
        "a uniform draw": uniform.sample,
        "a uniform draw and the trees' search": draw_and_search,
        "a prioritized draw": ours.sample,
        "with TorchRL's sampler": theirs.sample,
        "the trees' writing": put,
        "new priorities": lambda: ours.update_tensordict_priority(next(batches)),
        "with TorchRL's own": lambda: TensorDictReplayBuffer.update_tensordict_priority(theirs, next(batches)),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, part in parts.items():
            times[name].append(per_call(part, calls))
    print("| part | us |\n|---|---|")
    for name, values in times.items():
        print(f"| {name} | {spread(values)} |")
    for name, over in (
        ("a prioritized draw", "a uniform draw and the trees' search"),
        ("new priorities", "the trees' writing"),
    ):
        ratios = [value / other for value, other in zip(times[name], times[over], strict=True)]
        print(f"{name}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) of {over}")


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
    """Return the microseconds of processor time that a call takes."""
    start = time.thread_time()
    for _ in range(calls):
        function()
    return (time.thread_time() - start) / calls * 1e6


def spread(values: list[float]) -> str:
    """Write the median and, in brackets, the range."""
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


if __name__ == "__main__":
    main()
