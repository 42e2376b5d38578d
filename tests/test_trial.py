"""What cannot work is refused before a file is made, and one environment is enough where only one can be open."""

import os
import signal
from pathlib import Path
from typing import Any

import only
import pytest
import runs
import torch

from sac_torchrl import EnvConfig, train
from sac_torchrl.cli.main import main
from sac_torchrl.envs.check import check_env
from sac_torchrl.errors import ConfigError, DiskError, EnvironmentFault, Preempted, SacError
from sac_torchrl.replay import prioritized
from sac_torchrl.runs import snapshot

SMALL: dict[str, Any] = {
    "total_frames": 180,
    "random_frames": 40,
    "replay_ratio": 0.2,
    "batch_size": 16,
    "variant": {"network": {"hidden": [8]}},
    "learner.execution": "eager",
    "log_every": 60,
    "device": "cpu",
    "evaluate": {"every": 40, "episodes": 2},
    "checkpoint": {"every": 60},
    "replay": {"capacity": 150},
}


def start(folder: Path, id: str, recipe: str = "continuous", **keys: Any) -> None:
    env = {"id": id, "plugins": ["only"]} | keys.pop("env", {})
    settings = SMALL | {"env": env, "run": {"folder": str(folder)}}
    for key, value in keys.items():
        settings[key] = (settings[key] | value) if isinstance(settings.get(key), dict) else value
    train(recipe, **settings)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))


VIDEO: dict[str, Any] = {"evaluate": {"video": True}}
HUGE: dict[str, Any] = {"total_frames": 10**14}


@pytest.mark.parametrize(
    ("id", "recipe", "keys", "kind", "said"),
    [
        ("Only-v0", "continuous", VIDEO, ConfigError, "cannot be rendered: it takes no render_mode"),
        ("Nothing-v0", "continuous", VIDEO, ConfigError, "cannot be rendered here .*its picture is object"),
        ("Text-v0", "continuous", VIDEO, ConfigError, "cannot be rendered here .*its picture is <U7"),
        ("NoDisplay-v0", "continuous", VIDEO, ConfigError, "cannot be rendered here .*no display"),
        ("torch/pendulum", "continuous", VIDEO, ConfigError, "cannot be rendered: its environments are tensors"),
        ("CartPole-v1", "continuous", {}, ConfigError, "discrete"),
        ("Pendulum-v1", "discrete", {}, ConfigError, "continuous"),
        ("Drawn-v0", "continuous", {"offline": {"dataset": "no/such-v0"}}, ConfigError, "is not on this machine"),
        ("Vector-v0", "continuous", {}, EnvironmentFault, "the reward .* at step 1"),
        ("Declared-v0", "continuous", {}, ConfigError, r"a vector: weigh it, as in env.reward_weights=\[1,1\]"),
        ("Drawn-v0", "continuous", HUGE | {"replay": {"capacity": 10**14}}, DiskError, "lower replay.capacity"),
        (
            "Drawn-v0",
            "continuous",
            HUGE | {"replay": {"capacity": 10**14, "storage": "ram"}},
            ConfigError,
            "lower replay.capacity",
        ),
        ("Drawn-v0", "continuous", {"replay": {"prioritized": True}}, ConfigError, "needs TorchRL's C.. extension"),
        ("Only-v0", "continuous", {}, ConfigError, "the robot is in use.*give env.single=true"),
        ("Port-v0", "continuous", {}, ConfigError, "Address already in use.*give env.single=true"),
        ("LockFile-v0", "continuous", {}, ConfigError, "temporarily unavailable.*give env.single=true"),
    ],
)
def test_what_cannot_work_is_refused_before_a_file_is_made(
    tmp_path: Path,
    id: str,
    recipe: str,
    keys: dict[str, Any],
    kind: type[SacError],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise RuntimeError("no extension")

    monkeypatch.setattr(prioritized, "PackedPrioritizedSampler", missing)
    with pytest.raises(kind, match=said):
        start(tmp_path / "run", id, recipe, **keys)
    assert not (tmp_path / "run").exists()
    assert only.Only.opened == 0


def test_a_film_that_can_be_made_is_made(tmp_path: Path) -> None:
    start(tmp_path / "run", "Drawn-v0", total_frames=60, **VIDEO)
    assert (tmp_path / "run" / "videos" / "final.mp4").stat().st_size > 0


def test_the_only_environment_is_filmed_when_a_run_ends_and_when_a_finished_one_is_resumed(tmp_path: Path) -> None:
    settings = {"total_frames": 60, "env": {"single": True}, **VIDEO}
    film = tmp_path / "run" / "videos" / "final.mp4"
    for _ in range(2):
        start(tmp_path / "run", "OnlyDrawn-v0", **settings)
        assert film.stat().st_size > 0
        assert only.Only.opened == 0
        film.unlink()


@pytest.mark.parametrize("id", ["Only-v0", "Port-v0", "LockFile-v0"])
def test_where_only_one_can_be_open_a_run_trains_evaluates_stops_and_resumes_exactly_in_it(
    tmp_path: Path, id: str
) -> None:
    start(tmp_path / "whole", id, env={"single": True})
    log = (tmp_path / "whole" / "run.log").read_text()
    assert "needs two more and env.single=true" in log

    def stop(frames: int, _: Any) -> None:
        if frames == 120:  # an evaluation and a checkpoint
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted):
        start(tmp_path / "stopped", id, env={"single": True}, on_step=stop)
    start(tmp_path / "stopped", id, env={"single": True})
    assert runs.digest(tmp_path / "stopped") == runs.digest(tmp_path / "whole")
    assert only.Only.opened == 0
    main(["evaluate", str(tmp_path / "whole"), "--plugin", "only"])
    texts = [finding.text for finding in check_env(EnvConfig(id, plugins=["only"], single=True))]
    assert "the resume test needs two that are open, and env.single=true: not tried" in texts


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"env": {"single": True, "count": 2}}, "only one can be open, and 2 are needed: give env.count=1"),
        ({"env": {"single": True, "faults": 1}}, "with env.single=true a fault may be of an evaluation"),
        ({"env": {"single": True}, "collector": "processes"}, "give collector=direct"),
    ],
)
def test_more_than_one_is_refused(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        start(tmp_path / "run", "Only-v0", **keys)
    assert not (tmp_path / "run").exists()


def test_a_run_closes_every_environment_that_it_opens(tmp_path: Path) -> None:
    for least in (6, 8):  # two are trained in and two evaluated in, after two that were tried out; then it is finished
        start(tmp_path / "run", "Counted-v0", total_frames=60, env={"count": 2})
        assert only.Counted.made >= least
        assert only.Counted.closed == only.Counted.made


def test_exploration_does_not_depend_on_what_the_networks_drew(tmp_path: Path) -> None:
    actions = []
    for hidden in (8, 16):
        folder = tmp_path / str(hidden)
        start(folder, "Drawn-v0", total_frames=60, variant={"network": {"hidden": [hidden]}})
        checkpoints = folder / "checkpoints"
        found = snapshot.newest(checkpoints)
        assert found is not None
        actions.append(snapshot.read_segment(checkpoints, found.segments[0])["action"][:40])
    assert torch.equal(*actions)


def test_no_row_reaches_over_an_evaluation_in_the_only_environment(tmp_path: Path) -> None:
    env = {"plugins": ["counting"], "single": True}
    start(tmp_path / "run", "Counting-v0", env=env, evaluate={"every": 11})
    found = snapshot.newest(tmp_path / "run" / "checkpoints")
    assert found is not None
    for segment in found.segments:
        rows = snapshot.read_segment(tmp_path / "run" / "checkpoints", segment)
        step = rows["next/observation"] - rows["observation"]
        assert torch.equal(step, torch.tensor([0.0, 0.0, 1.0]).expand_as(step)), "environment, episode and step"
