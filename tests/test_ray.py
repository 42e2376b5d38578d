import importlib.util
import logging
import os
import re
import signal
from fractions import Fraction
from pathlib import Path

import counting
import pytest
import torch

from sac_torchrl import Env, Ray, Replay, ReplayRatio, SacError, Storage, tanh_normal_actor

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray"),
    # Ray's, about itself.
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning"),
]


def processes_of(name: str) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if name in entry.read_text():
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def test_every_transition_is_there_once_although_a_worker_dies(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    env = Env("Counting-v0", 3, plugins=["counting"])
    specs = env.specs()
    buffer = Replay(storage=Storage.ram).build(
        Path(), specs, rows=2000, batch_size=1, seed=0, device=torch.device("cpu")
    )
    experience = Ray(workers=2, steps=4, restarts=1).build(
        env,
        tanh_normal_actor(counting.AlwaysUp(), specs),
        buffer,
        specs=specs,
        total_frames=2000,
        random_frames=12,
        seed=3,
    )
    replay_ratio, updates, killed = ReplayRatio(0.3, after=0), 0, False
    with caplog.at_level(logging.WARNING):
        for new_frames in experience:
            updates += replay_ratio.due(new_frames)
            assert updates == int(Fraction(3, 10) * experience.frames)
            numbers = set(buffer.storage[:]["observation"][:, 0].int().tolist())
            if len(numbers) == 3 and not killed and experience.frames > 60:
                os.kill(processes_of("ray::Collector")[0], signal.SIGKILL)
                killed = True
            if len(numbers) > 3:
                break
    assert len(counting.check(buffer.storage[:], environments=None)) in (4, 5)
    assert experience.frames == len(buffer)
    assert 0 < experience.metrics()["train/policy_lag"] <= 2 * 4 * 3
    assert re.search("its Ray worker .* is gone .*replaced .1 of 1", caplog.text)
    drawn = buffer.storage[:]["action"].flatten()
    assert (drawn[24:] == 1).any()
    assert processes_of("ray::Collector") == []


@pytest.mark.parametrize("given", [{}, {"RAY_AUTH_TOKEN": "secret"}, {"RAY_AUTH_MODE": "token"}])
def test_a_cluster_without_a_token_is_refused(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    env = Env("Counting-v0", 1, plugins=["counting"])
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():  # one without the other
        monkeypatch.setenv(name, value)
    with pytest.raises(SacError, match=r"collector\.address=10\.0\.0\.1:6379.*RAY_AUTH_MODE=token") as caught:
        Ray(address="10.0.0.1:6379").build(
            env,
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            specs=env.specs(),
            total_frames=1,
            random_frames=0,
            seed=0,
        )
    assert caught.value.exit_code == 64
