"""Tests 13 and 14: signals save and stop; a second one ends the process at once."""

import csv
import os
import signal
import time
from pathlib import Path

import pytest
import runs

from sac_torchrl import snapshot

LONG = ("total_frames=1000000", "replay.capacity=10000", "checkpoint.every=1000000", "env.count=2", *runs.SMALL)


def begun(folder: Path) -> bool:
    log = folder / "metrics.csv"
    return log.exists() and log.read_text().count("\n") > 1


@pytest.mark.limit(60)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_at_the_next_step_and_exits_with_75(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "run"
    process = runs.start("train", "continuous", "log_every=100", f"run.folder={folder}", *LONG, cwd=tmp_path)
    runs.wait_until(lambda: begun(folder), process)
    sent = time.monotonic()
    os.killpg(process.pid, number)  # to the whole group, as a terminal and some schedulers send it
    code, _, errors = runs.finish(process, 15)
    assert time.monotonic() - sent < 15
    assert code == 75
    last = errors.splitlines()[-1]
    assert last.startswith(f"stopped: {number.name} came; saved at ")
    assert f"sac-torchrl resume {folder}" in last
    assert "Traceback" not in errors
    (frames,) = snapshot.frames_in(folder / "checkpoints")
    assert snapshot.verify(folder / "checkpoints" / str(frames)).frames == frames
    with (folder / "metrics.csv").open() as file:
        assert frames - 100 <= max(int(row["frames"]) for row in csv.DictReader(file)) <= frames
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"]


@pytest.mark.limit(60)
def test_a_signal_before_the_first_frame_saves_that_frame(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = runs.start("train", "continuous", f"run.folder={folder}", *LONG, cwd=tmp_path)
    runs.wait_until(lambda: (folder / "run.log").exists() and "started" in (folder / "run.log").read_text(), process)
    process.send_signal(signal.SIGTERM)
    code, _, errors = runs.finish(process, 30)
    assert code == 75, errors
    assert len(snapshot.frames_in(folder / "checkpoints")) == 1


@pytest.mark.limit(60)
def test_a_signal_before_there_is_a_folder_leaves_none(tmp_path: Path) -> None:
    process = runs.start("train", "continuous", f"run.folder={tmp_path / 'run'}", *LONG, cwd=tmp_path)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    code, _, errors = runs.finish(process, 15)
    assert code in (-signal.SIGTERM, 75), errors
    assert not (tmp_path / "run").exists() or code == 75


@pytest.mark.limit(60)
def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = runs.start(
        "train",
        "continuous",
        "env.id=Slow-v0",
        "env.plugins=[faulty]",
        f"run.folder={folder}",
        *LONG,
        cwd=tmp_path,
    )
    runs.wait_until(lambda: (tmp_path / "stepping").exists(), process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None, "it waits for the end of the step"
    process.send_signal(signal.SIGINT)
    code, _, errors = runs.finish(process, 5)
    assert code == -signal.SIGINT
    assert "Traceback" not in errors
