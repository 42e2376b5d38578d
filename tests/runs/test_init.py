"""A run that begins with another run's weights, and one that learns from another run's rows."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import sac_torchrl as sac
from sac_torchrl.errors import ConfigError
from sac_torchrl.runs import snapshot
from sac_torchrl.runs.init import rows_of_run
from sac_torchrl.runs.seeds import Seeds

SMALL: dict[str, Any] = {
    "total_frames": 300,
    "random_frames": 40,
    "batch_size": 16,
    "variant": {"network": {"hidden": [8]}},
    "learner": {"execution": "eager"},
    "evaluate": {"every": 300, "episodes": 2},
    "normalize": True,
    "device": "cpu",
}


def tree(folder: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole.update(f"{path}".encode() + path.read_bytes())
    return whole.hexdigest()


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    saved = snapshot.newest(folder / "checkpoints")
    assert saved is not None
    loss: dict[str, torch.Tensor] = saved.state["parts"]["learner"]["loss"]
    return loss


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "old"
    return sac.train("continuous", run={"folder": folder}, **SMALL).folder


def test_all_parts_act_as_the_source_did_and_the_source_stays(old: Path, tmp_path: Path) -> None:
    before = tree(old)
    frozen = SMALL | {"learner": {"execution": "eager", "lr": 1e-12}, "total_frames": 60, "seed": 1}
    new = sac.train(
        "continuous", init={"run": str(old)}, env={"kwargs": {"g": 9.0}}, run={"folder": tmp_path / "new"}, **frozen
    )
    assert tree(old) == before
    one, other = tensors(old), tensors(new.folder)
    actor = [name for name in one if name.startswith(("actor_network_params", "qvalue_network_params"))]
    assert len(actor) == 8
    assert all(torch.allclose(one[name], other[name], rtol=0, atol=1e-9) for name in actor)
    lineage = yaml.safe_load((new.folder / "config.yaml").read_text())["init"]
    (newest,) = [one for one in snapshot.intact(old / "checkpoints") if one.frames == 300]
    assert lineage["frames"] == 300
    assert lineage["digest"] == snapshot.digest(old / "checkpoints", newest)
    # The statistics are those of the rows of both runs.
    rows = [rows_of_run(str(folder), sac.TrainConfig().specs()) for folder in (old, new.folder)]
    seen = torch.cat([each["observation"] for each in rows if each is not None]).double()
    assert int(other["normalizer.seen"]) == len(seen) == 360
    torch.testing.assert_close(other["normalizer.mean"], seen.mean(0))
    torch.testing.assert_close(other["normalizer.var"], seen.var(0, correction=0))
    # A resume needs the source no more, and counts on.
    old.rename(old.with_name("away"))
    try:
        longer = frozen | {"total_frames": 80, "init": {"run": str(old)}, "env": {"kwargs": {"g": 9.0}}}
        sac.train("continuous", run={"folder": tmp_path / "new"}, **longer)
    finally:
        old.with_name("away").rename(old)
    assert int(tensors(new.folder)["normalizer.seen"]) == 380


def test_the_first_evaluation_is_the_newest_of_the_source(old: Path, tmp_path: Path) -> None:
    config = sac.TrainConfig(variant=sac.SAC(network=sac.NetworkConfig(hidden=[8])), normalize=True, device="cpu")
    config.init.run = str(old)
    specs = config.specs()
    weights = config.initial_weights(specs)
    agent = config.agent(specs, device=torch.device("cpu"))
    buffer = config.replay.build(tmp_path / "replay", specs, rows=10, batch_size=1, seed=0, device=torch.device("cpu"))
    config.init.load(agent, weights, buffer)
    env = config.env.build(count=2)
    source = json.loads((old / "evaluation.json").read_text())
    found = sac.evaluate(agent.actor, env, episodes=2, seed=Seeds.derive(0).evaluation + 300)
    env.close()
    assert np.array_equal(found.returns, source["returns"])


def test_one_part_leaves_the_others_new(old: Path, tmp_path: Path) -> None:
    config = sac.TrainConfig(variant=sac.SAC(network=sac.NetworkConfig(hidden=[8])), normalize=True, device="cpu")
    config.init.run, config.init.parts = str(old), ["actor"]
    weights = config.initial_weights(config.specs())
    assert {name.partition(".")[0] for name in weights} == {"actor_network_params"}
    assert all(torch.equal(weights[name], tensors(old)[name]) for name in weights)


@pytest.mark.parametrize(
    ("recipe", "keys", "said"),
    [
        (
            "continuous",
            {"env": {"id": "MountainCarContinuous-v0"}},
            r"observation is .*\(3,\) there and .*\(2,\) here",
        ),
        (
            "continuous",
            {"variant": {"network": {"hidden": [9]}}},
            r"bias is \(8,\) there and \(9,\) here.*without",
        ),
        ("continuous", {"normalize": False}, r"normalizer.mean is \(3,\) there and missing here"),
        ("continuous", {"init": {"frames": 7}}, r"at 7 frames: .* has checkpoints at 300 frames"),
        ("continuous", {"init": {"digest": "0"}}, "has another init.digest"),
        ("continuous", {"init": {"parts": ["actor", "actor"]}}, r"init.parts=\[actor,actor\]: give one or more"),
        ("continuous", {"init": {"run": "nowhere"}}, r"init.run=nowhere: nowhere has no checkpoint"),
        ("discrete", {}, "there and"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_file_is_made(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, keys: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said):
        sac.train(recipe, **SMALL | keys | {"init": {"run": str(old)} | keys.get("init", {})})
    assert list(tmp_path.iterdir()) == []


def test_half_of_a_batch_is_rows_of_another_run(old: Path, tmp_path: Path) -> None:
    config = sac.TrainConfig(device="cpu", batch_size=16)
    config.offline.dataset = str(old)
    specs, device = config.specs(), torch.device("cpu")
    rows = rows_of_run(config.offline.dataset, specs)
    assert rows is not None
    assert len(rows) == 300
    buffer = config.replay.build(tmp_path / "replay", specs, rows=50, batch_size=16, seed=0, device=device)
    buffer.extend(rows[:50].apply(torch.zeros_like))
    batch = config.offline.build(buffer, rows, batch_size=16, device=device).sample()
    known = {tuple(row) for row in rows["next", "observation"].tolist()}
    assert [tuple(row) in known for row in batch["next", "observation"].tolist()] == [False] * 8 + [True] * 8
    with pytest.raises(ConfigError, match=r"observation is torch.float32 \(3,\) there and torch.float32 \(2,\) here"):
        rows_of_run(str(old), sac.EnvConfig("MountainCarContinuous-v0").specs())
    again = SMALL | {"total_frames": 60, "offline": {"dataset": str(old)}}
    assert sac.train("continuous", run={"folder": tmp_path / "mixed"}, **again).curve()[0].tolist() == [60]
