"""Learning curves as pictures."""

import csv
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sac_torchrl.errors import ConfigError
from sac_torchrl.runs.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes

Array = NDArray[np.float64]

PICTURES = ".png", ".svg"
_COLOR = "#1f5fa8"
_GREY = "#9aa3ad"
# Two-sided 95% quantiles of Student's t for 1 to 30 degrees of freedom; the normal one is within 4% beyond.
# fmt: off
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)
# fmt: on
_NORMAL95 = 1.960
_FEWEST = 3  # half the interval of two runs is six times their difference
_BESIDES = {"seed", "run", "device", "total_frames", "log_every", "checkpoint", "log", "stop"}


def curve(folders: Sequence[Path], path: Path, *, title: str | None = None) -> Path:
    """Draw the returns of one or several run folders against frames to `path`, a PNG or SVG file.

    One folder: the mean evaluation return with one standard deviation over episodes, training returns
    behind. Several: the mean of their evaluations, at the frames all have, from three runs on with its 95% t-interval.
    Raises `ConfigError` for a folder without returns, folders without a common frame, or runs of different settings.
    """
    refuse_different(folders)
    with learning_curve(path, title=title) as axes:
        if len(folders) == 1:
            _one(axes, folders[0])
        else:
            _several(axes, folders)
    return path


@contextmanager
def learning_curve(path: Path, *, title: str | None = None) -> "Iterator[Axes]":
    """Axes to draw returns on, saved as the PNG or SVG file `path` afterward; text in an SVG stays text.

    Raises ConfigError for another kind of file.
    """
    if path.suffix not in PICTURES:
        raise ConfigError(f"{path}: give {' or '.join(f'NAME{suffix}' for suffix in PICTURES)}.")
    # Importing it takes a tenth of the time that a run takes to start.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    yield axes
    label_axes(axes)
    axes.margins(x=0.01)
    axes.legend(frameon=False, fontsize="small", loc="lower right")
    if title:
        axes.set_title(title, fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "sac_torchrl"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def refuse_different(folders: Sequence[Path]) -> None:
    """Raise ConfigError for runs that differ in more than seed, length and place: their mean has no meaning."""
    first: dict[str, Any] | None = None
    for folder in folders:
        path = folder / "config.yaml"
        if not path.is_file():
            continue
        config = _flat(read_settings(path))
        first = first or config
        for key in sorted(first.keys() | config.keys()):
            if key.partition(".")[0] not in _BESIDES and first.get(key) != config.get(key):
                raise ConfigError(
                    f"{folder} is a run with {key}={config.get(key)} and {folders[0]} one with {key}={first.get(key)}: "
                    "their mean says nothing; plot them one by one."
                )


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {path: tree}
    return {key: value for name, one in tree.items() for key, value in _flat(one, f"{path}.{name}".strip(".")).items()}


def metric(folder: Path, name: str) -> tuple[Array, Array]:
    """The frames at which `<folder>/metrics.csv` has a finite `name`, and its values there."""
    try:
        with (folder / "metrics.csv").open(newline="") as file:
            cells = [(row["frames"], row.get(name)) for row in csv.DictReader(file)]
    except OSError as error:
        raise ConfigError(f"{folder} is not a run folder: its metrics.csv cannot be read.") from error
    pairs = np.array([(float(frames), float(cell)) for frames, cell in cells if cell], dtype=np.float64)
    pairs = pairs.reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs[:, 1])]
    return pairs[:, 0], pairs[:, 1]


def evaluations(folders: Sequence[Path]) -> tuple[Array, Array]:
    """The frames `(n,)` at which all run folders have evaluated, and their mean returns there, `(folders, n)`.

    Raises `ConfigError` where there are none.
    """
    runs = [dict(zip(*metric(folder, "eval/return_mean"), strict=True)) for folder in folders]
    common = sorted(set.intersection(*(set(run) for run in runs)) if runs else set())
    if not common:
        raise ConfigError(f"the {len(folders)} run folders have no evaluation at the same frames to compare.")
    return np.array(common), np.array([[run[frames] for frames in common] for run in runs])


def label_axes(axes: "Axes") -> None:
    """Make them those of a learning curve: returns against frames."""
    from matplotlib.ticker import EngFormatter

    axes.set_xlabel("frames")
    axes.set_ylabel("return")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)


def interval(samples: Array) -> tuple[Array, Array]:
    """The mean over the first axis and half the width of its 95% interval, from Student's t."""
    count = len(samples)
    quantile = _T95[count - 2] if count - 2 < len(_T95) else _NORMAL95
    return samples.mean(axis=0), quantile * samples.std(axis=0, ddof=1) / np.sqrt(count)


def _one(axes: "Axes", folder: Path) -> None:
    train_frames, train = metric(folder, "train/return")
    frames, mean = metric(folder, "eval/return_mean")
    if not len(train) and not len(mean):
        raise ConfigError(f"{folder} has no returns to plot yet: let an episode or an evaluation end first.")
    if len(train):
        axes.plot(train_frames, train, color=_GREY, linewidth=0.7, alpha=0.7, label="training episodes")
    if len(mean):
        deviation = dict(zip(*metric(folder, "eval/return_std"), strict=True))
        spread = np.array([deviation.get(frame, 0.0) for frame in frames])
        axes.fill_between(frames, mean - spread, mean + spread, color=_COLOR, alpha=0.2, linewidth=0)
        axes.plot(frames, mean, color=_COLOR, linewidth=1.8, marker=_marker(frames), label="evaluation, mean ± std")
        if len(frames) == 1:  # no band without a width
            axes.errorbar(frames, mean, yerr=spread, color=_COLOR, capsize=3)


def _several(axes: "Axes", folders: Sequence[Path]) -> None:
    common, samples = evaluations(folders)
    for run in samples:
        axes.plot(common, run, color=_GREY, linewidth=0.7, alpha=0.7, marker=_marker(common))
    label = f"mean of {len(samples)} runs"
    mean = samples.mean(axis=0)
    if len(samples) >= _FEWEST:
        mean, half = interval(samples)
        label += ", 95% interval"
        axes.fill_between(common, mean - half, mean + half, color=_COLOR, alpha=0.2, linewidth=0)
        if len(common) == 1:
            axes.errorbar(common, mean, yerr=half, color=_COLOR, capsize=3)
    axes.plot(common, mean, color=_COLOR, linewidth=1.8, marker=_marker(common), label=label)


def _marker(frames: Array) -> str:
    """One point is no line."""
    return "o" if len(frames) == 1 else ""
