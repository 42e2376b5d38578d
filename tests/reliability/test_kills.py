"""Test 3: killed at random moments, again and again, a run ends in the digest of one that was left alone."""

import os
import random
import re
import shutil
import signal
import time
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
        "learner.execution=eager",
        "device=cpu",
        "evaluate.every=100000",
        "evaluate.episodes=1",
    ),
}


def drill(tmp_path: Path, settings: tuple[str, ...], *, kills: int, seed: int) -> None:
    draw = random.Random(seed)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    begun = time.monotonic()
    code, _, errors = runs.command("train", "continuous", f"run.folder={whole}", *settings, cwd=tmp_path)
    assert code == 0, errors
    longest = time.monotonic() - begun
    landed = 0
    while landed < kills:
        process = runs.start("train", "continuous", f"run.folder={broken}", *settings, cwd=tmp_path)
        try:
            process.wait(draw.uniform(0.2, 1) * longest)
        except Exception:  # noqa: BLE001 - it is still running: that is the moment
            os.killpg(process.pid, signal.SIGKILL)
        code, _, errors = runs.finish(process, 10)
        assert code in (0, -signal.SIGKILL), errors
        landed += code != 0
        frames = newest(broken)
        if code == 0 and landed < kills:
            shutil.rmtree(broken)  # it came to the end: the next one begins anew
            continue
        log = (broken / "run.log").read_text() if (broken / "run.log").exists() else ""
        for line in re.findall(r"going on at (\d+) frames", log.rpartition("resumed in")[2]):
            assert int(line) <= frames
    committed = newest(broken)
    code, _, errors = runs.command("train", "continuous", f"run.folder={broken}", *settings, cwd=tmp_path)
    assert code == 0, errors
    if committed:
        assert f"going on at {committed} frames" in errors
    assert runs.digest(broken) == runs.digest(whole)
    left = {path.name for path in broken.rglob(".*")} - {".lock"}
    assert not left


def newest(folder: Path) -> int:
    checkpoint = snapshot.newest(folder / "checkpoints")
    return 0 if checkpoint is None else checkpoint.frames


@pytest.mark.limit(280)
def test_a_run_that_is_killed_twice_ends_in_the_same_digest(tmp_path: Path) -> None:
    drill(tmp_path, SETTINGS["short"], kills=2, seed=3)


@pytest.mark.slow
@pytest.mark.limit(3 * 3600)
def test_a_run_that_is_killed_fifty_times_ends_in_the_same_digest(tmp_path: Path) -> None:
    drill(tmp_path, SETTINGS["R"], kills=50, seed=0)
