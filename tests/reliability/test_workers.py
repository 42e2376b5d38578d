"""Tests 15, 20 and 25: however a run with workers ends, nothing of it is left; it says what limit it meets."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import runs

LONG = ("total_frames=1000000", "replay.capacity=10000", "checkpoint.every=1000000", *runs.SMALL)
STUCK = ("env.id=Stuck-v0", "env.plugins=[faulty]", "env.count=2", "collector.workers=2", "collector.timeout=1000")


@pytest.fixture
def temporary(tmp_path: Path) -> Mapping[str, str]:
    """Has a process keep its temporary files in a folder of its own."""
    (tmp_path / "tmp").mkdir()
    # PyTorch makes a folder for its compiler when it is imported.
    return {"TMPDIR": str(tmp_path / "tmp"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}


def left(session: int, members: list[int], tmp_path: Path) -> list[object]:
    """What there still is of a session: processes, shared memory and temporary files."""
    names = "|".join(map(str, members)) or "none"
    shared = [path.name for path in Path("/dev/shm").iterdir() if re.match(rf"(pym-|torch_)({names})\D", path.name)]
    return [*runs.family(session), *shared, *(tmp_path / "tmp").iterdir()]


def check_nothing_is_left(session: int, members: list[int], tmp_path: Path) -> None:
    until = time.monotonic() + 10
    while left(session, members, tmp_path) and time.monotonic() < until:
        time.sleep(0.05)
    assert left(session, members, tmp_path) == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("collector", ["processes", "async"])
def test_nothing_outlives_a_killed_run_with_a_stuck_worker(
    collector: str, tmp_path: Path, temporary: Mapping[str, str]
) -> None:
    words = ("train", "continuous", f"collector={collector}", f"run.folder={tmp_path / 'run'}", *STUCK, *LONG)
    process = runs.start(*words, cwd=tmp_path, environment=temporary)
    runs.wait_until((tmp_path / "stuck").exists, process)
    members = list(runs.family(process.pid))
    assert len(members) >= 4, "the run, the server of workers and two of them"
    process.kill()
    check_nothing_is_left(process.pid, members, tmp_path)
    assert runs.finish(process, 10)[0] == -signal.SIGKILL


SCRIPT = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
import torch
from sac_torchrl import Async, EnvConfig, Processes, ReplayConfig, Storage, tanh_normal_actor

PLANS = {
    "processes": Processes(workers=2, timeout=1000),
    "pipelined": Processes(workers=2, timeout=1000, pipelined=True, steps=1),
    "async": Async(workers=2, timeout=1000),
}

def main(kind, ending):
    global steps  # nobody closes it
    stuck = Path("stuck")
    env = EnvConfig("Stuck-v0", 2, plugins=["faulty"])
    specs = env.specs()
    buffer = ReplayConfig(storage=Storage.ram).build(
        Path(), specs, rows=1000, batch_size=1, seed=0, device=torch.device("cpu"))
    actor = tanh_normal_actor(torch.nn.Linear(2, 2), specs)
    steps = iter(PLANS[kind].build(
        env, actor, buffer, specs=specs, total_frames=10**6, random_frames=0, seed=3))
    next(steps)
    # As a terminal and a scheduler send them, to the whole group: they are the main process's business.
    for worker in multiprocessing.active_children():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(worker.pid, number)
    taken = 1
    # The step that one is stuck in is made in the user's turn: none in lock-step, the next one where pipelined.
    while taken < {"processes": 10, "pipelined": 29, "async": 10**6}[kind] and not stuck.exists():
        next(steps)
        taken += 1
    while kind == "pipelined" and not stuck.exists():
        time.sleep(0.01)
    print("ending", flush=True)
    if ending == "raises":
        raise LookupError("a mistake of the user")

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("collector", "ending"),
    [("processes", "returns"), ("processes", "raises"), ("pipelined", "raises"), ("async", "returns")],
)
def test_a_script_that_closes_nothing_ends_by_itself_and_leaves_nothing(
    collector: str, ending: str, tmp_path: Path, temporary: Mapping[str, str]
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    path = os.pathsep.join([str(runs.ROOT), str(runs.ROOT / "tests")])
    process = subprocess.Popen(
        [sys.executable, "script.py", collector, ending],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path} | dict(temporary),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    said = ""
    while "ending" not in said:  # TorchRL's remarks come first
        said = process.stdout.readline()
        assert said, process.communicate()
    members = list(runs.family(process.pid))
    code, _, errors = runs.finish(process, 15)
    assert code == (ending == "raises"), errors
    assert errors.endswith("LookupError: a mistake of the user\n") or ending == "returns", errors
    assert "Exception ignored" not in errors
    check_nothing_is_left(process.pid, members, tmp_path)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("collector", "files", "hidden", "code", "said"),
    [
        ("processes", 64, 8, 0, ""),
        (
            "async",
            64,
            8,
            69,
            "Too many open files. Give fewer collector.workers, or allow more open files (ulimit -n).",
        ),
        ("async", 1024, 1024, 69, "No space left on device. Give fewer collector.workers, or make room in /dev/shm"),
    ],
)
def test_eight_workers_on_a_narrow_machine_work_or_name_the_limit(
    collector: str, files: int, hidden: int, code: int, said: str, tmp_path: Path, temporary: Mapping[str, str]
) -> None:
    setting = ["unshare", "-rm", "bash", "-c"]
    script = f"mount -t tmpfs -o size=16m tmpfs /dev/shm && ulimit -n {files} && $0"
    if subprocess.run([*setting, script, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no file system of its own can be mounted here")
    words = [*LONG, "total_frames=200", "env.id=Sound-v0", "env.plugins=[faulty]", "env.count=8"]
    words = [word for word in words if not word.startswith(("total_frames=1000000", "variant"))]
    words += [f"collector={collector}", "collector.workers=8", f"variant.network.hidden=[{hidden},{hidden}]"]
    process = subprocess.Popen(
        [*setting, script.replace("$0", 'exec "$0" -m sac_torchrl train continuous "$@"'), sys.executable, *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{runs.ROOT}:{runs.ROOT / 'tests'}"} | dict(temporary),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    ended, _, errors = runs.finish(process, 150)
    assert ended == code, errors
    assert said in errors.splitlines()[-1]
    assert "Traceback" not in errors
    check_nothing_is_left(process.pid, [], tmp_path)


@pytest.mark.timeout(120)
def test_a_folder_of_temporary_files_with_too_long_a_path_is_refused(tmp_path: Path) -> None:
    long = tmp_path / ("long" * 20)
    long.mkdir()
    words = ("train", "continuous", "collector=async", f"run.folder={tmp_path / 'run'}", *STUCK, *LONG)
    code, _, errors = runs.finish(runs.start(*words, cwd=tmp_path, environment={"TMPDIR": str(long)}), 100)
    assert code == 64
    assert "too long a path for the sockets of worker processes: set TMPDIR to a shorter one." in errors
