"""A process's own do not outlive it, however it ends and wherever they went."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from descendants import command_of
from runs import wait_until

from sac_torchrl import orphans

pytestmark = [pytest.mark.timeout(60), pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")]

PARENT = """
import os, signal, subprocess, sys
from sac_torchrl.orphans import marked
plain = subprocess.Popen(["sleep", "301"], start_new_session=True)
with marked(), marked():
    own = subprocess.Popen(["sleep", "302"], start_new_session=True)
    deaf = subprocess.Popen(["sh", "-c", "trap '' TERM; env -i sleep 303; true"])  # without the mark, below one with it
    if (middle := os.fork()) == 0:  # a daemon, as programs make it: its parent is gone at once
        os.setsid()
        if os.fork() == 0:
            os.execvp("sleep", ["sleep", "304"])
        os._exit(0)
    os.waitpid(middle, 0)
assert "SAC_TORCHRL_PARENTS" not in os.environ
print(plain.pid, own.pid, deaf.pid, flush=True)
sys.stdin.readline()
"""


def living(*commands: str) -> list[str]:
    found = [command_of(int(path.name)) for path in Path("/proc").glob("[0-9]*")]
    return [command for command in found if command.startswith(commands)]


@pytest.mark.parametrize("killed", [False, True])
def test_what_a_process_starts_ends_with_it(killed: bool) -> None:
    process = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    plain, own, deaf = (int(word) for word in process.stdout.readline().split())
    process.stdout.close()
    try:
        # A program has no command line yet where it has only just replaced the one before.
        wait_until(lambda: all(map(command_of, (plain, own, deaf))) and len(living("sleep 303", "sleep 304")) == 2)
        if killed:
            process.kill()
        process.stdin.close()
        process.wait(10)
        wait_until(lambda: not (command_of(own) or command_of(deaf) or living("sleep 303", "sleep 304")))
        assert command_of(plain)  # that was not in the block
    finally:
        os.kill(plain, signal.SIGKILL)
    guardian = f"{orphans.__file__} {process.pid}"
    wait_until(lambda: not any(guardian in command for command in living(sys.executable)))


FOLDERS = """
import multiprocessing.util, sys
from multiprocessing import forkserver
from sac_torchrl.collectors.forking import forking
from sac_torchrl.orphans import temporary_folder
if __name__ == "__main__":
    open(temporary_folder("own-") + "/file", "w").close()
    temporary_folder("own-")
    with forking():
        multiprocessing.util.get_temp_dir()
        print(forkserver._forkserver._forkserver_pid, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("victims", ["run", "run and server", "none"])
def test_folders_do_not_outlive_a_process(victims: str, tmp_path: Path) -> None:
    script, temporary = tmp_path / "script.py", tmp_path / "tmp"
    script.write_text(FOLDERS)
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(temporary)},
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    server = int(process.stdout.readline())
    process.stdout.close()
    assert sorted(path.name.split("-")[0] for path in temporary.iterdir()) == ["own", "own", "pymp"]
    if victims != "none":
        process.kill()
    if victims == "run and server":  # which is importing, and has not heard of the folder
        os.kill(server, signal.SIGKILL)
    process.stdin.close()
    process.wait(20)
    wait_until(lambda: not list(temporary.iterdir()), seconds=10)


SEMAPHORE = """
import multiprocessing, os, sys
from sac_torchrl.orphans import marked
if __name__ == "__main__":
    with marked():
        context = multiprocessing.get_context("spawn")
        lock = context.Lock()
        deaf = context.Process(target=os.execvp, args=("sleep", ["sleep", "305"]))
        deaf.start()
        print(lock._semlock.name, flush=True)
        sys.stdin.readline()
"""


def test_what_a_killed_process_shared_is_removed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SEMAPHORE)
    process = subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    semaphore = Path("/dev/shm") / f"sem.{process.stdout.readline().strip()[1:]}"
    process.stdout.close()
    assert semaphore.exists()
    wait_until(lambda: bool(living("sleep 305")))
    process.kill()
    process.wait(10)
    process.stdin.close()
    # Python's tracker of such things waits for the child, which the guardian ends.
    wait_until(lambda: not semaphore.exists())
