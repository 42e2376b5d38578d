import csv
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

import sac_torchrl
from sac_torchrl.cli import doctor
from sac_torchrl.cli.main import main

ROOT = Path(sac_torchrl.__file__).parents[1]
SHORT = [
    "total_frames=400",
    "random_frames=100",
    "batch_size=32",
    "log_every=100",
    "evaluate.every=200",
    "evaluate.episodes=2",
    "checkpoint.every=200",
]


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sac_torchrl", *words],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def evaluation(folder: Path) -> Any:
    return json.loads((folder / "evaluation.json").read_text())


def logged(folder: Path) -> list[int]:
    with (folder / "metrics.csv").open() as file:
        return [int(row["frames"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run of the discrete recipe, made by the command."""
    folder = tmp_path_factory.mktemp("runs") / "short run"
    done = command("train", "discrete", *SHORT, f"run.folder='{folder}'", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder


def test_train_leaves_a_whole_run(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} >= {
        "config.yaml",
        "metrics.csv",
        "tensorboard",
        "curve.png",
        "checkpoints",
        "replay",
        "run.log",
        "evaluation.json",
    }
    assert [path.name for path in trained.parent.iterdir()] == [trained.name]
    assert logged(trained)[-1] == 400


def test_evaluate_repeats_the_last_evaluation_of_the_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    during = evaluation(trained)
    assert (during["env"], during["frames"], during["seed"]) == ("CartPole-v1", 400, 0)
    before = (trained / "evaluation.json").read_bytes()
    main(["evaluate", str(trained)])
    assert json.loads(capsys.readouterr().out) == during
    main(["evaluate", str(trained), "--episodes", "3", "--output", str(trained / "more.json")])
    assert (trained / "evaluation.json").read_bytes() == before
    more = json.loads((trained / "more.json").read_text())
    assert len(more["returns"]) == len(more["lengths"]) == 3


def test_evaluate_prints_its_result_where_no_file_can_be_written(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> NoReturn:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "fsync", full)
    output = trained / "unwritten.json"
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(trained), "--episodes", "1", "--video", "--output", str(output)])
    assert ended.value.code == 74
    said = capsys.readouterr()
    assert len(json.loads(said.out)["returns"]) == 1
    (line,) = said.err.splitlines()
    reason = "cannot be written (Read-only file system): make it writable."
    assert line == (f"error: the result is printed, but {trained / 'videos' / '400.mp4'} {reason} {output} {reason}")
    assert not output.exists()


def test_plot_draws_one_run_and_several(trained: Path, tmp_path: Path) -> None:
    picture = trained / "curve.png"
    picture.unlink()
    main(["plot", str(trained)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    main(["plot", str(trained), str(trained), "--output", str(tmp_path / "both.png")])
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_resume_continues_where_the_run_stopped(trained: Path) -> None:
    before = logged(trained)
    done = command("resume", str(trained), "total_frames=500", cwd=trained.parent)
    assert done.returncode == 0, done.stderr
    assert "resumed in" in done.stderr
    after = logged(trained)
    assert after[: len(before)] == before
    assert after[-1] == 500
    assert evaluation(trained)["frames"] == 500
    assert (trained / "checkpoints" / "500").is_dir()
    assert [path.name for path in trained.parent.iterdir()] == [trained.name]


def test_verify_reads_every_checkpoint_and_shows_digests(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["verify", str(trained), "--digest"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines] == [["500", "intact"], ["400", "intact"]]
    assert all(len(line[2]) == 64 for line in lines)
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    file = copy / "checkpoints" / "400" / "state.json"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(SystemExit) as end:
        main(["verify", str(copy)])
    assert end.value.code == 65
    said = capsys.readouterr()
    assert "400 damaged: " in said.out and "500 intact" in said.out
    assert said.err.startswith("error: 1 of 2 checkpoints are damaged") and "400/state.json" in said.err


@pytest.mark.parametrize(
    ("id", "code", "kind", "said"),
    [
        ("Sound-v0", 0, "note", "3 episodes of random actions took [10, 10, 10] frames"),
        ("Sound-v0", 0, "note", "continues in the middle of its episodes"),
        ("Opaque-v0", 0, "note", "episodes are cut at every checkpoint, because Opaque._socket"),
        ("Unseeded-v0", 0, "warning", "the same seed and actions give another episode"),
        ("Beyond-v0", 0, "warning", "outside of its space"),
        ("Worn-v0", 0, "warning", "an episode depends on what was played before it"),
        ("Pale-v0", 0, "note", "the reward was 1 in every frame"),
        ("Pale-v0", 0, "note", "at index"),
        ("Endless-v0", 64, "fault", "there is no time limit: set env.max_episode_steps"),
        ("Faulty-observation-nan-v0", 64, "fault", "returned the observation"),
        ("Faulty-reward-none-v0", 64, "fault", "returned the reward None"),
        ("Faulty-raises-v0", 64, "fault", "raised ArithmeticError: the arm is stuck"),
        ("Sond-v0", 64, "fault", "did you mean Sound-v0?"),
        ("torch/pendulum", 0, "note", "steps all its environments at once"),
        ("torch/pendulm", 64, "fault", "did you mean torch/pendulum?"),
    ],
)
def test_check_env_reports_its_findings(
    id: str, code: int, kind: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = 0
    try:
        main(["check-env", id, "--plugin", "faulty"])
    except SystemExit as end:
        ended = int(end.code or 0)
    told = capsys.readouterr()
    assert ended == code
    assert any(line.startswith(kind) and said in line for line in told.out.splitlines()), told.out
    assert told.err.count("\n") == (1 if code else 0)


def test_doctor_has_a_line_for_everything(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert {line["state"] for line in found} <= {"ok", "missing"}
    for thing in ("Python", "torchrl", "C++ extension", "threads", "GPU", "disk", "pictures of Pendulum-v1"):
        assert any(thing in line["text"] for line in found)
    monkeypatch.setattr(doctor, "diagnose", lambda: iter(["ok      one", "missing another"]))
    main(["doctor"])
    assert capsys.readouterr().out == "ok      one\nmissing another\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["trian", "continuous"], 64, "unknown command trian: did you mean train?"),
        ([], 64, "COMMAND"),
        (["evaluate"], 64, "RUN"),
        (["plot", "a", "--out-put", "b"], 64, "--out-put"),
        (["train", "continous"], 64, "no recipe continous: did you mean continuous?"),
        (["train", "continuous", "sed=1"], 64, "unknown key sed: did you mean seed?"),
        (["train", "continuous", "--cfgg", "job"], 64, "--cfgg"),
        (["verify", "nowhere"], 65, "nowhere holds no checkpoint"),
        (["resume", "nowhere"], 64, "nowhere holds no run"),
        (["evaluate", "nowhere"], 64, "nowhere holds no policy"),
        (["plot", "nowhere"], 64, "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_a_code(
    words: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sac-torchrl"])
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == code
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert said in line
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_checkpoint_cannot_be_evaluated(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text((trained / "config.yaml").read_text())
    with pytest.raises(SystemExit) as end:
        main(["evaluate", str(tmp_path)])
    assert end.value.code == 65
    assert "holds no policy yet" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["plot", "-h"], ["train", "discrete", "-h"]])
def test_every_command_explains_itself(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sac-torchrl"])
    if "discrete" in words:
        main(words)
        said = capsys.readouterr().out
        assert "preset: acrobot" in said
        assert "sac-torchrl train discrete preset=acrobot" in said
    else:
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 0
        said = capsys.readouterr().out
        assert "usage: sac-torchrl" in said


@pytest.mark.parametrize("words", [["--help"], ["doctor", "--json"]])
def test_a_closed_output_is_no_failure(words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)  # as `| head` does, here before the first line
    process = subprocess.run(
        [sys.executable, "-m", "sac_torchrl", *words], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (process.returncode, process.stderr) in [(0, ""), (141, "")]
