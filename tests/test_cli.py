import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sac_torchrl
from sac_torchrl.cli import main

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
    (trained / "evaluation.json").unlink()
    main(["evaluate", str(trained)])
    assert evaluation(trained) == during
    assert json.loads(capsys.readouterr().out) == during
    main(["evaluate", str(trained), "--episodes", "3"])
    more = evaluation(trained)
    assert len(more["returns"]) == len(more["lengths"]) == 3


def test_plot_draws_one_run_and_several(trained: Path, tmp_path: Path) -> None:
    picture = trained / "curve.png"
    picture.unlink()
    main(["plot", str(trained)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    main(["plot", str(trained), str(trained), "--output", str(tmp_path / "both.png")])
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_resume_goes_on_where_the_run_stood(trained: Path) -> None:
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


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["trian", "continuous"], 64, "unknown command trian: did you mean train?"),
        ([], 64, "COMMAND"),
        (["evaluate"], 64, "FOLDER"),
        (["plot", "a", "--out-put", "b"], 64, "--out-put"),
        (["train", "continous"], 64, "no recipe continous: did you mean continuous?"),
        (["train", "continuous", "sed=1"], 64, "unknown key sed: did you mean seed?"),
        (["resume", "nowhere"], 64, "nowhere holds no run"),
        (["evaluate", "nowhere"], 64, "nowhere holds no run"),
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
    assert "holds no checkpoint yet" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["plot", "-h"], ["train", "discrete", "-h"]])
def test_every_command_explains_itself(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sac-torchrl"])
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0
    said = capsys.readouterr().out
    if "discrete" in words:
        assert "preset: acrobot" in said
        assert "sac-torchrl train discrete preset=acrobot" in said
    else:
        assert "usage: sac-torchrl" in said
