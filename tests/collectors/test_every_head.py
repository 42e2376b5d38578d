"""Workers collect with every policy: their environments fail at an action that is not theirs."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase

from sac_torchrl import SAC, Async, Direct, DiscreteSAC, EnvConfig, NetworkConfig, Processes, Ray, ReplayConfig, Storage
from sac_torchrl.agents.heads import PolicyForm
from sac_torchrl.collectors.config import CollectorConfig

SMALL, FRAMES, RANDOM = NetworkConfig([8]), 120, 40
HEADS: dict[str, tuple[str, Any]] = {
    "hybrid": ("Levers-v0", SAC(network=SMALL)),
    "multi_discrete": ("Buttons-v0", DiscreteSAC(network=SMALL)),
    "mixture": ("Pendulum-v1", SAC(network=SMALL, policy=PolicyForm.mixture)),
    "flow": ("Pendulum-v1", SAC(network=SMALL, policy=PolicyForm.flow)),
}
COLLECTORS: dict[str, CollectorConfig] = {
    "processes": Processes(workers=2, timeout=100),
    "async": Async(workers=1, timeout=100),
    "ray": Ray(workers=1, steps=4),
}
NEEDS_RAY = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning"),
]


def collected(collector: CollectorConfig, head: str) -> TensorDictBase:
    id, variant = HEADS[head]
    env, cpu = EnvConfig(id, 2, ["buttons"]), torch.device("cpu")
    specs = env.specs()
    torch.manual_seed(0)
    actor = variant.build(specs, device=cpu).actor
    buffer = ReplayConfig(storage=Storage.ram).build(Path(), specs, rows=200, batch_size=1, seed=0, device=cpu)
    experience = collector.build(env, actor, buffer, specs=specs, total_frames=FRAMES, random_frames=RANDOM, seed=3)
    for _ in experience:
        pass
    rows: TensorDictBase = buffer.storage[: experience.frames]
    assert specs.action.is_in(rows["action"][0])
    return rows


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["processes", "async", pytest.param("ray", marks=NEEDS_RAY)])
def test_workers_collect_with_every_head(kind: str, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    rows = collected(COLLECTORS[kind], head)
    assert len(rows) >= FRAMES
    if kind == "processes":
        assert (rows == collected(Direct(), head)).all()
    if head == "hybrid":
        middles = torch.tensor([-2 / 3, 0.0, 2 / 3])
        stored = torch.isclose(rows["action"][:, :1], middles).any(-1)
        assert stored[RANDOM + 8 :].all() and not stored[:RANDOM].any()
