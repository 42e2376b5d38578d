"""Test 3: killed at random moments, again and again, a run ends in the digest of one that was left alone."""

import os
import random
import re
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import runs

from sac_torchrl import snapshot

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


def drill(tmp_path: Path, settings: tuple[str, ...], *, kills: int, seed: int) -> None:
    """Kill a run again and again, a third of the times while it starts; begin anew whenever one comes to its end."""
    draw = random.Random(seed)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    begun = time.monotonic()
    process = runs.start("train", "continuous", f"run.folder={whole}", *settings, cwd=tmp_path)
    runs.wait_until(lambda: bool(logged(whole)), process)
    starting = time.monotonic() - begun
    code, _, errors = runs.finish(process)
    assert code == 0, errors
    training = time.monotonic() - begun - starting
    expected = runs.digest(whole)
    landed, ended, ends = 0, False, 0
    while landed < kills or not ended:
        committed, before = newest(broken), logged(broken)
        process = runs.start("train", "continuous", f"run.folder={broken}", *settings, cwd=tmp_path)
        if landed < kills:
            if draw.random() < 0.3:
                time.sleep(draw.uniform(0, starting))
            else:
                runs.wait_until(partial(grown, broken, before), process)
                time.sleep(draw.uniform(0, training))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        code, _, errors = runs.finish(process)
        assert code in (0, -signal.SIGKILL), errors
        for frames in re.findall(r"going on at (\d+) frames", logged(broken).removeprefix(before)):
            assert int(frames) == committed
        landed, ended = landed + (code != 0), code == 0
        if ended:  # the next one begins anew
            ends += 1
            assert runs.digest(broken) == expected
            assert not {path.name for path in broken.rglob(".*")} - {".lock"}
            shutil.rmtree(broken)
    print(f"{landed} kills, {ends} ends; undisturbed {starting:.0f} s to start and {training:.0f} s to train")


def logged(folder: Path) -> str:
    return (folder / "run.log").read_text() if (folder / "run.log").exists() else ""


def grown(folder: Path, before: str) -> bool:
    return logged(folder) != before


def newest(folder: Path) -> int:
    checkpoint = snapshot.newest(folder / "checkpoints")
    return 0 if checkpoint is None else checkpoint.frames


@pytest.mark.limit(600)
def test_a_run_that_is_killed_twice_ends_in_the_same_digest(tmp_path: Path) -> None:
    drill(tmp_path, SETTINGS["short"], kills=2, seed=3)


@pytest.mark.slow
@pytest.mark.limit(3 * 3600)
def test_a_run_that_is_killed_fifty_times_ends_in_the_same_digest(tmp_path: Path) -> None:
    drill(tmp_path, SETTINGS["R"], kills=50, seed=0)
