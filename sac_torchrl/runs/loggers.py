"""The loggers of a run: metrics.csv, TensorBoard events, and a progress bar."""

import csv
import io
import logging
import math
import sys
import time
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from sac_torchrl.files import write_whole
from sac_torchrl.runs.sinks import Sink, close

log = logging.getLogger(__name__)

_SHOWN = {"return": "train/return", "eval": "eval/return_mean"}


class Logger:
    """Writes metrics to `<folder>/metrics.csv` and `<folder>/tensorboard`.

    The CSV has one row a call, `frames` first, and one column a metric; a cell is empty where a call did
    not have that metric. A resumed run continues at `resumed_at` frames: later rows and events are dropped
    from both. `None` starts empty files. `sinks` receive every row once.
    """

    def __init__(self, folder: Path, *, resumed_at: int | None, sinks: Sequence[Sink] = ()) -> None:
        self._path = folder / "metrics.csv"
        folder.mkdir(parents=True, exist_ok=True)
        self._columns, rows = ["frames"], list[dict[str, str]]()
        if resumed_at is not None and self._path.exists():
            self._columns, rows = _read(self._path)
            rows = [row for row in rows if int(row["frames"]) <= resumed_at]
        self._rewrite(rows)
        first = 0 if resumed_at is None else resumed_at + 1
        self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=first)
        self._sinks = sinks
        for sink in sinks:
            sink.start([_numbers(row) for row in rows])

    def log(self, frames: int, metrics: Mapping[str, float]) -> None:
        """Add a row, on disk when this returns; no metrics, no row. An infinite value is written as nan."""
        if not metrics:
            return
        values = {name: _finite(value) for name, value in metrics.items()}
        new = [name for name in values if name not in self._columns]
        if new:
            self._file.close()
            _, rows = _read(self._path)
            self._columns += new
            self._rewrite(rows)
        self._writer.writerow({"frames": frames} | values)
        self._file.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, frames)
        for sink in self._sinks:
            sink.log(frames, values)

    def close(self) -> None:
        """Close both files and the sinks; waits `sinks.CLOSING` seconds for these at most."""
        self._file.close()
        self._tensorboard.close()
        close(self._sinks)

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        """Replace the file by one of the present columns, so that a reader finds the old or the new one."""
        table = io.StringIO()
        writer = csv.DictWriter(table, self._columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self._path, table.getvalue())
        self._file = self._path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, self._columns, lineterminator="\n")


_BARS = (  # the longest that fits is shown
    "{percentage:3.0f}%|{bar}| {n}/{total} [{remaining} left, {rate_noinv_fmt}{postfix}]",
    "{percentage:3.0f}% {n}/{total} [{remaining} left{postfix}]",
    "{percentage:3.0f}% {n}/{total} [{remaining} left]",
)


class _Bar(tqdm):  # type: ignore[type-arg]  # it takes none when it runs
    """A bar that leaves out what a narrow terminal has no room for."""

    @property
    def format_dict(self) -> MutableMapping[str, Any]:
        shown = super().format_dict
        shown["total"] = max(shown["total"], shown["n"])  # whole steps of all environments may exceed it
        for form in _BARS:
            text = tqdm.format_meter(**{**shown, "bar_format": form.replace("{bar}", ""), "ncols": None})
            if len(text) < (shown["ncols"] or math.inf):
                break
        return {**shown, "bar_format": form}


class Progress:
    """A bar on standard error: frames, the newest returns, frames per second and the time left.

    Where standard error is not a terminal it is a line every tenth of the run instead. `initial` is the
    frames a resumed run continues from.
    """

    def __init__(self, total: int, *, initial: int = 0, file: TextIO | None = None) -> None:
        self._file: TextIO | None = file or sys.stderr  # which a daemon may have closed
        self._total = total
        self._initial = initial
        self._tenth = 10 * initial // total
        self._started = time.monotonic()
        self._returns: dict[str, str] = {}
        self._bar = _Bar(
            total=total,
            initial=initial,
            file=self._file,
            disable=self._file is None or not self._file.isatty(),
            unit=" frames",
            dynamic_ncols=True,
        )

    def update(self, frames: int, metrics: Mapping[str, float] | None = None) -> None:
        """Show that the run is at `frames`, and the returns among `metrics`."""
        for word, name in _SHOWN.items():
            if metrics and name in metrics:
                self._returns[word] = f"{metrics[name]:.1f}"
        self._bar.set_postfix(self._returns, refresh=False)
        self._bar.update(frames - self._bar.n)
        tenth = 10 * frames // self._total
        if self._bar.disable and tenth > self._tenth:
            self._tenth = tenth
            try:
                print(self._line(frames), file=self._file, flush=True)
            except OSError as error:  # A terminal that was closed is no reason to lose a run.
                log.debug("standard error is closed: %s", error.strerror)

    def close(self) -> None:
        """Close the bar, which stays on the screen."""
        self._bar.close()

    def _line(self, frames: int) -> str:
        rate = (frames - self._initial) / max(time.monotonic() - self._started, 1e-9)
        left = tqdm.format_interval(max(0, self._total - frames) / rate)
        returns = "".join(f", {word}={value}" for word, value in self._returns.items())
        return f"{frames}/{self._total} frames, {left} left, {rate:.0f} frames/s{returns}"


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    text = path.read_text()
    # A process killed while writing leaves a line without its end.
    reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
    rows = list(reader)
    return list(reader.fieldnames or ["frames"]), rows


def _numbers(row: Mapping[str, str]) -> tuple[int, dict[str, float]]:
    return int(row["frames"]), {name: float(text) for name, text in row.items() if text and name != "frames"}


def _finite(value: float) -> float:
    value = float(value)
    return value if math.isfinite(value) else math.nan
