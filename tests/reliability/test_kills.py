"""Test 3: killed at random moments, again and again, a run ends in the digest of one that was left alone."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import runs

from sac_torchrl.cli.main import main
from sac_torchrl.runs import snapshot

SETTINGS = {
    "short": ("total_frames=500", "checkpoint.every=100", "env.count=2", "replay.capacity=300", *runs.SMALL),
    # The reference run.
    "R": (
        "total_frames=3000",
        "checkpoint.every=200",
        "env.count=2",
        "replay.capacity=2000",
        "replay_ratio=0.25",
        *runs.SMALL,
    ),
}


class Process:
    """A run of the command, in a process of its own or forked from this one."""

    def __init__(self, folder: Path, settings: tuple[str, ...], *, forked: bool) -> None:
        words = ("train", "continuous", f"run.folder={folder}", *settings)
        self._started = None if forked else runs.start(*words, cwd=folder.parent)
        self.pid = os.fork() if self._started is None else self._started.pid
        if self.pid:
            return
        os.setsid()
        said = os.open(folder.parent / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        code: object = 70
        try:
            main(words)
            code = 0
        except SystemExit as end:
            code = end.code
        finally:
            os._exit(code if isinstance(code, int) else 0)

    def kill(self) -> None:
        """Kill it, if it is there: who has ended waits to be asked for."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Its exit code."""
        if self._started is not None:
            return runs.finish(self._started)[0]
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def drill(folder: Path, settings: tuple[str, ...], *, kills: int, seed: int, forked: bool) -> None:
    """Kill a run again and again, a third of the times while it starts; begin anew whenever one comes to its end."""
    draw = random.Random(seed)
    whole, broken = folder / "whole", folder / "broken"
    begun = time.monotonic()
    process = Process(whole, settings, forked=forked)
    wait_for_log(whole, "")
    starting = time.monotonic() - begun
    assert process.wait() == 0
    training = time.monotonic() - begun - starting
    expected = runs.digest(whole)
    landed, ends = 0, 0
    while landed < kills or broken.exists():
        committed, before = newest(broken), logged(broken)
        process = Process(broken, settings, forked=forked)
        if landed < kills:
            if draw.random() < 0.3:
                time.sleep(draw.uniform(0, starting))
            else:
                wait_for_log(broken, before)
                time.sleep(draw.uniform(0, training))
            process.kill()
        code = process.wait()
        assert code in (0, -signal.SIGKILL)
        for frames in re.findall(r"going on at (\d+) frames", logged(broken).removeprefix(before)):
            assert int(frames) == committed
        landed += code != 0
        if code == 0:  # the next one begins anew
            ends += 1
            assert runs.digest(broken) == expected
            assert not {path.name for path in broken.rglob(".*")} - {".lock"}
            shutil.rmtree(broken)
    print(f"{landed} kills, {ends} ends; undisturbed {starting:.1f} s to start and {training:.1f} s to train")


def wait_for_log(folder: Path, before: str) -> None:
    end = time.monotonic() + 600
    while logged(folder) == before:
        assert time.monotonic() < end
        time.sleep(0.01)


def logged(folder: Path) -> str:
    return (folder / "run.log").read_text() if (folder / "run.log").exists() else ""


def newest(folder: Path) -> int:
    checkpoint = snapshot.newest(folder / "checkpoints")
    return 0 if checkpoint is None else checkpoint.frames


@pytest.mark.timeout(600)
def test_a_run_that_is_killed_twice_ends_in_the_same_digest(tmp_path: Path) -> None:
    drill(tmp_path, SETTINGS["short"], kills=2, seed=3, forked=False)


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_a_run_that_is_killed_fifty_times_ends_in_the_same_digest(tmp_path: Path) -> None:
    path = os.pathsep.join([str(runs.ROOT), str(runs.ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, __file__, tmp_path, "50"], env=environment, check=True)


if __name__ == "__main__":  # one process imports everything, and every run is forked from it
    drill(Path(sys.argv[1]), SETTINGS["R"], kills=int(sys.argv[2]), seed=0, forked=True)
