"""Evaluation returns of several runs at given frames: `python benchmarks/returns.py FRAMES[,FRAMES] FOLDER...`.

Prints, for each number of frames, every run's mean evaluation return, then their mean and its 95% interval.
"""

import sys
from pathlib import Path

import numpy as np

from sac_torchrl.plots import interval, metric


def main() -> None:
    """Read the folders' metrics.csv and print one line for each number of frames."""
    frames, folders = [int(word) for word in sys.argv[1].split(",")], [Path(word) for word in sys.argv[2:]]
    runs = [dict(zip(*metric(folder, "eval/return_mean"), strict=True)) for folder in folders]
    for number in frames:
        samples = np.array([[run[number]] for run in runs])
        mean, half = interval(samples)
        each = ", ".join(f"{value:,.0f}" for value in samples[:, 0])
        print(f"{number:,} frames: {each}; mean {mean[0]:,.0f} ± {half[0]:,.0f}")


if __name__ == "__main__":
    main()
