"""Where metrics go besides the run folder: trackers of experiments, loggers of TorchRL, functions of the user."""

import json
import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from torchrl.record.loggers.common import Logger as TorchRLLogger

from sac_torchrl.errors import ConfigError, short
from sac_torchrl.extras import require
from sac_torchrl.fields import check, field
from sac_torchrl.files import write_whole
from sac_torchrl.runs.folder import CONFIG

log = logging.getLogger(__name__)

TRACKERS = ("wandb", "mlflow", "trackio")
ROWS = 1_000  # that may wait for a sink before it is given up
CLOSING = 30.0  # seconds that all sinks together have at the end of a run

Metrics: TypeAlias = Mapping[str, float]
Handed: TypeAlias = Callable[[int, Metrics], object] | TorchRLLogger
"""What `sac.train` takes as a sink: a function of frames and metrics, or one of TorchRL's loggers."""


@dataclass
class LogConfig:
    """Trackers that receive the configuration and the rows of metrics.csv, each once, also over resumes.

    A tracker that fails or hangs is dropped with a warning; the run never waits for it. W&B keeps its files in the run
    folder. MLflow writes to $MLFLOW_TRACKING_URI or to mlflow.db beside the run folder, trackio to $TRACKIO_DIR.
    """

    sinks: list[str] = field([], "trackers that receive the metrics, as in [wandb,mlflow]", choices=TRACKERS)
    project: str = field("sac_torchrl", "the trackers' project; MLflow calls it an experiment")
    offline: bool = field(False, "send nothing: W&B writes for `wandb sync`, the others only on this machine")

    def __post_init__(self) -> None:
        repeated = len(set(self.sinks)) < len(self.sinks)
        check(
            self,
            "log",
            (not repeated, f"log.sinks=[{','.join(map(str, self.sinks))}]: give each once."),
            (bool(self.project.strip()), "log.project is empty: give a name."),
        )

    def check(self) -> None:
        """Raise ConfigError where the package of a tracker is missing."""
        for name in self.sinks:
            require(name, f"log.sinks=[{name}]")
        if "mlflow" in self.sinks and _mlflow_uri(Path(), offline=self.offline).startswith("sqlite"):
            require("alembic", "log.sinks=[mlflow] without a server")
        remote = [name for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL") if os.environ.get(name)]
        if "trackio" in self.sinks and self.offline and remote:
            raise ConfigError(f"log.offline=true: trackio would send to ${remote[0]}: unset it.")

    def build(self, folder: Path, handed: Sequence[Handed] = ()) -> list["Sink"]:
        """Make a sink for each tracker and for each of `handed`; nothing is opened before its first row."""
        sinks = [Sink(name, folder, partial(self._open, name, folder)) for name in self.sinks]
        for number, one in enumerate(handed):
            name = f"{getattr(one, '__name__', type(one).__name__).strip('<>')}-{number}"
            sinks.append(Sink(name, folder, partial(_handed, one)))
        return sinks

    def _open(self, name: str, folder: Path, run: str | None) -> "Opened":
        return _OPEN[name](self, folder, run, yaml.safe_load((folder / CONFIG).read_text()))


@dataclass(frozen=True)
class Opened:
    """A tracker's run: its id there, what takes a row, and what ends it."""

    run: str
    log: Callable[[int, Metrics], object]
    close: Callable[[], object]


class Sink:
    """Passes rows to a tracker in a thread; whatever happens there, the run continues.

    `open` is called in the thread with the tracker's run that an earlier process made, or None. That run and the frames
    of the newest row sent are in `sinks/NAME.json`, so that a resumed run sends no row twice.
    """

    def __init__(self, name: str, folder: Path, open: Callable[[str | None], Opened]) -> None:
        self._name = name
        self._open = open
        self._path = folder / "sinks" / f"{name}.json"
        self._rows: queue.Queue[tuple[int, Metrics] | None] = queue.Queue(ROWS)
        self._given_up = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, rows: Sequence[tuple[int, Metrics]]) -> None:
        """Begin, with the `rows` that are in metrics.csv already; those sent before are left out."""
        self._thread = threading.Thread(target=self._work, args=[rows], name=f"sink {self._name}", daemon=True)
        self._thread.start()

    def log(self, frames: int, metrics: Metrics) -> None:
        """Queue a row, at once; a sink that `ROWS` wait for is given up."""
        if self._given_up.is_set():
            return
        try:
            self._rows.put_nowait((frames, metrics))
        except queue.Full:
            self._give_up(f"has taken nothing for {ROWS} rows")

    def finish(self) -> None:
        """Say that no row follows; returns at once."""
        if not self._given_up.is_set():
            try:
                self._rows.put_nowait(None)
            except queue.Full:
                self._give_up(f"has {ROWS} rows to take at the end")

    def join(self, deadline: float) -> None:
        """Wait for what is queued until `time.monotonic()` is `deadline`."""
        if self._thread is not None and not self._given_up.is_set():
            self._thread.join(max(0.0, deadline - time.monotonic()))
            if self._thread.is_alive():
                self._give_up(f"was not done {CLOSING:g} s after the end")

    def _work(self, rows: Sequence[tuple[int, Metrics]]) -> None:
        try:
            sent: dict[str, Any] = json.loads(self._path.read_text()) if self._path.exists() else {}
            opened, newest = self._open(sent.get("run")), int(sent.get("frames", -1))
            self._note(opened.run, newest)
            for frames, metrics in chain(rows, iter(self._rows.get, None)):
                if self._given_up.is_set():
                    return
                if frames > newest:
                    # First the note: a process that is killed between the two leaves a row out, and none twice.
                    self._note(opened.run, frames)
                    opened.log(frames, metrics)
                    newest = frames
            opened.close()
        except Exception as error:
            log.debug("the sink %s raised", self._name, exc_info=True)
            self._give_up(f"raised {short(repr(error))}")

    def _note(self, run: str, frames: int) -> None:
        self._path.parent.mkdir(exist_ok=True)
        write_whole(self._path, json.dumps({"run": run, "frames": frames}))

    def _give_up(self, why: str) -> None:
        if not self._given_up.is_set():
            self._given_up.set()
            log.warning("the sink %s %s and gets no more rows: the run continues.", self._name, why)


def close(sinks: Sequence[Sink]) -> None:
    """Let all sinks finish side by side, for at most `CLOSING` seconds."""
    for sink in sinks:
        sink.finish()
    deadline = time.monotonic() + CLOSING
    for sink in sinks:
        sink.join(deadline)


def _wandb(config: LogConfig, folder: Path, run: str | None, content: dict[str, Any]) -> Opened:
    wandb: Any = require("wandb", "log.sinks=[wandb]")
    from torchrl.record.loggers.wandb import WandbLogger

    id = run or uuid.uuid4().hex[:8]
    logger = WandbLogger(
        folder.name,
        save_dir=folder,
        id=id,
        project=config.project,
        # TorchRL's own `offline` sets an environment variable for all later runs of the process.
        mode="offline" if config.offline else None,
        # It lists the paths of this machine.
        log_env_packages=False,
        reinit="create_new",
        settings=wandb.Settings(console="off", silent=True, save_code=False),
    )
    if run is None:
        logger.log_hparams(content)
    return Opened(id, _rows_of(logger), logger.experiment.finish)


def _mlflow(config: LogConfig, folder: Path, run: str | None, content: dict[str, Any]) -> Opened:
    mlflow: Any = require("mlflow", "log.sinks=[mlflow]")
    from torchrl.record.loggers.mlflow import MLFlowLogger

    class Resumable(MLFlowLogger):
        """TorchRL's logger makes a new run of MLflow each time."""

        def _create_experiment(self) -> Any:
            self.id = mlflow.set_experiment(config.project).experiment_id
            return mlflow.start_run(run_id=run, run_name=None if run else folder.name)

    logger = Resumable(config.project, _mlflow_uri(folder, offline=config.offline))
    if run is None:
        flat = list(_flat(content).items())
        for start in range(0, len(flat), 100):  # the most at once, and the longest value, that MLflow takes
            logger.log_hparams({key: str(value)[:6_000] for key, value in flat[start : start + 100]})
    return Opened(logger.experiment.info.run_id, _rows_of(logger), mlflow.end_run)


def _mlflow_uri(folder: Path, *, offline: bool) -> str:
    local = f"sqlite:///{folder.parent / 'mlflow.db'}"
    return local if offline else os.environ.get("MLFLOW_TRACKING_URI", local)


def _trackio(config: LogConfig, folder: Path, run: str | None, content: dict[str, Any]) -> Opened:
    from torchrl.record.loggers.trackio import TrackioLogger

    # It knows its runs by name alone.
    name = run or f"{folder.name}-{uuid.uuid4().hex[:8]}"
    logger = TrackioLogger(
        name,
        config.project,
        config=content,
        embed=False,
        auto_log_cpu=False,
        auto_log_gpu=False,
    )
    # TorchRL's `log_metrics` makes a row of trackio for each metric.
    row = logger.experiment.log
    return Opened(name, lambda frames, metrics: row(dict(metrics), step=frames), logger.experiment.finish)


def _handed(one: Handed, run: str | None) -> Opened:
    rows = _rows_of(one) if isinstance(one, TorchRLLogger) else lambda frames, metrics: one(frames, dict(metrics))
    return Opened("", rows, lambda: None)


def _rows_of(logger: TorchRLLogger) -> Callable[[int, Metrics], object]:
    return lambda frames, metrics: logger.log_metrics(dict(metrics), step=frames)


def _flat(content: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return flat


_OPEN = {"wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}
