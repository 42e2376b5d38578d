"""What hostile folders and configurations take above small intact ones: `python benchmarks/hostile.py`.

They are those of `tests/reliability/test_hostile.py`. Each is read in a process of its own, forked from one that has
imported everything; the most memory is the system's count from the fork on. Needs Linux.
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

from sac_torchrl.config.layers import read  # noqa: E402 - after the path
from sac_torchrl.errors import CheckpointError, ConfigError  # noqa: E402 - after the path
from sac_torchrl.runs import snapshot  # noqa: E402


def main() -> None:
    """Print seconds and megabytes above those of what is intact."""
    spoiled = {name: (lambda folder, spoil=spoil: write(folder, spoil)) for name, spoil in hostile.SPOILED.items()}
    compare("folder", lambda folder: write(folder, lambda at: None), spoiled, verify)
    contents = {name: content for name, (content, _) in hostile.CONFIGURATIONS.items()}
    configurations = {
        name: (lambda folder, content=content: (folder / "config.yaml").write_text(content))
        for name, content in contents.items()
    }
    compare(
        "configuration",
        lambda folder: (folder / "config.yaml").write_text("env:\n  id: Pendulum-v1\nseed: 1\n"),
        configurations,
        lambda folder: read(folder / "config.yaml"),
    )


def compare(
    kind: str,
    intact: Callable[[Path], object],
    spoiled: dict[str, Callable[[Path], object]],
    reading: Callable[[Path], object],
) -> None:
    """Print what reading each of `spoiled` takes above `intact`, the best of five."""
    first, *others = (measure(intact, reading) for _ in range(5))
    best = min(others)
    print(f"intact {kind}: {first[0]:.3f} s at first, {best[0]:.3f} s at best")
    for name, spoil in spoiled.items():
        seconds, memory = measure(spoil, reading)
        print(f"{kind}, {name}: {seconds - best[0]:+.3f} s, {(memory - best[1]) / 1000:+.1f} MB")


def write(folder: Path, spoil: Callable[[Path], object]) -> None:
    """Two checkpoints, with the newer one spoiled."""
    (folder / "rows").mkdir()
    for frames in (100, 200):
        snapshot.write(folder / str(frames), hostile.STATE, [])
    spoil(folder / "200")


def verify(folder: Path) -> None:
    """Verify both checkpoints."""
    for frames in snapshot.frames_in(folder):
        with suppress(CheckpointError):
            snapshot.verify(folder / str(frames))


def measure(prepare: Callable[[Path], object], reading: Callable[[Path], object]) -> tuple[float, int]:
    """Read a folder that was prepared; return processor seconds and the most memory in kB."""
    with TemporaryDirectory() as name:
        prepare(Path(name))
        receiving, sending = os.pipe()
        if os.fork() == 0:
            Path("/proc/self/clear_refs").write_text("5")  # begins the count of the most memory again
            begun = time.process_time()
            with suppress(ConfigError):
                reading(Path(name))
            seconds = time.process_time() - begun
            status = Path("/proc/self/status").read_text()
            os.write(sending, f"{seconds} {status.partition('VmHWM:')[2].split()[0]}".encode())
            os._exit(0)
        os.wait()
        seconds, memory = os.read(receiving, 100).split()
        os.close(receiving)
        os.close(sending)
        return float(seconds), int(memory)


if __name__ == "__main__":
    main()
