"""What `verify` takes for hostile folders, above an intact small one: `python benchmarks/hostile.py`.

The folders are those of `tests/reliability/test_hostile.py`. Each is verified in a process of its own, forked from one
that has imported everything; the most memory is the system's count from the fork on. Needs Linux.
"""

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "reliability")]
hostile = __import__("test_hostile")

from sac_torchrl.errors import CheckpointError  # noqa: E402 - after the path
from sac_torchrl.runs import snapshot  # noqa: E402


def main() -> None:
    """Print seconds and megabytes above those of the intact folder."""
    kept = intact = verified(lambda at: None)
    for _ in range(4):
        intact = min(intact, verified(lambda at: None))
    print(f"intact: {kept[0]:.3f} s at first, {intact[0]:.3f} s at best")
    for name, spoil in hostile.SPOILED.items():
        seconds, memory = verified(spoil)
        print(f"{name}: {seconds - intact[0]:+.3f} s, {(memory - intact[1]) / 1000:+.1f} MB")


def verified(spoil: Callable[[Path], None]) -> tuple[float, int]:
    """Verify both checkpoints of a folder with the newer one spoiled; return seconds and the most memory in kB."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows").mkdir()
        for frames in (100, 200):
            snapshot.write(folder / str(frames), hostile.STATE, [])
        spoil(folder / "200")
        reading, writing = os.pipe()
        if os.fork() == 0:
            Path("/proc/self/clear_refs").write_text("5")  # begins the count of the most memory again
            begun = time.perf_counter()
            for frames in snapshot.frames_in(folder):
                with suppress(CheckpointError):
                    snapshot.verify(folder / str(frames))
            seconds = time.perf_counter() - begun
            status = Path("/proc/self/status").read_text()
            os.write(writing, f"{seconds} {status.partition('VmHWM:')[2].split()[0]}".encode())
            os._exit(0)
        os.wait()
        seconds, memory = os.read(reading, 100).split()
        os.close(reading)
        os.close(writing)
        return float(seconds), int(memory)


if __name__ == "__main__":
    main()
