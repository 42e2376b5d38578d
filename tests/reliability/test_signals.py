"""Tests 13 and 14: signals save and stop; a second one ends the process at once."""

import csv
import os
import random
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import runs
from short_runs import configuration, digest, table

from sac_torchrl import Checkpoints, Learner
from sac_torchrl.errors import Preempted
from sac_torchrl.runs import episodes, snapshot
from sac_torchrl.train import train

LONG = ("total_frames=1000000", "replay.capacity=10000", "checkpoint.every=1000000", "env.count=2", *runs.SMALL)


def begun(folder: Path) -> bool:
    log = folder / "metrics.csv"
    return log.exists() and log.read_text().count("\n") > 1


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
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


@pytest.mark.timeout(300)
def test_the_command_that_a_stopped_run_shows_resumes_it_its_plugins_too(tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    task = ("env.id=Sound-v0", "env.plugins=[faulty,unruly]")
    process = runs.start("train", "continuous", "log_every=100", f"run.folder='{folder}'", *task, *LONG, cwd=tmp_path)
    runs.wait_until(lambda: begun(folder), process)
    os.kill(process.pid, signal.SIGTERM)
    code, _, errors = runs.finish(process, 30)
    assert code == 75
    words = shlex.split(errors.splitlines()[-1].partition("Resume it with: ")[2])
    assert words[0] == "sac-torchrl"
    (frames,) = snapshot.frames_in(folder / "checkpoints")
    code, _, errors = runs.command(*words[1:], f"total_frames={frames + 10}", cwd=tmp_path)
    assert (code, snapshot.frames_in(folder / "checkpoints")) == (0, [frames + 10, frames]), errors


def hear_no_more(process: "subprocess.Popen[str]") -> None:
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()


@pytest.mark.timeout(300)
def test_a_terminal_that_is_closed_costs_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    workers = ("collector=processes", "collector.workers=2")
    process = runs.start("train", "continuous", f"run.folder={folder}", *LONG, *workers, cwd=tmp_path)
    runs.wait_until(lambda: begun(folder), process)
    hear_no_more(process)
    for _ in range(2):  # the terminal and the shell both send it
        os.killpg(process.pid, signal.SIGHUP)
    assert process.wait(15) == 75
    (frames,) = snapshot.frames_in(folder / "checkpoints")
    assert f"SIGHUP came; saved at {frames} frames" in (folder / "run.log").read_text()


@pytest.mark.timeout(300)
def test_a_run_below_nohup_with_a_closed_output_finishes(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    few = ("total_frames=1500", "checkpoint.every=1500", *runs.SMALL)
    process = runs.start("train", "continuous", f"run.folder={folder}", *few, cwd=tmp_path, hangup=signal.SIG_IGN)
    runs.wait_until(lambda: (folder / "run.log").exists(), process)
    hear_no_more(process)
    os.killpg(process.pid, signal.SIGHUP)
    assert process.wait(250) == 0
    assert "finished: the results are in" in (folder / "run.log").read_text()


@pytest.mark.timeout(300)
def test_a_signal_before_the_first_frame_saves_that_frame(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = runs.start("train", "continuous", f"run.folder={folder}", *LONG, cwd=tmp_path)
    runs.wait_until(lambda: (folder / "run.log").exists() and "started" in (folder / "run.log").read_text(), process)
    process.send_signal(signal.SIGTERM)
    code, _, errors = runs.finish(process)
    assert code == 75, errors
    assert len(snapshot.frames_in(folder / "checkpoints")) == 1


@pytest.mark.timeout(300)
def test_a_signal_before_there_is_a_folder_leaves_none(tmp_path: Path) -> None:
    process = runs.start("train", "continuous", f"run.folder={tmp_path / 'run'}", *LONG, cwd=tmp_path)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    code, _, errors = runs.finish(process)
    assert code in (-signal.SIGTERM, 75), errors
    assert not (tmp_path / "run").exists() or code == 75


@pytest.mark.timeout(300)
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
    code, _, errors = runs.finish(process, 15)  # the step would take 30
    assert code == -signal.SIGINT
    assert "Traceback" not in errors


MOMENTS: dict[str, tuple[Any, str]] = {
    "start": (Checkpoints, "restore"),
    "update": (Learner, "update"),
    "evaluation": (episodes, "steps_of"),
    "save of rows": (snapshot, "write_segment"),
    "save": (snapshot, "_write"),
    "removal": (snapshot, "prune"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(configuration(folder, "Pendulum-v1"))
    return folder


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("moment", "number"), list(zip(MOMENTS, 2 * [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], strict=True))
)
def test_a_signal_in_the_middle_of_anything_loses_nothing(
    tmp_path: Path, whole: Path, moment: str, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, name = MOMENTS[moment]
    does, at = getattr(holder, name), 1 if moment == "start" else 2

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal at
        at -= 1
        if at == 0:
            os.kill(os.getpid(), number)
        return does(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(holder, name, interrupted)
        with pytest.raises(Preempted, match=rf"{number.name} came; saved at (\d+) frames") as stopped:
            train(configuration(tmp_path / "run", "Pendulum-v1"))
    assert at <= 0
    saved = re.search(r"saved at (\d+) frames", str(stopped.value))
    assert saved and snapshot.frames_in(tmp_path / "run" / "checkpoints")[0] == int(saved[1]) < 240
    train(configuration(tmp_path / "run", "Pendulum-v1"))
    assert table(tmp_path / "run") == table(whole)
    assert digest(tmp_path / "run") == digest(whole)


@pytest.mark.slow
@pytest.mark.timeout(2 * 3600)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_at_twenty_random_moments_saves_or_leaves_no_folder(tmp_path: Path, number: signal.Signals) -> None:
    draw = random.Random(number)
    settings = [word for word in LONG if not word.startswith(("checkpoint", "evaluate.every"))]
    settings += ["checkpoint.every=50", "evaluate.every=50"]
    begun_at = time.monotonic()
    first = runs.start("train", "continuous", f"run.folder={tmp_path / 'first'}", *settings, cwd=tmp_path)
    runs.wait_until(lambda: bool(snapshot.frames_in(tmp_path / "first" / "checkpoints")), first)
    start_up = time.monotonic() - begun_at
    first.kill()
    runs.finish(first)
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        process = runs.start("train", "continuous", f"run.folder={folder}", *settings, cwd=tmp_path)
        time.sleep(draw.uniform(0, 2 * start_up))
        os.killpg(process.pid, number)
        code, _, errors = runs.finish(process, 15 + start_up)
        if not folder.exists():
            assert code != 0  # Python's own answer, while it imports; a SIGINT there may end in a traceback
            continue
        assert code == 75, errors
        saved = re.search(r"saved at (\d+) frames", errors)
        assert saved
        assert snapshot.verify(folder / "checkpoints" / saved[1]).frames == int(saved[1])
        assert list(runs.family(process.pid)) == []
        assert not [path for path in folder.rglob(".*") if path.name != ".lock"]
