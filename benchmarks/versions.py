"""Time two versions of this project against each other, in turn, on a machine whose speed drifts.

python benchmarks/versions.py OLDER NEWER                     two checkouts; HalfCheetah-v5, one update a frame
python benchmarks/versions.py OLDER NEWER variant=redq        the keys of recipes/continuous.py follow

Both train in processes of their own, of which one waits while the other makes a block of frames. Prints the median time
a frame of each, and median and quartiles of the ratio of neighboring blocks.
"""

import argparse
import runpy
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from turns import Timed, in_turn, wait_for_turn

SETTINGS = (
    "preset=halfcheetah random_frames=100 learning_starts=100 total_frames=1000000 log_every=1000000 "
    "evaluate.every=1000000 evaluate.episodes=1 checkpoint.every=1000000"
)


def train(block: int, warmup: int, keys: list[str]) -> None:
    """Run the recipe of the checkout in the current folder; make a block for each line of standard input."""
    sys.path.insert(0, str(Path.cwd()))
    import sac_torchrl

    assert Path(sac_torchrl.__file__).is_relative_to(Path.cwd()), sac_torchrl.__file__
    show: Any = sac_torchrl.Progress.update
    begun = 0.0

    def in_turn(self: Any, frames: int, metrics: Any = None) -> None:
        nonlocal begun
        show(self, frames, metrics)
        if frames % block == 0 and frames >= warmup:
            begun = wait_for_turn(time.perf_counter() - begun)

    setattr(sac_torchrl.Progress, "update", in_turn)  # noqa: B010
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["recipes/continuous.py", *SETTINGS.split(), f"run.folder={folder}/run", *keys]
        runpy.run_path("recipes/continuous.py", run_name="__main__")


def main() -> None:
    """Compare two versions, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs=2, type=Path, metavar="FOLDER")
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--block", type=int, default=50, help="frames of one turn")
    parser.add_argument("--warmup", type=int, default=400, help="frames before the first turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(options.block, options.warmup, options.keys)
        return
    script = [sys.executable, str(Path(__file__).resolve()), "--train", "--block", str(options.block)]
    script += ["--warmup", str(options.warmup), ".", ".", *options.keys]
    threads = {"OMP_NUM_THREADS": str(options.threads)}
    versions = [Timed(script, folder=folder, environment=threads) for folder in options.versions]
    seconds = [[block["seconds"] for block in blocks] for blocks in in_turn(versions, options.rounds)]
    for folder, times in zip(options.versions, seconds, strict=True):
        print(f"{folder}: {statistics.median(times) / options.block * 1e3:.2f} ms a frame")
    ratios = [newer / older for older, newer in zip(*seconds, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    print(f"time, newer to older: {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f} between quartiles)")


if __name__ == "__main__":
    main()
