"""A policy is watched and evaluated by command, and nothing of its run changes."""

import json
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
import runs

from sac_torchrl.cli.main import main
from sac_torchrl.config.files import load
from sac_torchrl.deploy.policy import Policy
from sac_torchrl.replay.offline import load_rows

SHORT = (*runs.SMALL[:-3], "evaluate.every=200", "evaluate.episodes=3", "total_frames=400", "checkpoint.every=200")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    code, _, errors = runs.command("train", "continuous", *SHORT, f"run.folder='{folder}'", cwd=folder.parent)
    assert code == 0, errors
    return folder


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Any:
    def command(*words: object) -> Any:
        main([str(word) for word in words])
        return json.loads(capsys.readouterr().out)

    return command


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_evaluate_takes_every_checkpoint_other_seeds_and_random_actions(run: Path, told: Any) -> None:
    before = contents(run)
    last = told("evaluate", run)
    assert last == json.loads((run / "evaluation.json").read_text())
    every = told("evaluate", run, "--checkpoint", "all")
    assert [one["frames"] for one in every] == [200, 400] and every[1]["returns"] == last["returns"]
    assert told("evaluate", run, "--checkpoint", "200") == every[0]
    best = told("evaluate", run, "--checkpoint", "best")
    assert best["return_mean"] == max(one["return_mean"] for one in every)
    other, again = (told("evaluate", run, "--seed", 7, "--episodes", 2) for _ in range(2))
    assert other == again and other["returns"] != last["returns"][:2]
    drawn, same = (told("evaluate", run, "--stochastic", "--json") for _ in range(2))
    assert drawn == same and drawn["returns"] != last["returns"] and drawn["seeds"] == last["seeds"]
    assert contents(run) == before


def test_evaluate_compares_environments_on_the_same_seeds(run: Path, told: Any) -> None:
    result = told("evaluate", run, "--episodes", 4, "env.kwargs.g=2.0")
    changed, difference = result["changed"], result["difference"]
    assert changed["seeds"] == result["seeds"] and changed["settings"] == ["env.kwargs.g=2.0"]
    apart = np.array(changed["returns"]) - result["returns"]
    assert difference["mean"] == pytest.approx(apart.mean()) != 0
    half = 3.182 * apart.std(ddof=1) / 2  # Student's t, 3 degrees of freedom
    assert (difference["low"], difference["high"]) == pytest.approx((apart.mean() - half, apart.mean() + half))
    same = told("evaluate", run, "--episodes", 4, "env.kwargs.g=10.0")
    assert same["difference"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "pairs": 4}


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["evaluate", "RUN", "--checkpoint", "300"], 64, "give newest, best or the frames of a checkpoint (200, 400)"),
        (["evaluate", "RUN", "env.id=CartPole-v1"], 64, "the policy was trained on Box([-1. -1. -8.]"),
        (["evaluate", "RUN", "seed=3"], 64, "only the keys of the environment"),
        (["evaluate", "RUN", "env.kwarg.g=3"], 64, "did you mean env.kwargs"),
        (["evaluate", "RUN", "--episodes", "0"], 64, "give 1 or more"),
        (["play", "RUN", "--output", "a.avi"], 64, "give NAME.mp4 or NAME.gif"),
        (["play", "RUN", "--loud"], 64, "unrecognized arguments: --loud"),
    ],
)
def test_mistakes_are_answered(
    words: list[str], code: int, text: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(run) if word == "RUN" else word for word in words])
    assert end.value.code == code
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.gif", "a.mp4"])
def test_play_writes_a_film(name: str, run: Path, told: Any, tmp_path: Path) -> None:
    pytest.importorskip("pygame")
    path = tmp_path / name
    result = told("play", run, "--output", path, "env.max_episode_steps=12", "--episodes", 2, "--checkpoint", "best")
    assert len(result["returns"]) == 2 and result["output"] == str(path)
    film: Any = imageio.get_reader(path)
    assert film.count_frames() == 24 if name == "a.mp4" else len(film) == 24
    film.close()
    drawn = told("play", run, "--output", path, "env.max_episode_steps=12", "--stochastic", "--seed", 3)
    assert drawn == told("play", run, "--output", path, "env.max_episode_steps=12", "--stochastic", "--seed", 3)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_play_shows_episodes_on_screen(run: Path, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    assert told("play", run, "env.max_episode_steps=5")["output"] is None


def test_commands_print_json(run: Path, told: Any) -> None:
    assert [(one["frames"], one["intact"]) for one in told("verify", run, "--json")] == [(400, True), (200, True)]
    assert all(len(one["digest"]) == 64 for one in told("verify", run, "--json", "--digest"))
    assert {"kind", "text"} == set(told("check-env", "CartPole-v1", "--json")[0])


@pytest.mark.filterwarnings("ignore:.*:UserWarning:minari")
def test_episodes_are_recorded_for_minari_and_read_back_as_rows(
    run: Path, told: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    result = told("dataset", run, "mine/pendulum-v0", "--episodes", 2, "--seed", 3)
    episodes = list(minari.load_dataset("mine/pendulum-v0").iterate_episodes())
    assert [float(np.sum(one.rewards)) for one in episodes] == result["returns"]
    assert [len(one.rewards) for one in episodes] == [200, 200]
    policy = Policy.load(run)
    assert np.array_equal(policy(episodes[0].observations[7]), episodes[0].actions[7])
    config = load(run)
    rows = load_rows("mine/pendulum-v0", config.specs())
    assert len(rows) == 400
    assert np.array_equal(rows["observation"][:200].numpy(), episodes[0].observations[:-1])
    with pytest.raises(SystemExit) as refused:
        main(["dataset", str(run), "mine/pendulum-v0"])
    assert refused.value.code == 64
