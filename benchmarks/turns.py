"""Processes that are timed in turn, block by block, while the others wait: a machine's speed drifts less between."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile

BLOCK = '{"seconds": '


def wait_for_turn(seconds: float, **facts: float) -> float:
    """Tell how long the last block took, wait for the next turn, and return the `time.perf_counter()` of its beginning.

    Raises:
        SystemExit: there is no other turn.

    """
    print(json.dumps({"seconds": seconds, **facts}), flush=True)
    if not sys.stdin.readline():
        raise SystemExit
    return time.perf_counter()


class Timed:
    """A process that calls `wait_for_turn` after every block; made, it has come to its first turn."""

    def __init__(self, command: Sequence[str], *, folder: Path, environment: Mapping[str, str]) -> None:
        """Start it in a folder, with these environment variables besides."""
        self.errors = TemporaryFile("w+")  # noqa: SIM115  as long as the process
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.told()

    def told(self) -> dict[str, float]:
        """What it tells at the end of its block."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(BLOCK):
                told: dict[str, float] = json.loads(line)
                return told
        self.errors.seek(0)
        raise SystemExit(f"{self.process.args!r} ended with {self.process.wait()}:\n{self.errors.read()[-2000:]}")

    def turn(self) -> dict[str, float]:
        """Have it make a block and return what it tells then."""
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        return self.told()

    def end(self) -> None:
        """Close its standard input, which ends it, and wait for that."""
        self.process.communicate()
        self.errors.close()


def in_turn(processes: Sequence[Timed], turns: int) -> list[list[dict[str, float]]]:
    """Give every process its turns, every other time in the opposite order, end them, and return what each told."""
    told: list[list[dict[str, float]]] = [[] for _ in processes]
    for number in range(turns):
        for which in range(len(processes)) if number % 2 else reversed(range(len(processes))):
            told[which].append(processes[which].turn())
    for process in processes:
        process.end()
    return told
