import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from short_runs import FRAMES, configuration, digest, table
from torch import Tensor
from trial import flip_bit

from sac_torchrl import (
    TrainConfig,
    train,
)
from sac_torchrl.cli.main import main
from sac_torchrl.collectors.direct import GymnasiumExperience
from sac_torchrl.collectors.experience import Experience
from sac_torchrl.errors import Preempted
from sac_torchrl.replay.packing import PackedReplayBuffer
from sac_torchrl.runs import snapshot


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Has the process send itself SIGTERM when a run reaches so many frames."""

    def arrange(frames: int) -> None:
        def watched(store: Callable[[Experience, Any], None]) -> Callable[[Experience, Any], None]:
            def stored(self: Experience, made: Any) -> None:
                store(self, made)
                if self.frames == frames:
                    os.kill(os.getpid(), signal.SIGTERM)

            return stored

        monkeypatch.setattr(Experience, "_take", watched(Experience._take))
        monkeypatch.setattr(GymnasiumExperience, "_write", watched(cast(Any, GymnasiumExperience._write)))

    return arrange


@pytest.fixture
def rewards(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The reward of every transition that is stored, in order."""
    stored: list[float] = []
    extend = PackedReplayBuffer.extend_packed

    def extended(self: PackedReplayBuffer, packed: Tensor) -> Tensor:
        rewards: Tensor = self._storage.packing.unpack(packed)["next", "reward"]
        stored.extend(rewards.flatten().tolist())
        return extend(self, packed)

    monkeypatch.setattr(PackedReplayBuffer, "extend_packed", extended)
    return stored


@pytest.mark.parametrize(
    ("id", "stop", "ratio"),
    [
        ("Pendulum-v1", 20, 0.3),
        ("Pendulum-v1", 142, 0.03),  # the next row of the log comes before the next update
        ("CartPole-v1", 178, 0.3),  # 41.4 updates
        ("Masked-v0", 134, 0.3),
        ("Line-v0", 134, 0.3),  # with hindsight
        ("Levers-v0", 134, 0.3),
        ("Borrowing-v0", 134, 0.3),
        ("Hopper-v5", 134, 0.3),
        ("Ant-v5", 134, 0.3),
        ("dmc/cartpole-swingup", 134, 0.3),
    ],
)
def test_a_stopped_run_ends_in_the_digest_of_one_that_was_not(
    tmp_path: Path, id: str, stop: int, ratio: float, stop_at: Callable[[int], None], rewards: list[float]
) -> None:
    train(configuration(tmp_path / "whole", id, ratio=ratio))
    expected = rewards[-2 * ((FRAMES - stop) // 2) :]
    stop_at(stop)
    with pytest.raises(Preempted, match=f"SIGTERM came; saved at {stop} frames.*sac-torchrl resume"):
        train(configuration(tmp_path / "stopped", id, ratio=ratio))
    with (tmp_path / "stopped" / "metrics.csv").open("a") as file:
        file.write(f"{stop + 2}\n")  # a process that is killed leaves rows of after its checkpoint
    rewards.clear()
    stop_at(-1)
    train(configuration(tmp_path / "stopped", id, ratio=ratio))
    new = rewards[-(FRAMES - stop) :]
    assert new[:2] == expected[:2], "the first rewards after the resume"
    assert new == expected
    assert table(tmp_path / "stopped") == table(tmp_path / "whole")
    assert digest(tmp_path / "stopped") == digest(tmp_path / "whole")


def test_where_a_state_cannot_be_captured_both_runs_cut_the_episode(
    tmp_path: Path, stop_at: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    def cutting(folder: Path) -> TrainConfig:
        config = configuration(folder, "Closed-v0", plugins=["faulty"])
        config.checkpoint.every = 66  # in the middle of episodes of ten steps
        config.n_steps = 3  # rows are held back
        return config

    train(cutting(tmp_path / "whole"))
    assert "episodes are cut at every checkpoint, because Closed._socket is a faulty.Handle" in caplog.text
    assert caplog.text.count("episodes are cut") == 1
    stop_at(132)
    with pytest.raises(Preempted):
        train(cutting(tmp_path / "stopped"))
    stop_at(-1)
    train(cutting(tmp_path / "stopped"))
    assert table(tmp_path / "stopped") == table(tmp_path / "whole")
    assert digest(tmp_path / "stopped") == digest(tmp_path / "whole")


def test_runs_of_another_seed_have_another_digest(tmp_path: Path) -> None:
    train(configuration(tmp_path / "first", "Borrowing-v0"))
    train(configuration(tmp_path / "second", "Borrowing-v0"))
    other = configuration(tmp_path / "other", "Borrowing-v0")
    other.seed = 1
    train(other)
    assert digest(tmp_path / "first") == digest(tmp_path / "second") != digest(tmp_path / "other")
    assert table(tmp_path / "first") == table(tmp_path / "second") != table(tmp_path / "other")


def test_a_bit_that_flips_during_a_run_is_mended_and_one_that_flips_afterwards_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    rows = folder / "checkpoints" / "rows"

    def damage(frames: int, _: Any) -> None:
        if frames == 70:
            flip_bit(rows / "0-60.safetensors", 1.0)

    config = configuration(folder, "Pendulum-v1")
    config.total_frames, config.checkpoint.keep = 140, 5
    train(config, on_step=damage)
    assert "0-60.safetensors is damaged: it is written again" in (folder / "run.log").read_text()
    main(["verify", str(folder)])
    assert capsys.readouterr().out.count("intact") == 3
    flip_bit(rows / "0-60.safetensors", 1.0)
    for command in ("verify", "resume"):
        with pytest.raises(SystemExit) as ended:
            main([command, str(folder)])
        assert ended.value.code == 65
        assert "0-60.safetensors: its SHA-256 differs" in capsys.readouterr().err


def test_checkpoints_keep_their_period_after_a_resume(tmp_path: Path, stop_at: Callable[[int], None]) -> None:
    config = configuration(tmp_path / "run", "Pendulum-v1")
    config.checkpoint.keep = 9
    stop_at(142)
    with pytest.raises(Preempted):
        train(config)
    train(config)
    assert snapshot.frames_in(tmp_path / "run" / "checkpoints") == [240, 180, 142, 120, 60]
