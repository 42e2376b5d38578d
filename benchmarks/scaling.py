"""How cost grows: `python benchmarks/scaling.py [--output PICTURE.png]`; one thread, about five minutes.

Milliseconds of an update by batch, width of the two layers and number of critics; of a step of all environments by
their number; of a frame by replay ratio; microseconds of a sample by the rows to sample from, on disk. The sizes are
HalfCheetah-v5's, and everything else is as in the recipe. Medians of single calls; the points of a table take turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator
from tensordict import TensorDict
from torchrl.data import Bounded, Unbounded

from sac_torchrl import (
    SAC,
    Direct,
    EnvConfig,
    Learner,
    LearnerConfig,
    NetworkConfig,
    Precision,
    ReplayConfig,
    ReplayRatio,
    Specs,
    Storage,
)
from sac_torchrl.replay.buffer import layout

TASK = "HalfCheetah-v5"
SPECS = Specs(Unbounded(shape=torch.Size([17])), Bounded(-1, 1, shape=torch.Size([6])))
CPU = torch.device("cpu")
BATCHES = (64, 256, 1024, 4096)
TURNS = 40
SECONDS = 0.1  # of a turn
FRAMES = 20  # that a call makes where updates are not one a frame
Calls = dict[float, Callable[[], object]]


def main() -> None:
    """Print a table for each quantity and draw them all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    exact = {size: update(batch=size) for size in BATCHES}
    reduced = {-size: update(batch=size, precision=Precision.bfloat16) for size in BATCHES}
    batches = in_turn(exact | reduced, scale=1e3)
    with TemporaryDirectory(dir=".") as folder:
        samples: Calls = {count: sampling(count, Path(folder)) for count in (10**4, 10**5, 10**6, 10**7)}
        rows = in_turn(samples, scale=1e6)
    widths: Calls = {size: update(width=size) for size in (64, 128, 256, 512, 1024)}
    critics: Calls = {number: update(critics=number) for number in (2, 5, 10)}
    environments: Calls = {count: collection(count) for count in (1, 4, 16, 64, 256)}
    ratios: Calls = {ratio: loop(ratio) for ratio in (0.25, 1.0, 4.0, 20.0)}
    tables: dict[str, tuple[str, dict[float, float]]] = {
        "batch": ("update, ms", {size: batches[size] for size in BATCHES}),
        "width": ("update, ms", in_turn(widths, scale=1e3)),
        "critics": ("update, ms", in_turn(critics, scale=1e3)),
        "environments": ("step of all, ms", in_turn(environments, scale=1e3)),
        "updates a frame": ("frame, ms", in_turn(ratios, scale=1e3 / FRAMES)),
        "rows": ("sample, us", rows),
    }
    of_that = {size: batches[-size] / batches[size] for size in BATCHES}
    for name, (unit, points) in {**tables, "batch, bfloat16": ("of that", of_that)}.items():
        print(f"\n| {name} | {' | '.join(f'{x:,.10g}' for x in points)} |\n|---|{'---|' * len(points)}")
        print(f"| {unit} | {' | '.join(f'{y:.3g}' for y in points.values())} |", flush=True)
    if given.output:
        draw(tables, given.output)


def update(
    *, batch: int = 256, width: int = 256, critics: int = 2, precision: Precision = Precision.float32
) -> Callable[[], object]:
    """Call `Learner.update`."""
    trained = learner(width=width, critics=critics, precision=precision)
    data = transitions(batch)
    return lambda: trained.update(data)


def collection(count: int) -> Callable[[], object]:
    """Step `count` environments once and store what they did."""
    experience = iter(_experience(count, actor_of=learner()))
    return lambda: next(experience)


def loop(ratio: float) -> Callable[[], object]:
    """Make `FRAMES` frames with their updates."""
    trained = learner()
    buffer = ReplayConfig(storage=Storage.ram).build(Path(), SPECS, rows=100_000, batch_size=256, seed=0, device=CPU)
    buffer.extend(transitions(1_000))
    experience = iter(
        Direct().build(
            EnvConfig(TASK), trained.agent.actor, buffer, specs=SPECS, total_frames=10**9, random_frames=0, seed=0
        )
    )
    due = ReplayRatio(ratio, after=0, frames=0)

    def frames() -> None:
        for _ in range(FRAMES):
            for _ in range(due.due(next(experience))):
                trained.update(buffer.sample())

    return frames


def sampling(rows: int, folder: Path) -> Callable[[], object]:
    """Sample 256 of `rows` rows on disk."""
    buffer = ReplayConfig(rows).build(folder / str(rows), SPECS, rows=rows, batch_size=256, seed=0, device=CPU)
    part = transitions(min(rows, 100_000))
    for _ in range(rows // len(part)):
        buffer.extend(part)
    return buffer.sample


def learner(*, width: int = 256, critics: int = 2, precision: Precision = Precision.float32) -> Learner:
    """Make a learner of the recipe's, but for its size."""
    agent = SAC(network=NetworkConfig([width, width]), critics=critics).build(SPECS, device=CPU)
    return LearnerConfig(precision=precision).build(agent)


def _experience(count: int, *, actor_of: Learner) -> Iterator[int]:
    buffer = ReplayConfig(storage=Storage.ram).build(Path(), SPECS, rows=100_000, batch_size=256, seed=0, device=CPU)
    actor = actor_of.agent.actor
    yield from Direct().build(
        EnvConfig(TASK, count), actor, buffer, specs=SPECS, total_frames=10**9, random_frames=0, seed=0
    )


def transitions(count: int) -> TensorDict:
    """Make rows `(count,)` of random numbers."""
    batch = TensorDict(batch_size=[count])
    for key, (dtype, shape) in layout(SPECS).items():
        batch.set(key, torch.rand(count, *shape).to(dtype))
    return batch


def in_turn(calls: Calls, *, scale: float) -> dict[float, float]:
    """The median seconds of a call of each, times `scale`."""
    for call in calls.values():
        for _ in range(3):  # the second is recorded
            call()
    times = {point: list[float]() for point in calls}
    for _ in range(TURNS):
        for point, call in calls.items():
            start = before = time.perf_counter()
            while before - start < SECONDS:
                call()
                now = time.perf_counter()
                times[point].append(now - before)
                before = now
    return {point: scale * statistics.median(seconds) for point, seconds in times.items()}


def draw(tables: dict[str, tuple[str, dict[float, float]]], path: Path) -> None:
    """Draw every table as a curve."""
    figure = Figure(figsize=(9, 5), dpi=110, layout="constrained")
    for axes, (name, (unit, points)) in zip(figure.subplots(2, 3).flat, tables.items(), strict=True):
        axes.loglog(list(points), list(points.values()), "o-", color="#1f5fa8")
        axes.set_xticks(list(points), [f"{x:,g}" if x < 10**5 else f"{x:.0e}" for x in points], minor=False)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(min(points.values()) / 2, max(points.values()) * 2)
        axes.set_xlabel(name)
        axes.set_ylabel(unit)
        axes.grid(visible=True, alpha=0.2)
    figure.savefig(path)


if __name__ == "__main__":
    main()
