"""Sinks: rows arrive once, whatever a sink does never reaches the run, and the trackers themselves in offline mode."""

import csv
import importlib
import importlib.util
import json
import sqlite3
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import ROOT, SMALL, command
from torchrl.record.loggers.csv import CSVLogger

import sac_torchrl as sac
from sac_torchrl.errors import ConfigError
from sac_torchrl.runs import sinks
from sac_torchrl.runs.loggers import Logger
from sac_torchrl.runs.sinks import LogConfig, Sink

QUICK: dict[str, Any] = {
    "total_frames": 100,
    "random_frames": 40,
    "batch_size": 16,
    "variant": {"network": {"hidden": [8]}},
    "learner": {"execution": "eager"},
    "evaluate": {"every": 100, "episodes": 1},
    "log_every": 20,
    "device": "cpu",
}


def rows_of(folder: Path) -> list[tuple[int, dict[str, float]]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            (int(row["frames"]), {name: float(text) for name, text in row.items() if text and name != "frames"})
            for row in csv.DictReader(file)
        ]


def logger_with(function: Callable[[int, Mapping[str, float]], object], folder: Path, at: int | None = None) -> Logger:
    return Logger(folder, resumed_at=at, sinks=LogConfig().build(folder, [function]))


def test_a_function_and_a_logger_of_torchrl_get_every_row_of_the_table(tmp_path: Path) -> None:
    got: list[tuple[int, dict[str, float]]] = []
    torchrl = CSVLogger("theirs", log_dir=str(tmp_path))
    result = sac.train(
        "continuous",
        run={"folder": tmp_path / "run"},
        sinks=[lambda frames, metrics: got.append((frames, dict(metrics))), torchrl],
        **QUICK,
    )
    assert got == rows_of(result.folder)
    assert [frames for frames, _ in got] == [20, 40, 60, 80, 100]
    theirs = (tmp_path / "theirs/scalars/eval/return_mean.csv").read_text().split(",")
    assert int(theirs[0]) == 100
    assert float(theirs[1]) == pytest.approx(result.evaluation.mean)


def test_a_row_that_was_sent_before_a_kill_is_not_sent_again_and_one_that_was_not_is(tmp_path: Path) -> None:
    got: list[int] = []

    def keep(frames: int, metrics: Mapping[str, float]) -> None:
        got.append(frames)

    killed = logger_with(keep, tmp_path)
    for frames in (10, 20, 30):
        killed.log(frames, {"a": frames})
    killed.close()
    note = tmp_path / "sinks/keep-0.json"
    assert json.loads(note.read_text()) == {"run": "", "frames": 30}
    note.write_text(json.dumps({"run": "", "frames": 10}))  # as if 20 and 30 had waited in the queue
    resumed = logger_with(keep, tmp_path, at=20)  # the checkpoint's; 30 is made again
    resumed.log(30, {"a": 30})
    resumed.log(40, {"a": 40})
    resumed.close()
    again = logger_with(keep, tmp_path, at=20)
    again.log(30, {"a": 30})
    again.close()
    assert got == [10, 20, 30, 20, 30, 40]


@pytest.mark.parametrize("moment", ["opening", "logging"])
def test_a_sink_that_raises_is_given_up_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, moment: str
) -> None:
    failed, calls = threading.Event(), list[int]()

    def fail(frames: int, metrics: Mapping[str, float]) -> None:
        calls.append(frames)
        failed.set()
        raise OSError("no route")

    def open(run: str | None) -> sinks.Opened:
        if moment == "opening":
            fail(0, {})
        return sinks.Opened("", fail, lambda: None)

    logger = Logger(tmp_path, resumed_at=None, sinks=[Sink("theirs", tmp_path, open)])
    logger.log(10, {"a": 1})
    assert failed.wait(30)
    logger.log(20, {"a": 1})
    logger.close()
    assert len(calls) == 1
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "the sink theirs raised OSError('no route') and gets no more rows: the run continues."
    ]
    assert len(rows_of(tmp_path)) == 2


@pytest.mark.parametrize("rows", [1, 20])
def test_a_sink_that_hangs_costs_a_run_no_more_than_the_limit_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, rows: int
) -> None:
    monkeypatch.setattr(sinks, "ROWS", 5)
    monkeypatch.setattr(sinks, "CLOSING", 0.1)
    release, other = threading.Event(), list[int]()

    def hang(frames: int, metrics: Mapping[str, float]) -> None:
        release.wait(60)

    both = [hang, lambda frames, metrics: other.append(frames)]
    logger = Logger(tmp_path, resumed_at=None, sinks=LogConfig().build(tmp_path, both))
    for frames in range(1, rows + 1):
        logger.log(frames, {"a": 1})
        while len(other) < frames:  # the other sink keeps up
            release.wait(0.001)
    logger.close()
    release.set()
    assert other == list(range(1, rows + 1))
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert warnings[0].startswith("the sink hang-0 " + ("was not done" if rows == 1 else "has taken nothing"))


def test_an_import_collects_no_garbage_and_takes_no_trackers_which_are_refused_where_they_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = """
import gc, sys
walks = []  # over all objects: a fifth of the time that the import takes
gc.callbacks.append(lambda phase, info: walks.append(phase) if info["generation"] == 2 else None)
from sac_torchrl import train
print(len(walks), gc.isenabled(), sorted({"wandb", "mlflow", "trackio", "alembic"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "0 True []\n"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"log.sinks=\[trackio\] needs trackio: pip install 'sac_torchrl\[trackio\]'"):
        sac.train("continuous", log={"sinks": ["trackio"]}, **QUICK)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sinks": ["wandb", "wandb"]}, r"log.sinks=\[wandb,wandb\]: give each once"),
        ({"sinks": ["neptune"]}, r"log.sinks=\['neptune'\]: give one of wandb, mlflow, trackio"),
        ({"project": " "}, r"log.project is empty"),
    ],
)
def test_settings_without_a_meaning_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LogConfig(**given)


def test_trackio_sends_nothing_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "require", lambda name, asked_by: None)
    monkeypatch.setenv("TRACKIO_SPACE_ID", "someone/space")
    with pytest.raises(ConfigError, match=r"log.offline=true: trackio would send to \$TRACKIO_SPACE_ID"):
        LogConfig(["trackio"], offline=True).check()


def wandb_records(content: bytes) -> Iterator[bytes]:
    """LevelDB's log format: blocks of 32 KiB, chunks with a checksum, a length and a kind, after 7 bytes of W&B's."""
    assert content[:4] == b":W&B"
    at, record = 7, b""
    while at + 7 <= len(content):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield record
            record = b""


def wandb_rows(folder: Path) -> tuple[dict[str, Any], list[tuple[int, dict[str, float]]], set[str]]:
    proto: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")

    config: dict[str, Any] = {}
    rows: list[tuple[int, dict[str, float]]] = []
    ids = set()
    for path in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")):
        for data in wandb_records(path.read_bytes()):
            record = proto.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
            for update in (*record.config.update, *record.run.config.update):
                config[update.key] = json.loads(update.value_json)
            if record.WhichOneof("record_type") == "history":
                items = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                step = next(value for key, value in items.items() if key.endswith("/step"))
                plain = {
                    key: float(value) for key, value in items.items() if key[0] != "_" and not key.endswith("step")
                }
                rows.append((step, plain))
    config.pop("_wandb", None)
    return config, rows, ids


def mlflow_rows(folder: Path) -> tuple[dict[str, Any], list[tuple[int, dict[str, float]]], set[str]]:
    mlflow: Any = importlib.import_module("mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{folder.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("sac_torchrl")
    (run,) = client.search_runs([experiment.experiment_id])
    rows: dict[int, dict[str, float]] = {}
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            assert name not in rows.setdefault(metric.step, {})
            rows[metric.step][name] = metric.value
    return dict(run.data.params), sorted(rows.items()), {run.info.run_id}


def trackio_rows(folder: Path) -> tuple[dict[str, Any], list[tuple[int, dict[str, float]]], set[str]]:
    (path,) = (folder.parent / "trackio").glob("*.db")
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT step, metrics FROM metrics ORDER BY id").fetchall()
        configs = database.execute("SELECT config FROM configs").fetchall()
        names = {name for (name,) in database.execute("SELECT DISTINCT run_name FROM metrics")}
    return json.loads(configs[0][0]), [(step, json.loads(text)) for step, text in rows], names


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's use of SQLAlchemy
def test_trackers_have_the_rows_of_the_table_under_one_run_over_a_resume(tmp_path: Path) -> None:
    for tracker in sinks.TRACKERS:
        pytest.importorskip(tracker)
    folder, secret = tmp_path / "run", "5ecre7" * 7
    environment = {"TRACKIO_DIR": str(tmp_path / "trackio"), "WANDB_API_KEY": secret, "HF_HUB_OFFLINE": "1"}
    chosen = [f"log.sinks=[{','.join(sinks.TRACKERS)}]", "log.offline=true", "log_every=20", "total_frames=100"]
    for words in (
        ["train", "continuous", "run.folder=run", *SMALL, *chosen],
        ["resume", "run", "total_frames=200"],
    ):
        code, _, errors = command(*words, cwd=tmp_path, environment=environment)
        assert code == 0, errors
        assert "the sink" not in errors
    wanted = rows_of(folder)
    content = yaml.safe_load((folder / "config.yaml").read_text())
    for read in (wandb_rows, mlflow_rows, trackio_rows):
        config, rows, runs = read(folder)
        assert len(runs) == 1
        assert [frames for frames, _ in rows] == [frames for frames, _ in wanted] == list(range(20, 201, 20))
        for (_, got), (_, row) in zip(rows, wanted, strict=True):
            assert got == pytest.approx(row, nan_ok=True, rel=1e-12)
        if read is mlflow_rows:
            assert config["learner.lr"] == str(content["learner"]["lr"])
        else:
            assert config["learner"] == content["learner"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
