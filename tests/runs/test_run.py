import errno
import logging
import os
import platform
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from typing import NoReturn

import pytest
import torch

import sac_torchrl.runs.folder
from sac_torchrl.errors import (
    CheckpointError,
    ConfigError,
    DiskError,
    EnvironmentFault,
    LearnerFault,
    Preempted,
    RunFolderInUse,
    WorkerDied,
    exit_codes,
)
from sac_torchrl.files import write_whole
from sac_torchrl.runs.device import resolve_device
from sac_torchrl.runs.folder import RunConfig
from sac_torchrl.runs.seeds import Seeds
from sac_torchrl.signals import STOPPING


def test_seeds_are_distinct_repeatable_and_of_31_bits() -> None:
    seeds = [word for seed in range(50) for word in astuple(Seeds.derive(seed))]
    assert len(set(seeds)) == 250
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert Seeds.derive(7) == Seeds.derive(7)


def test_seeds_stay_the_same_over_versions() -> None:
    # A run can only be repeated if these never change.
    assert astuple(Seeds.derive(3)) == (409691224, 822710854, 1725899901, 59274554, 1471340371)


def test_a_new_folder_is_named_private_and_never_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = []
    for _ in range(3):
        with RunConfig().open("seed: 0\n", name="Pendulum-v1-sac-seed0", seed=0, device="cpu") as run:
            assert not run.resumed
            folders.append(run.folder)
    assert len(set(folders)) == 3
    for folder in folders:
        assert folder.parent == Path("runs").absolute()
        assert folder.name.startswith("Pendulum-v1-sac-seed0-")
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / "config.yaml").read_text() == "seed: 0\n"


def test_a_given_folder_is_made_then_resumed(tmp_path: Path) -> None:
    plan = RunConfig(str(tmp_path / "deep" / "er" / "with a space"))
    with plan.open("first: 1\n", name="x", seed=3, device="cpu") as run:
        assert not run.resumed
        assert run.folder == tmp_path / "deep" / "er" / "with a space"
        assert run.device == torch.device("cpu")
        assert run.seeds == Seeds.derive(3)
    with plan.open("second: 2\n", name="x", seed=3, device="cpu") as run:
        assert run.resumed
        assert (run.folder / "config.yaml").read_text() == "second: 2\n"


def test_a_folder_with_other_files_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with (
        pytest.raises(ConfigError, match=r"holds files but no config\.yaml"),
        RunConfig(str(tmp_path)).open("", name="x", seed=0, device="cpu"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_a_crash_before_the_first_line_leaves_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("123456789")
    (tmp_path / ".tmp-config.yaml").write_text("see")
    with RunConfig(str(tmp_path)).open("", name="x", seed=0, device="cpu") as run:
        assert not run.resumed
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "notes").touch()
    with pytest.raises(ConfigError, match="notes is a file"):
        RunConfig(str(tmp_path / "notes")).saved()


def test_a_folder_that_is_taken_in_the_same_moment_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = sac_torchrl.runs.folder._lock

    def late(folder: Path) -> int:
        (folder / "config.yaml").write_text("another's\n")  # who has ended again meanwhile
        return lock(folder)

    monkeypatch.setattr(sac_torchrl.runs.folder, "_lock", late)
    with pytest.raises(RunFolderInUse, match="taken by another process just now"):
        RunConfig(str(tmp_path)).open("mine\n", name="x", seed=0, device="cpu").__enter__()
    assert (tmp_path / "config.yaml").read_text() == "another's\n"


def test_a_run_may_be_in_a_thread_of_its_own(tmp_path: Path) -> None:
    def open_one() -> Path:
        with RunConfig(str(tmp_path)).open("", name="x", seed=0, device="cpu") as run:
            return run.folder

    with ThreadPoolExecutor() as pool:  # where Python lets nobody handle signals
        assert pool.submit(open_one).result() == tmp_path


def test_denormal_numbers_are_zero_in_a_run(tmp_path: Path) -> None:
    torch.set_flush_denormal(False)
    with RunConfig(str(tmp_path)).open("", name="x", seed=0, device="cpu"):
        assert (torch.full((8,), 1e-38) * 0.1 == 0).all()


FAULTS = """
import resource, sys, torch
from sac_torchrl import RunConfig

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        kept = [torch.ones(2**20) for _ in range(3)]
        del kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with RunConfig(sys.argv[1]).open("", name="x", seed=0, device="cpu"):
    faults()
    print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_not_faulted_in_again_in_a_run(tmp_path: Path) -> None:
    """3 tensors of 4 MB, 50 times: 3,000 pages each time where glibc returns them to the system."""
    command = [sys.executable, "-c", FAULTS, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) < 1_000


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(DiskError, match="file/run"),
        RunConfig(str(tmp_path / "file" / "run")).open("", name="x", seed=0, device="cpu"),
    ):
        pass


def test_a_device_that_is_not_there_makes_no_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="device=cuda:99"),
        RunConfig(str(tmp_path / "run")).open("", name="x", seed=0, device="cuda:99"),
    ):
        pass
    assert not (tmp_path / "run").exists()


HOLD = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1] + "/.lock", os.O_RDWR | os.O_CREAT)
fcntl.flock(descriptor, fcntl.LOCK_EX)
os.write(descriptor, str(os.getpid()).encode())
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_that_another_process_holds_is_refused_until_it_dies(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(RunFolderInUse, match=f"in use by process {holder.pid}"),
            RunConfig(str(tmp_path)).open("", name="x", seed=0, device="cpu"),
        ):
            pass
        assert not (tmp_path / "config.yaml").exists()
        holder.kill()
    with RunConfig(str(tmp_path)).open("", name="x", seed=0, device="cpu") as run:
        assert run.folder == tmp_path


def test_the_lock_is_given_back_and_names_its_owner(tmp_path: Path) -> None:
    plan = RunConfig(str(tmp_path))
    with plan.open("", name="x", seed=0, device="cpu"):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
        with pytest.raises(RunFolderInUse), plan.open("", name="x", seed=0, device="cpu"):
            pass
    with plan.open("", name="x", seed=0, device="cpu"):
        pass


def test_the_configuration_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = RunConfig(str(tmp_path))
    with plan.open("first: 1\n", name="x", seed=0, device="cpu"):
        pass

    def fail(descriptor: int) -> NoReturn:
        assert Path(f"/proc/self/fd/{descriptor}").readlink().name != "config.yaml"
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with (
        pytest.raises(DiskError, match="Input/output error"),
        plan.open("second: 2\n", name="x", seed=0, device="cpu"),
    ):
        pass
    assert (tmp_path / "config.yaml").read_text() == "first: 1\n"


def test_a_signal_is_noted_from_before_the_folder_until_the_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [signal.getsignal(one) for one in STOPPING]

    def signalled(path: Path, content: str) -> None:
        for _ in range(3):  # a sender that repeats at once means one
            os.kill(os.getpid(), signal.SIGTERM)
        write_whole(path, content)

    monkeypatch.setattr("sac_torchrl.runs.folder.write_whole", signalled)
    with RunConfig(str(tmp_path)).open("", name="x", seed=0, device="cpu") as run:
        assert run.signals.received == "SIGTERM"
        with pytest.raises(Preempted, match="SIGTERM came; saved at 7 frames"):
            run.stop_if_asked(7)
    assert [signal.getsignal(one) for one in STOPPING] == before


def test_a_repeated_hangup_is_one_request(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever these tests run below
    try:
        with RunConfig(str(tmp_path)).open("", name="x", seed=0, device="cpu") as run:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGHUP)
                time.sleep(0.15)
            assert run.signals.received == "SIGHUP"
    finally:
        signal.signal(signal.SIGHUP, before)


def _fail_after_a_line() -> None:
    logging.getLogger("sac_torchrl.replay.buffer").info("rows are reserved")
    _ = 1 / 0


def test_the_log_keeps_the_lines_and_the_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        RunConfig(str(tmp_path)).open("", name="x", seed=5, device="cpu"),
    ):
        _fail_after_a_line()
    log = (tmp_path / "run.log").read_text()
    assert "started in" in log
    assert "seed 5" in log
    assert f"torch {torch.__version__.partition('+')[0]}" in log
    assert "rows are reserved" in log
    assert "ZeroDivisionError" in log
    screen = capsys.readouterr().err
    assert "rows are reserved" in screen
    assert "ZeroDivisionError" not in screen
    assert logging.getLogger("sac_torchrl").handlers == []


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "mps", "", "cpu:a"])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="give auto, cpu, cuda or cuda:N"):
        resolve_device(name)


def test_auto_takes_a_gpu_where_there_is_one() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("seed=-1: give 0 or more."), 64, "error: seed=-1: give 0 or more.\n"),
        (CheckpointError("torn."), 65, "error: torn.\n"),
        (WorkerDied("gone.", environment=0), 69, "error: gone.\n"),
        (EnvironmentFault("raised."), 69, "error: raised.\n"),
        (LearnerFault("nan."), 70, "error: nan.\n"),
        (RunFolderInUse("taken."), 73, "error: taken.\n"),
        (DiskError("no room."), 74, "error: no room.\n"),
        (Preempted("SIGTERM came."), 75, "stopped: SIGTERM came.\n"),
        (KeyboardInterrupt(), 130, "error: interrupted.\n"),
        *(
            (
                OSError(number, os.strerror(number), "a.log"),
                74,
                f"error: a.log: {os.strerror(number)}: {advice}, then resume.\n",
            )
            for number, advice in (
                (errno.ENOSPC, "make room"),
                (errno.EDQUOT, "make room"),
                (errno.EFBIG, "allow larger files (ulimit -f)"),
                (errno.EROFS, "make it writable"),
                (errno.EACCES, "allow this user to write it"),
                (errno.EIO, "look after the disk"),
            )
        ),
    ],
)
def test_a_foreseen_failure_is_one_line_and_a_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit, exit_codes():
        raise error
    assert exit.value.code == code
    assert capsys.readouterr().err == line


def test_an_unforeseen_failure_shows_where_it_happened(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit, exit_codes():
        _ = 1 / 0
    assert exit.value.code == 70
    assert "_ = 1 / 0" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit, exit_codes():
        Path("not there").read_text()
    assert exit.value.code == 70, "a bug, and no disk that is full"
    assert "FileNotFoundError" in capsys.readouterr().err
