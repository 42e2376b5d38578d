"""`sac.train`, as a script or a notebook calls it."""

import base64
import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import command, digest

import sac_torchrl as sac
from sac_torchrl.errors import ConfigError

SMALL: dict[str, Any] = {
    "total_frames": 120,
    "random_frames": 40,
    "batch_size": 16,
    "variant": {"network": {"hidden": [8]}},
    "learner": {"execution": "eager"},
    "evaluate": {"every": 60, "episodes": 1},
    "device": "cpu",
}
WORDS = (
    "total_frames=120",
    "random_frames=40",
    "batch_size=16",
    "variant.network.hidden=[8]",
    "learner.execution=eager",
    "evaluate.every=60",
    "evaluate.episodes=1",
    "device=cpu",
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def frames_logged(folder: Path) -> list[int]:
    with (folder / "metrics.csv").open() as file:
        return [int(row["frames"]) for row in csv.DictReader(file)]


def test_a_call_and_the_command_end_in_the_same_digest(tmp_path: Path) -> None:
    (tmp_path / "presets").mkdir()
    result = sac.train("continuous", preset=["reacher", "sb3"], seed=3, run={"folder": tmp_path / "called"}, **SMALL)
    code, _, errors = command(
        "train", "continuous", "preset=[reacher,sb3]", "seed=3", "run.folder=typed", *WORDS, cwd=tmp_path
    )
    assert code == 0, errors
    assert digest(tmp_path / "called") == digest(tmp_path / "typed")
    assert (tmp_path / "called/config.yaml").read_text() == (tmp_path / "typed/config.yaml").read_text()
    frames, returns = result.curve()
    assert result.folder == tmp_path / "called"
    assert result.policy.saved.frames == 120
    assert base64.b64encode((result.folder / "curve.png").read_bytes()).decode() in result._repr_html_()
    assert result.video().stat().st_size > 0
    assert result.video().name == "120.mp4"
    assert frames.tolist() == [60, 120]
    assert returns[-1] == pytest.approx(result.evaluation.mean)


def test_a_configuration_is_trained_as_it_is(tmp_path: Path) -> None:
    config = sac.TrainConfig(
        variant=sac.DiscreteSAC(network=sac.NetworkConfig([8])),
        env=sac.EnvConfig("CartPole-v1"),
        total_frames=60,
        random_frames=20,
        batch_size=16,
        evaluate=sac.EvaluationConfig(episodes=2),
        device="cpu",
    )
    result = sac.train(config)
    assert result.folder.parent == Path("runs").absolute()
    assert len(result.evaluation.returns) == 2
    with pytest.raises(TypeError, match="change the fields of a TrainConfig"):
        sac.train(config, seed=1)


@pytest.mark.parametrize(
    ("recipe", "keys", "said"),
    [
        ("continous", {}, "no recipe continous: did you mean continuous?"),
        ("continuous", {"sed": 1}, "unknown key sed: did you mean seed?"),
        ("continuous", {"env": {"idd": "x"}}, "unknown key env.idd: did you mean env.id?"),
        ("continuous", {"env": sac.EnvConfig("Ant-v5")}, "env is a group of keys"),
        ("continuous", {"variant": "discrete_sac"}, "variant=discrete_sac is for recipes/discrete.py"),
        ("continuous", {"preset": "haf_cheetah"}, "did you mean halfcheetah?"),
    ],
)
def test_a_mistake_is_refused_before_a_file_is_made(
    tmp_path: Path, recipe: str, keys: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        sac.train(recipe, **keys)
    assert said in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_callbacks_see_every_step_and_every_evaluation() -> None:
    steps: list[int] = []
    seen: list[tuple[int, float]] = []
    result = sac.train(
        "continuous",
        on_step=lambda frames, metrics: steps.append(frames),
        on_evaluation=lambda frames, evaluation: seen.append((frames, evaluation.mean)),
        **SMALL,
    )
    assert steps == list(range(1, 121))
    assert [frames for frames, _ in seen] == [60, 120]
    np.testing.assert_allclose(result.curve(), np.array(seen).T)


def test_a_callback_that_raises_is_reported_once_and_left_out(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    calls: list[int] = []

    def broken(frames: int, metrics: dict[str, float]) -> None:
        calls.append(frames)
        raise KeyError("reward")

    sac.train("continuous", seed=3, run={"folder": "plain"}, **SMALL)
    sac.train("continuous", seed=3, run={"folder": "called"}, on_step=broken, **SMALL)
    assert calls == [1]
    assert caplog.text.count("on_step raised KeyError('reward') and is not called again") == 1
    assert digest(tmp_path / "plain") == digest(tmp_path / "called")


@pytest.mark.parametrize("collector", ["direct", "processes"])
def test_stop_evaluates_saves_and_ends_normally_and_the_run_can_be_resumed(tmp_path: Path, collector: str) -> None:
    def enough(frames: int, metrics: dict[str, float]) -> None:
        if frames == 80:
            raise sac.Stop

    keys = SMALL | {"collector": collector, "run": {"folder": "stopped"}}
    result = sac.train("continuous", on_step=enough, **keys)
    assert frames_logged(result.folder)[-1] == 80
    assert (tmp_path / "stopped/checkpoints/80/manifest.json").exists()
    assert sac.train("continuous", **keys).folder == result.folder
    assert frames_logged(result.folder)[-1] == 120


def test_stop_from_an_evaluation_ends_the_run_there() -> None:
    def enough(frames: int, evaluation: sac.Evaluation) -> None:
        raise sac.Stop

    result = sac.train("continuous", on_evaluation=enough, **SMALL)
    assert result.curve()[0].tolist() == [60]


def test_a_finished_run_says_so_and_keeps_its_evaluation(caplog: pytest.LogCaptureFixture) -> None:
    keys = SMALL | {"run": {"folder": "done"}}
    first = sac.train("continuous", **keys)
    text = (first.folder / "metrics.csv").read_text()
    again = sac.train("continuous", **keys)
    assert "this run is finished at 120 frames: total_frames and stop." in caplog.text
    assert again == first
    assert (first.folder / "metrics.csv").read_text() == text


def test_a_run_stops_at_a_return_and_continues_when_that_is_raised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {**SMALL, "run": {"folder": tmp_path / "run"}}
    with caplog.at_level("INFO"):
        sac.train("continuous", stop={"at_return": -1e9}, **settings)
    assert "stopping at 60 frames: the mean return" in caplog.text
    assert frames_logged(tmp_path / "run")[-1] == 60
    sac.train("continuous", stop={"at_return": -1e9}, **settings)
    assert frames_logged(tmp_path / "run")[-1] == 60, "it is at the return already"
    sac.train("continuous", stop={"at_return": 0}, **settings)
    sac.train("continuous", **settings | {"run": {"folder": tmp_path / "whole"}})
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")
