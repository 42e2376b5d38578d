import csv
import errno
import io
import math
import os
import pty
import re
import sys
import termios
from pathlib import Path
from typing import Any, NoReturn

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sac_torchrl.runs.loggers import Logger, Progress


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def events(folder: Path, name: str) -> list[tuple[int, float]]:
    path = str(folder / "tensorboard")
    reader: Any = EventAccumulator(path)  # type: ignore[no-untyped-call]  # tensorboard leaves it unannotated
    reader.Reload()
    return [(event.step, event.value) for event in reader.Scalars(name)]


def test_metrics_arrive_in_the_table_and_in_tensorboard(tmp_path: Path) -> None:
    logger = Logger(tmp_path, resumed_at=None)
    logger.log(100, {"train/return": -1.5})
    logger.log(200, {"train/return": 0.1 + 0.2})
    logger.close()
    assert [list(row.values()) for row in table(tmp_path)] == [
        ["100", "-1.5"],
        ["200", "0.30000000000000004"],
    ]
    assert events(tmp_path, "train/return") == [(100, -1.5), (200, pytest.approx(0.3))]


def test_a_row_is_in_the_file_when_log_returns(tmp_path: Path) -> None:
    logger = Logger(tmp_path, resumed_at=None)
    for frames in (1, 2, 3):
        logger.log(frames, {"train/return": frames})
        assert len(table(tmp_path)) == frames
    logger.log(4, {})
    assert len(table(tmp_path)) == 3, "nothing to say"
    logger.close()


def test_a_new_metric_becomes_a_column_and_earlier_rows_stay(tmp_path: Path) -> None:
    logger = Logger(tmp_path, resumed_at=None)
    logger.log(1, {"train/return": 1})
    logger.log(2, {"eval/return_mean": 5, "eval/return_std": 0})
    logger.log(3, {"train/return": 2})
    logger.close()
    assert table(tmp_path) == [
        {"frames": "1", "train/return": "1.0", "eval/return_mean": "", "eval/return_std": ""},
        {"frames": "2", "train/return": "", "eval/return_mean": "5.0", "eval/return_std": "0.0"},
        {"frames": "3", "train/return": "2.0", "eval/return_mean": "", "eval/return_std": ""},
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.csv", "tensorboard"}


def test_a_value_that_is_not_finite_is_written_as_nan(tmp_path: Path) -> None:
    logger = Logger(tmp_path, resumed_at=None)
    logger.log(1, {"a": math.inf, "b": -math.inf, "c": math.nan})
    logger.close()
    assert [list(row.values()) for row in table(tmp_path)] == [["1", "nan", "nan", "nan"]]
    assert all(math.isnan(events(tmp_path, name)[0][1]) for name in "abc")


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    killed = Logger(tmp_path, resumed_at=None)
    for frames in (10, 20, 30, 40):
        killed.log(frames, {"train/return": frames})
    killed.close()
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1")  # the start of row 100 from a process that was killed

    resumed = Logger(tmp_path, resumed_at=20)
    resumed.log(30, {"train/return": -1, "train/alpha": 0.5})
    resumed.close()
    assert [list(row.values()) for row in table(tmp_path)] == [
        ["10", "10.0", ""],
        ["20", "20.0", ""],
        ["30", "-1.0", "0.5"],
    ]
    assert events(tmp_path, "train/return") == [(10, 10), (20, 20), (30, -1)]


def test_a_run_that_starts_again_without_a_checkpoint_starts_an_empty_table(tmp_path: Path) -> None:
    killed = Logger(tmp_path, resumed_at=None)
    killed.log(10, {"train/return": 1})
    killed.close()
    again = Logger(tmp_path, resumed_at=None)
    again.log(5, {"train/length": 2})
    again.close()
    assert table(tmp_path) == [{"frames": "5", "train/length": "2.0"}]


def test_without_a_terminal_there_is_a_line_every_tenth(tmp_path: Path) -> None:
    out = io.StringIO()
    progress = Progress(1_000, initial=250, file=out)
    for frames in range(251, 1_001):
        progress.update(frames, {"train/return": -frames} if frames % 50 == 0 else None)
    progress.update(1_000, {"eval/return_mean": 7.25})
    progress.close()
    lines = out.getvalue().splitlines()
    assert [line.split("/")[0] for line in lines] == [str(frames) for frames in range(300, 1_001, 100)]
    assert lines[0].startswith("300/1000 frames, 00:0")
    assert lines[0].endswith(" frames/s, return=-300.0")
    assert "\r" not in out.getvalue()


def test_a_process_without_standard_error_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # as Python sets it for a daemon that closed it
    progress = Progress(10)
    progress.update(10)
    progress.close()


def test_on_a_terminal_there_is_a_bar_with_returns_rate_and_time_left() -> None:
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (24, 120))
    with os.fdopen(writer, "w") as terminal:
        progress = Progress(1_000, initial=500, file=terminal)
        progress.update(700, {"train/return": -12.34, "eval/return_mean": 3})
        progress.close()
        shown = b""
        while not shown.endswith(b"\n"):
            shown += os.read(reader, 1_000)
    os.close(reader)
    last = shown.decode().strip().split("\r")[-1]
    assert last.startswith(" 70%|█")
    assert "700/1000 [" in last
    assert "left" in last
    assert "frames/s, return=-12.3, eval=3.0]" in last


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (70, " 70% 700/1000 [00:00 left, return=-12345.6, eval=-12345.6]"),
        (40, " 70% 700/1000 [00:00 left]"),
    ],
)
def test_a_narrow_terminal_has_whole_words(columns: int, shown: str) -> None:
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (24, columns))
    with os.fdopen(writer, "w") as terminal:
        progress = Progress(1_000, initial=699, file=terminal)
        progress.update(700, {"train/return": -12345.6, "eval/return_mean": -12345.6})
        progress.close()
        drawn = b""
        while not re.search(rb"700/1000 \[.*\]", drawn):  # a terminal passes on what it has, which may be a part
            drawn += os.read(reader, 10_000)
        last = drawn.decode().strip().split("\r")[-1]
    os.close(reader)
    assert re.sub(r"\[[\d:]+ left", "[00:00 left", last).rstrip() == shown


@pytest.mark.parametrize("terminal", [True, False])
def test_a_step_beyond_the_total_leaves_no_negative_time(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: terminal)
    progress = Progress(1_000, initial=100, file=out)
    progress.update(1_099)
    progress.close()
    last = out.getvalue().strip().split("\r")[-1]
    assert "00:00 left" in last and "-" not in last and "None" not in last
    assert last.startswith("100%" if terminal else "1099/1000 frames")


def test_the_table_is_on_disk_before_it_replaces_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = Logger(tmp_path, resumed_at=None)
    logger.log(1, {"a": 1.0})
    old = (tmp_path / "metrics.csv").read_text()

    def fail(descriptor: int) -> NoReturn:
        assert Path(f"/proc/self/fd/{descriptor}").readlink().name != "metrics.csv"
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as failing:
        failing.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output error"):
            logger.log(2, {"b": 2.0})
    assert (tmp_path / "metrics.csv").read_text() == old
    logger.close()
