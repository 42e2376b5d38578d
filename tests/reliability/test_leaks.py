"""Test 21: what is opened again and again is closed again and again."""

import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import runs

PAGE = os.sysconf("SC_PAGE_SIZE")


def held() -> dict[str, Any]:
    """What this process and its children hold: descriptors, threads, processes, shared memory, temporary files."""
    gc.collect()
    children = list(runs.children(os.getpid()))
    pids = [os.getpid(), *children]
    return {
        "descriptors": {pid: len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids},
        "threads": {pid: len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in pids},
        "grandchildren": [grandchild for pid in children for grandchild in runs.children(pid)],
        "shared": [path.name for path in Path("/dev/shm").iterdir() if str(pids[0]) in path.name],
        "temporary": sorted(path.name for path in Path(tempfile.gettempdir()).iterdir()),
    }


def resident() -> int:
    """The bytes of memory that this process has."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def cycle(kind: str, folder: Path) -> None:
    """Open everything that a kind of collection has, step, and close it."""
    import torch

    from sac_torchrl import SAC, Async, Direct, EnvConfig, NetworkConfig, Processes, ReplayConfig

    plan = {
        "direct": Direct(),
        "processes": Processes(workers=2, timeout=1000),
        "pipelined": Processes(workers=2, timeout=1000, pipelined=True),
        "async": Async(workers=2, timeout=1000),
    }[kind]
    env = EnvConfig("Sound-v0", 2, plugins=["faulty"])
    specs, cpu = env.specs(), torch.device("cpu")
    buffer = ReplayConfig().build(folder, specs, rows=1000, batch_size=2, seed=0, device=cpu)
    actor = SAC(network=NetworkConfig([8])).build(specs, device=cpu).actor
    steps = iter(plan.build(env, actor, buffer, specs=specs, total_frames=1000, random_frames=4, seed=3))
    for _ in range(5):
        next(steps)
    buffer.sample()
    steps.close()  # type: ignore[attr-defined]  # it is a generator


def main(kind: str, count: int, settled: int) -> None:
    """Tell what is held after the first cycle (what starts once has started) and at the end."""
    folder = Path(tempfile.gettempdir()).with_name("replay")
    seen, sizes = [], []
    for number in range(1, count + 1):
        cycle(kind, folder)
        if number in (1, count):
            seen.append(held())
        if number in (settled, count):
            sizes.append(resident())
    print(json.dumps({"seen": seen, "sizes": sizes}))


def repeat(kind: str, tmp_path: Path, *, count: int, settled: int) -> None:
    (tmp_path / "tmp").mkdir()
    path = os.pathsep.join([str(runs.ROOT), str(runs.ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, __file__, kind, str(count), str(settled)],
        env=os.environ | {"PYTHONPATH": path, "TMPDIR": str(tmp_path / "tmp")},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    before, after = told["seen"]
    assert after == before
    early, late = told["sizes"]
    assert late < 1.05 * early
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["direct", "processes", "pipelined", "async"])
def test_fifteen_times_opened_and_closed_leaves_what_once_leaves(kind: str, tmp_path: Path) -> None:
    repeat(kind, tmp_path, count=15, settled=5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["direct", "processes", "pipelined", "async"])
def test_two_hundred_times_opened_and_closed_leaves_what_once_leaves(kind: str, tmp_path: Path) -> None:
    repeat(kind, tmp_path, count=200, settled=20)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
