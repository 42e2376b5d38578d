"""What a checkpoint costs by the rows that are new: `python benchmarks/saving.py [--rows 100000,1000000,10000000]`.

A buffer of HalfCheetah-v5's rows is filled and saved, and then saved five times more with 1,000 new rows each.
"""

import argparse
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tensordict import TensorDict

from sac_torchrl import CheckpointConfig, Checkpoints, EnvConfig, ReplayConfig, Storage
from sac_torchrl.replay.buffer import layout, row_bytes
from sac_torchrl.replay.packing import Packing

NEW = 1_000


def main() -> None:
    """Print a row of the table for each size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", default="100000,1000000,10000000")
    for rows in (int(word) for word in parser.parse_args().rows.split(",")):
        with TemporaryDirectory() as folder:
            print(f"| {rows:,} | {' | '.join(measure(Path(folder), rows))} |", flush=True)


def measure(folder: Path, rows: int) -> list[str]:
    """Time of the first save, and time and bytes of one with `NEW` new rows, the median of five."""
    specs, cpu = EnvConfig("HalfCheetah-v5").specs(), torch.device("cpu")
    size = rows + 5 * NEW
    buffer = ReplayConfig(size, Storage.ram).build(folder, specs, rows=size, batch_size=256, seed=0, device=cpu)
    new: TensorDict = Packing(layout(specs)).unpack(torch.zeros(NEW, row_bytes(specs), dtype=torch.uint8))
    for _ in range(rows // NEW):
        buffer.extend(new)
    checkpoints = CheckpointConfig().build(folder / "checkpoints", buffer)
    first, _ = save(checkpoints, folder, rows)
    times, written = [], []
    for number in range(1, 6):
        buffer.extend(new)
        seconds, added = save(checkpoints, folder, rows + number * NEW)
        times.append(seconds)
        written.append(added)
    return [f"{first:.2f}", f"{1000 * statistics.median(times):.0f}", f"{statistics.median(written) / 1000:,.0f}"]


def save(checkpoints: Checkpoints, folder: Path, frames: int) -> tuple[float, int]:
    """Seconds, and the bytes of the files that were not there before."""
    before = set(folder.rglob("*.*"))
    began = time.perf_counter()
    checkpoints.save(frames)
    seconds = time.perf_counter() - began
    return seconds, sum(file.stat().st_size for file in set(folder.rglob("*.*")) - before)


if __name__ == "__main__":
    main()
