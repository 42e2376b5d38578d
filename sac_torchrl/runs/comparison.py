"""Comparing returns: paired differences, interquartile means, bootstrap intervals, probabilities of improvement."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sac_torchrl.runs.plots import evaluations, interval, learning_curve

Array = NDArray[np.float64]

_FEWEST = 3  # runs that an interval needs
_COLORS = "#1f5fa8", "#c8541e", "#2b8a57", "#8a4fa3", "#a8891f", "#5c6670"
_MARKERS = "o", "s", "^", "D", "v", "P"


def paired_difference(new: Sequence[float], old: Sequence[float]) -> dict[str, float | int | None]:
    """The mean of `new` minus `old`, episode by episode on the same seeds, and its 95 % interval by Student's t.

    One pair has no spread: the bounds are null.
    """
    differences = np.array(new, np.float64) - np.array(old, np.float64)
    if len(differences) < 2:
        return {"mean": float(differences.mean()), "low": None, "high": None, "pairs": len(differences)}
    mean, half = interval(differences)
    return {
        "mean": float(mean),
        "low": float(mean - half),
        "high": float(mean + half),
        "pairs": len(differences),
    }


def interquartile_mean(scores: Array) -> float:
    """The interquartile mean: a quarter of the scores, rounded down, is left out at either end.

    Agarwal et al. 2021 (arXiv 2108.13264); as scipy.stats.trim_mean(scores, 0.25) of all runs and tasks together.
    """
    flat = np.sort(scores, axis=None)
    cut = int(0.25 * flat.size)
    return float(flat[cut : flat.size - cut].mean())


def stratified_bootstrap(scores: Array, *, resamples: int = 10_000, seed: int = 0) -> Array:
    """Interquartile means `(resamples,)` of scores `(runs, tasks)`, with runs resampled for each task separately.

    Agarwal et al. 2021 (arXiv 2108.13264), section 4.2.
    """
    runs, tasks = scores.shape
    drawn = np.random.default_rng(seed).integers(0, runs, (resamples, runs, tasks))
    flat = np.sort(scores[drawn, np.arange(tasks)].reshape(resamples, -1), axis=1)
    cut = int(0.25 * flat.shape[1])
    middle: Array = flat[:, cut : flat.shape[1] - cut].mean(axis=1)
    return middle


def percentile_interval(resampled: Array, confidence: float = 0.95) -> tuple[float, float]:
    """The percentile interval that leaves out the same share at either end."""
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(resampled, [tail, 100.0 - tail])
    return float(low), float(high)


def probability_of_improvement(new: Array, old: Array) -> float:
    """How likely a run of `new` is better than one of `old`, ties half; the mean over tasks of `(runs, tasks)` each.

    For one task it is Mann and Whitney's U divided by the number of pairs (Agarwal et al. 2021, section 4.3).
    """
    pairs = new[:, None, :] - old[None, :, :]
    return float(((pairs > 0) + 0.5 * (pairs == 0)).mean())


@dataclass(frozen=True)
class Group:
    """Scores of the runs of a group and their statistics; `improvement` is the probability of it over the first group.

    `interval` is the 95 % bootstrap interval of `iqm`, null for one or two runs, which are too few for it.
    """

    name: str
    scores: list[float]
    mean: float
    iqm: float
    interval: tuple[float, float] | None
    improvement: float | None


def compare_groups(scores: Mapping[str, Sequence[float]]) -> list[Group]:
    """Summarize the scores of the runs of each group, all of one task."""
    groups: list[Group] = []
    for name, own in scores.items():
        column = np.array(own, np.float64)[:, None]
        first = np.array(groups[0].scores, np.float64)[:, None] if groups else None
        groups.append(
            Group(
                name,
                [float(score) for score in own],
                float(column.mean()),
                interquartile_mean(column),
                percentile_interval(stratified_bootstrap(column)) if len(own) >= _FEWEST else None,
                None if first is None else probability_of_improvement(column, first),
            )
        )
    return groups


def draw_groups(groups: Mapping[str, Sequence[Path]], path: Path, *, title: str | None = None) -> Path:
    """Draw the interquartile mean return of each group of run folders to `path`, a PNG or SVG file.

    Each at the frames that all of its runs have, with its 95 % bootstrap interval where there are three runs or more.
    """
    with learning_curve(path, title=title) as axes:
        for number, (name, folders) in enumerate(groups.items()):
            frames, returns = evaluations(folders)
            columns = [returns[:, [at]] for at in range(len(frames))]
            color, marker = _COLORS[number % len(_COLORS)], _MARKERS[number % len(_MARKERS)]
            label = f"{name} ({len(folders)} {'run' if len(folders) == 1 else 'runs'})"
            middle = [interquartile_mean(column) for column in columns]
            every = max(1, len(frames) // 10)
            axes.plot(frames, middle, color=color, linewidth=1.8, marker=marker, markevery=every, label=label)
            if len(folders) >= _FEWEST:
                bounds = [percentile_interval(stratified_bootstrap(column, resamples=2_000)) for column in columns]
                low, high = zip(*bounds, strict=True)
                axes.fill_between(frames, low, high, color=color, alpha=0.2, linewidth=0)
    return path
