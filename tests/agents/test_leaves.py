"""Observations by key, from the collectors to the networks: each held to a derivation on one vector."""

from pathlib import Path
from typing import Any

import counting
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Bounded, Categorical, Composite, MultiCategorical, TensorSpec, Unbounded

from sac_torchrl import (
    REDQ,
    SAC,
    TQC,
    Async,
    CrossQ,
    Direct,
    DiscreteSAC,
    DroQ,
    EnvConfig,
    Execution,
    FastSAC,
    LearnerConfig,
    NetworkConfig,
    Processes,
    ReplayConfig,
    SACv1,
    SimBa,
    Specs,
    Storage,
    tanh_normal_actor,
)
from sac_torchrl.agents.normalization import with_normalization
from sac_torchrl.agents.variant import Variant
from sac_torchrl.collectors.config import CollectorConfig
from sac_torchrl.errors import ConfigError
from sac_torchrl.replay.n_step import NStep
from sac_torchrl.specs import SPAN

CPU = torch.device("cpu")
SEEN = Composite(
    seen=Unbounded(torch.Size([3])),
    hidden=Unbounded(torch.Size([2])),
    index=Categorical(4, shape=torch.Size([]), dtype=torch.int64),
    pair=MultiCategorical([2, 3], dtype=torch.int64),
)
TURN = Bounded(-1, 1, shape=torch.Size([2]))
CHOICE = Categorical(3, shape=torch.Size([]), dtype=torch.int64)
SMALL = NetworkConfig([8])


def observed(count: int) -> TensorDict:
    leaves = {
        "seen": 5 + torch.randn(count, 3),
        "hidden": 100 * torch.randn(count, 2),
        "index": torch.randint(4, (count,)),
        "pair": torch.stack([torch.randint(2, (count,)), torch.randint(3, (count,))], -1),
    }
    return TensorDict(leaves, batch_size=[count])


def transitions(count: int, action: TensorSpec) -> TensorDict:
    torch.manual_seed(count)
    following = {
        "observation": observed(count),
        "reward": torch.randn(count, 1),
        "terminated": torch.rand(count, 1) < 0.2,
    }
    taken = action.rand(torch.Size([count]))
    return TensorDict({"observation": observed(count), "action": taken, "next": following}, batch_size=[count])


def test_leaves_enter_a_network_side_by_side_indices_one_hot() -> None:
    encoder: Any = SMALL.build(SEEN, outputs=1, device=CPU)
    leaves = observed(5)
    hot = [nn.functional.one_hot(index, n).float() for index, n in ((leaves["index"], 4), (leaves["pair"][:, 0], 2))]
    last = nn.functional.one_hot(leaves["pair"][:, 1], 3).float()
    expected = torch.cat([leaves["seen"], leaves["hidden"], *hot, last], -1)
    assert torch.equal(encoder.encoder(leaves), expected)
    embedded: Any = NetworkConfig([8], embedding=5).build(SEEN, outputs=1, device=CPU)
    assert embedded.encoder(leaves).shape == (5, 3 + 2 + 5 + 2 * 5)


@pytest.mark.parametrize(
    "variant",
    [
        SAC(network=SMALL),
        SACv1(network=SMALL),
        REDQ(network=SMALL, critics=3),
        DroQ(network=SMALL),
        CrossQ(network=SMALL, critic_hidden=[8]),
        TQC(network=SMALL, critic_hidden=[8]),
        SimBa(actor_width=8, critic_width=8),
        FastSAC(network=SMALL, critic_hidden=[8]),
        DiscreteSAC(network=SMALL),
    ],
    ids=lambda variant: type(variant).__name__,
)
def test_a_hidden_leaf_changes_the_values_and_not_the_action(variant: Variant) -> None:
    variant.actor_keys, variant.critic_keys = ["seen", "index"], ["hidden", "seen"]
    specs = Specs(SEEN, CHOICE if isinstance(variant, DiscreteSAC) else TURN)
    torch.manual_seed(0)
    agent = variant.build(specs, device=CPU)
    learner = LearnerConfig(execution=Execution.captured).build(agent)
    for seed in (8, 9, 10):  # eager, recorded, replayed
        batch = transitions(16, specs.action)
        torch.manual_seed(seed)
        losses = learner.update(batch)
        assert all(torch.isfinite(loss).all() for loss in losses.values())
    batch = transitions(16, specs.action)
    other = batch.clone()
    other["observation", "hidden"] = batch["observation", "hidden"].flip(0)
    head: Any = agent.actor.module[0]
    torch.testing.assert_close(
        head(batch.clone())[head.out_keys[0]], head(other.clone())[head.out_keys[0]], rtol=0, atol=0
    )
    alone = TensorDict({"observation": batch["observation"].select("seen", "index")}, batch_size=[16])
    assert torch.equal(head(alone)[head.out_keys[0]], head(batch.clone())[head.out_keys[0]])
    critic: Any = agent.loss.qvalue_network
    values = []
    agent.loss.eval()
    for rows in (batch, other):
        with agent.loss.qvalue_network_params[0].to_module(critic):
            values.append(critic(rows.clone())[critic.out_keys[0]])
    assert not torch.allclose(values[0], values[1])


@pytest.mark.parametrize(
    ("keys", "words"), [(["sen"], "one of seen, hidden"), ([], "variant.actor_keys"), (["seen", "seen"], "each once")]
)
def test_keys_that_are_not_observed_are_refused(keys: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SAC(network=SMALL, actor_keys=keys).build(Specs(SEEN, TURN), device=CPU)
    with pytest.raises(ConfigError, match="no leaves"):
        SAC(network=SMALL, critic_keys=["seen"]).build(Specs(Unbounded(torch.Size([3])), TURN), device=CPU)


def test_every_leaf_of_numbers_is_normalized_by_itself(tmp_path: Path) -> None:
    specs = Specs(SEEN, TURN)
    buffer = ReplayConfig(storage=Storage.ram).build(tmp_path, specs, rows=50, batch_size=8, seed=0, device=CPU)
    agent = with_normalization(SAC(network=SMALL).build(specs, device=CPU), specs, device=CPU)
    parts = [transitions(count, TURN) for count in (1, 7, 30)]
    for part in parts:
        buffer.extend(part)
        agent.observe(buffer)
    rows = TensorDict.cat(parts)["observation"]
    head: Any = agent.actor.module[0]
    normalizer = head.module[0]
    asked = observed(4)
    given = normalizer(asked)
    for name in ("seen", "hidden"):
        column = rows[name].double()
        expected = (asked[name].double() - column.mean(0)) / (column.var(0, correction=0) + 1e-8).sqrt()
        torch.testing.assert_close(given[name].double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(given["index"], asked["index"]) and torch.equal(given["pair"], asked["pair"])
    before = agent.loss.state_dict()["normalizer.normalizers.0.mean"]
    torch.testing.assert_close(before, rows["seen"].double().mean(0), rtol=1e-12, atol=1e-12)


def test_rows_of_several_frames_are_those_of_one_vector() -> None:
    torch.manual_seed(0)
    leaves, vector = (NStep(3, gamma=0.9, count=2) for _ in range(2))

    def join(rows: TensorDict) -> TensorDict:
        whole = rows.copy()
        for key in ("observation", ("next", "observation")):
            whole.set(key, torch.cat([rows[key]["seen"], rows[key]["index"].unsqueeze(-1).float()], -1))
        return whole

    for time in range(12):
        rows = transitions(2, TURN).set(SPAN, torch.ones(2, 1, dtype=torch.int32))
        rows["observation", "seen"] += time
        done = torch.tensor([time == 5, time == 8])
        expected = vector(join(rows), done, slice(None))
        made = leaves(rows, done, slice(None))
        assert len(made) == len(expected)
        if len(made):
            assert (join(made) == expected).all()


class _Up(nn.Module):
    """Parameters of a policy that squashes to 1 whatever it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.tensor(50.0))

    def forward(self, leaves: TensorDict) -> Tensor:
        count = len(leaves["rest.0"])  # a leaf that is called `observation` is not the whole
        return torch.cat([self.height.expand(count, 1), torch.zeros(count, 1)], -1)


@pytest.mark.parametrize(
    "collector",
    [Direct(), Processes(workers=2), Processes(workers=2, pipelined=True, steps=2), Async(workers=2)],
    ids=["direct", "processes", "pipelined", "async"],
)
def test_every_transition_of_leaves_is_stored_once(collector: CollectorConfig, tmp_path: Path) -> None:
    plan = EnvConfig("CountingLeaves-v0", count=3, plugins=["counting"])
    specs = plan.specs()
    buffer = ReplayConfig(storage=Storage.disk).build(tmp_path, specs, rows=96, batch_size=1, seed=0, device=CPU)

    actor = tanh_normal_actor(_Up(), specs)
    experience = collector.build(plan, actor, buffer, specs=specs, total_frames=90, random_frames=30, seed=3)
    for _ in experience:
        pass
    rows = buffer.storage[:]
    if isinstance(collector, Async):  # its workers begin when they are ready: the first may have made all frames before
        counting.check(counting.joined(rows), environments=None)
        assert (rows["action"] == 1).sum() >= 60
    else:
        counting.check(counting.joined(rows), environments=3)
        assert (rows["action"] == 1).sum() == 60
