"""Tests 6, 11, 12, 23 and 24: loading, the order of a save, moved folders and full disks."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import runs
from short_runs import configuration
from trial import Trial, kill_at

from sac_torchrl.errors import DiskError
from sac_torchrl.runs import snapshot
from sac_torchrl.train import train

pytestmark = pytest.mark.timeout(300)


def test_a_process_killed_at_any_moment_of_a_resume_changes_nothing(tmp_path: Path) -> None:
    run = Trial(tmp_path)
    for _ in range(2):
        run.advance(7)
        run.save()
    files = {path: path.read_bytes() for path in run.folder.rglob("*.*")}
    for event in range(1, 1_000):
        child = os.fork()
        if child == 0:
            kill_at(event, below=run.folder)
            Trial(tmp_path).checkpoints.restore()
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert {path: path.read_bytes() for path in run.folder.rglob("*.*")} == files
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert event > 8
    resumed = Trial(tmp_path)
    assert resumed.checkpoints.restore() == 14
    assert resumed.everything() == run.everything()


def test_every_file_is_synced_before_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Trial(tmp_path)
    run.advance(4)
    events: list[tuple[str, str]] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def synced(fd: int) -> None:
        events.append(("sync", str(Path(f"/proc/self/fd/{fd}").readlink())))
        fsync(fd)

    def renamed(source: Any, target: Any) -> None:
        events.append(("name", str(target)))
        rename(source, target)

    def replaced(source: Any, target: Any) -> None:
        events.append(("name", str(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(os, "replace", replaced)
    run.save()
    root = str(run.folder)
    assert [(what, path.removeprefix(root)) for what, path in events] == [
        ("sync", "/rows/.tmp-0-4.safetensors"),
        ("name", "/rows/0-4.safetensors"),
        ("sync", "/rows"),
        ("sync", "/.tmp-4/state.safetensors"),
        ("sync", "/.tmp-4/state.json"),
        ("sync", "/.tmp-4/manifest.json"),
        ("sync", "/.tmp-4"),
        ("name", "/4"),
        ("sync", ""),
    ]


def test_an_interrupted_rename_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Trial(tmp_path)
    run.advance(4)
    replace, interruptions = os.replace, dict[str, int]()

    def interrupted(source: Any, target: Any) -> None:
        interruptions[str(target)] = interruptions.get(str(target), 0) + 1
        if interruptions[str(target)] < 3:
            raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    run.save()
    assert set(interruptions.values()) == {3} and len(interruptions) == 2
    assert snapshot.verify(run.folder / "4").frames == 4


def test_a_save_that_would_not_fit_writes_nothing_and_says_how_much_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Trial(tmp_path)
    run.advance(4)
    run.save()
    files = {path: path.read_bytes() for path in run.folder.rglob("*.*")}
    run.advance(4)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
        with pytest.raises(
            DiskError, match=r"checkpoints/8: No space left on device, [\d,]+ bytes are needed and 100 free"
        ):
            run.save()
    assert {path: path.read_bytes() for path in run.folder.rglob("*.*")} == files
    run.save()
    assert snapshot.verify(run.folder / "8").frames == 8


def test_a_state_that_would_not_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Trial(tmp_path)
    run.advance(4)
    rows = (run.save().parent / "rows" / "0-4.safetensors").stat().st_size
    run.advance(4)
    usage, made = shutil.disk_usage(tmp_path), list[Path]()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=rows + 50))
    monkeypatch.setattr(Path, "mkdir", lambda path, **_: made.append(path))
    with pytest.raises(DiskError, match=r"checkpoints/8: No space left on device"):
        run.save()
    assert [path.name for path in made] == ["rows"]


def untimed(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.mtime = 0
    return entry


def test_a_run_is_moved_packed_and_resumed_elsewhere(tmp_path: Path) -> None:
    name = "a folder with spaces, ünïcödé and " + 100 * "length"
    first = tmp_path / name[:200]
    config = configuration(first, "Sound-v0", plugins=["faulty"])
    train(config)
    digest = runs.digest(first)
    archive = tmp_path / "run.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(first, "run", filter=untimed)
    shutil.rmtree(first)
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "elsewhere", filter="data")
    moved = tmp_path / "elsewhere" / "run"
    assert runs.digest(moved) == digest
    config = configuration(moved, "Sound-v0", plugins=["faulty"])
    config.total_frames = 300
    train(config)
    assert snapshot.frames_in(moved / "checkpoints")[0] == 300


@pytest.mark.timeout(300)
def test_a_full_disk_ends_the_run_with_74_and_it_resumes_when_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting = ["unshare", "-rm", "sh", "-c"]
    possible = subprocess.run([*mounting, f"mount -t tmpfs tmpfs {disk}"], capture_output=True, check=False)
    if possible.returncode:
        pytest.skip("no file system of its own can be mounted here")
    settings = " ".join(
        [f"run.folder={disk}/run", "total_frames=4000", "env.count=2", "checkpoint.every=200", "replay.capacity=2000"]
        + [f"'{word}'" for word in runs.SMALL]
    )
    script = f"""
        mount -t tmpfs -o size=900k tmpfs {disk}
        python=$1
        $python -m sac_torchrl train continuous {settings} env.id=Filling-v0 env.plugins=[faulty]
        echo code $?
        rm -f {disk}/filling
        $python -m sac_torchrl verify {disk}/run
        echo code $?
        touch {disk}/enough
        $python -m sac_torchrl resume {disk}/run total_frames=700 env.plugins=[faulty]
        echo code $?
    """
    done = subprocess.run(
        [*mounting, script, "sh", sys.executable],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{runs.ROOT}:{runs.ROOT / 'tests'}", "FILLING": str(disk)},
    )
    codes = [line for line in done.stdout.splitlines() if line.startswith("code")]
    assert codes == ["code 74", "code 0", "code 0"], done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "No space left on device" in errors[0]
