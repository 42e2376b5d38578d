"""Kill a run and its workers at random for half an hour: `python benchmarks/soak.py [--minutes 30] [--seed 0]`.

Four asynchronous workers step the tests' counting environment, SIGKILL ends a worker or the whole run every 5 to 30
seconds, and the disk, a tmpfs, fills twice. A run that ended is resumed by the same command. At the end one last resume
has to finish. Prints what happened, and exits with 1 where a row is wrong, a checkpoint damaged, an exit code
not one of the expected, or a process or a file left. Needs Linux and `unshare`.
"""

import argparse
import collections
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from sac_torchrl.runs import snapshot

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
counting = __import__("counting")

SHARED = Path("/dev/shm")  # noqa: S108 - mounted anew for this process
DISK = "64m"
CAPACITY = 200_000
SETTINGS = (
    "env.id=Counting-v0",
    "env.plugins=[counting]",
    "env.count=4",
    "collector=async",
    "collector.workers=4",
    "collector.restarts=1000000",
    "collector.timeout=120",
    f"replay.capacity={CAPACITY}",
    "checkpoint.every=200",
    "random_frames=1000",
    "replay_ratio=0.05",
    "batch_size=16",
    "variant.network.hidden=[8]",
    "learner.execution=eager",
    "evaluate.every=20000",
    "evaluate.episodes=1",
    "device=cpu",
)
EXPECTED = {-signal.SIGKILL, 74}


def main() -> None:
    """Enter a mount namespace of its own, and soak."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--disk", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.disk is not None:
        soak(given.disk, seconds=60 * given.minutes, seed=given.seed)
        return
    with TemporaryDirectory() as folder:
        disk = Path(folder) / "disk"
        disk.mkdir()
        mounts = f"mount -t tmpfs -o size={DISK} tmpfs {disk} && mount -t tmpfs tmpfs {SHARED}"
        done = subprocess.run(
            [
                shutil.which("unshare") or "unshare",
                "-rm",
                "sh",
                "-c",
                f'{mounts} && exec "$@" --disk {disk}',
                "sh",
                sys.executable,
                *sys.argv,
            ],
            check=False,
        )
    sys.exit(done.returncode)


def soak(disk: Path, *, seconds: float, seed: int) -> None:
    """Run, kill and resume until the time is over; then finish and look at everything."""
    temporary = disk.parent / "tmp"
    temporary.mkdir()
    drawn = random.Random(seed)  # noqa: S311 - no secret
    codes, killed = collections.Counter[int](), collections.Counter[str]()
    start, mark = time.monotonic(), f"soak-{os.getpid()}"
    fillings = [start + seconds / 3, start + 2 * seconds / 3]
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(temporary),
        "SOAK": mark,
    }
    errors = (disk.parent / "errors").open("a")
    run = train(disk, environment, errors, 10**9)
    while time.monotonic() < start + seconds:
        pause = time.monotonic() + drawn.uniform(5, 30)
        while time.monotonic() < pause and run.poll() is None:
            time.sleep(0.1)
        if run.poll() is None and fillings and time.monotonic() > fillings[0] and checkpoints(disk):
            fillings.pop(0)
            run.wait(fill(disk / "filling", run))
            (disk / "filling").unlink()
            killed["full disk"] += 1
        elif run.poll() is None:
            workers = list(workers_of(run.pid))
            victim = drawn.choice(workers) if workers and drawn.random() < 0.8 else run.pid
            if victim == run.pid and not workers and drawn.random() < 0.7:
                continue  # most starts are let be, or a slow machine kills nothing else
            killed["run" if victim == run.pid else "worker"] += 1
            os.kill(victim, signal.SIGKILL)
            if victim == run.pid:
                run.wait()
        if run.poll() is not None:
            codes[run.returncode] += 1
            run = train(disk, environment, errors, 10**9)
    while run.poll() is None and not checkpoints(disk):
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    stopped = run.wait(120)
    reached = checkpoints(disk)[0]
    last = train(disk, environment, errors, reached + 2000).wait(300)
    time.sleep(10)  # what the guardian is promised to need
    left = [*marked(mark), *temporary.iterdir(), *SHARED.iterdir()]
    verified, rows = look(disk / "run" / "checkpoints")
    log = (disk / "run" / "run.log").read_text()
    failed = last != 0 or left or not set(codes) <= EXPECTED or rows == 0
    if failed:
        print((disk.parent / "errors").read_text())
    print(f"{reached + 2000} frames; killed: {dict(killed)}; exit codes {dict(codes)}, then {stopped} and {last}")
    print(f"{verified} checkpoints intact, {rows} rows hold every invariant; left: {left or 'nothing'}")
    print(f"run.log: {log.count('It is replaced')} workers replaced, {log.count('passing over')} damaged checkpoints")
    sys.exit(failed)


def train(disk: Path, environment: dict[str, str], errors: object, frames: int) -> "subprocess.Popen[bytes]":
    """Start or resume the run."""
    words = ["train", "continuous", f"run.folder={disk / 'run'}", f"total_frames={frames}", *SETTINGS]
    return subprocess.Popen(
        [sys.executable, "-m", "sac_torchrl", *words],
        env=environment,
        cwd=disk.parent,
        stdout=subprocess.DEVNULL,
        stderr=errors,  # type: ignore[arg-type]  # a file
        start_new_session=True,
    )


def fill(path: Path, run: "subprocess.Popen[bytes]") -> float:
    """Leave no room on the disk, until the run ends; return for how long to wait for the rest of its end."""
    with path.open("ab", buffering=0) as file:
        until = time.monotonic() + 300
        while run.poll() is None and time.monotonic() < until:
            try:
                file.write(bytes(4096))
            except OSError:
                time.sleep(0.05)
    return 60


def checkpoints(disk: Path) -> list[int]:
    """The frames of the checkpoints, newest first."""
    return snapshot.frames_in(disk / "run" / "checkpoints")


def workers_of(run: int) -> Iterator[int]:
    """The workers: they are forked by a child of the run."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    return (one for one, parent in parents.items() if parents.get(parent) == run)


def marked(mark: str) -> Iterator[int]:
    """The processes of this soak that are still there."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            found = f"SOAK={mark}".encode() in path.read_bytes()
        except OSError:
            continue
        if found:
            yield int(path.parent.name)


def look(folder: Path) -> tuple[int, int]:
    """Check every checkpoint and every row of the newest; return how many of both."""
    found = [snapshot.verify(folder / str(frames)) for frames in snapshot.frames_in(folder)]
    parts = [snapshot.read_segment(folder, segment) for segment in found[0].segments]
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    at: dict[int, tuple[int, int]] = {}
    count = len(columns["observation"])
    for seen, following, reward, ended in zip(
        *(columns[name].tolist() for name in ("observation", "next/observation", "next/reward", "next/terminated")),
        strict=True,
    ):
        number, episode, step = map(int, seen)
        begins = step == 0 and episode <= 1  # of a worker that replaced another, or of a resumed run
        # The ring's first row of an environment may be from the middle.
        assert begins or (episode, step) == at.get(number, (episode, step) if count >= CAPACITY else None), seen
        assert following == [number, episode, step + 1]
        assert reward == [step + 1]
        last = step + 1 == counting.length(number, episode)
        assert ended == [last and not counting.truncates(number, episode)]
        at[number] = (episode + 1, 0) if last else (episode, step + 1)
    return len(found), count


if __name__ == "__main__":
    main()
