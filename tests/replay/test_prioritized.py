from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchrl.data.replay_buffers.samplers.prioritized as trees
from tensordict import TensorDict
from torchrl.data import Bounded, Categorical, PrioritizedSampler, TensorDictReplayBuffer, Unbounded

from sac_torchrl import SAC, TQC, CrossQ, DiscreteSAC, DroQ, FastSAC, NetworkConfig, ReplayConfig, SimBa, Specs, Storage
from sac_torchrl.agents.variant import Variant
from sac_torchrl.errors import ConfigError, LearnerFault
from sac_torchrl.runs.checkpoint import CheckpointConfig

CPU = torch.device("cpu")
SPECS = Specs(Unbounded(shape=torch.Size([3])), Bounded(-1, 1, shape=torch.Size([2])))
SMALL = NetworkConfig([8])
VARIANTS = pytest.mark.parametrize(
    "variant",
    [
        SAC(network=SMALL, alpha=0.3),
        DiscreteSAC(SMALL, alpha=0.3),
        DroQ(network=SMALL, dropout=0.0, alpha=0.3),
        CrossQ(network=SMALL, critic_hidden=[8], alpha=0.3),
        TQC(network=SMALL, critic_hidden=[8], quantiles=3, alpha=0.3),
        SimBa(actor_width=4, critic_width=4, alpha=0.3),
        FastSAC(network=SMALL, critic_hidden=[8], atoms=5, alpha=0.3),
    ],
    ids=lambda variant: type(variant).__name__,
)


def transitions(count: int, *, start: int = 0) -> TensorDict:
    """Row i observes (i, i, i)."""
    generator = torch.Generator().manual_seed(start)
    number = torch.arange(start, start + count).float().unsqueeze(-1)
    return TensorDict(
        {
            "observation": number.expand(count, 3).clone(),
            "action": torch.rand(count, 2, generator=generator),
            "next": {
                "observation": torch.randn(count, 3, generator=generator),
                "reward": torch.randn(count, 1, generator=generator),
                "terminated": torch.rand(count, 1, generator=generator) < 0.2,
            },
        },
        batch_size=[count],
    )


def ring(folder: Path, *, capacity: int = 10, batch_size: int = 10, **fields: Any) -> TensorDictReplayBuffer:
    plan = ReplayConfig(capacity, Storage.ram, prioritized=True, **fields)
    # So many rows in all that the weights' exponent stays.
    return plan.build(folder, SPECS, rows=10**9, batch_size=batch_size, seed=0, device=CPU)


def drawn(buffer: TensorDictReplayBuffer, times: int) -> torch.Tensor:
    """How often each position was drawn, as a share."""
    positions = torch.cat([buffer.sample()["index"] for _ in range(times)])
    return torch.bincount(positions, minlength=10) / len(positions)


def test_rows_are_drawn_by_their_error_and_weighed_against_it(tmp_path: Path) -> None:
    buffer = ring(tmp_path, priority_exponent=0.5, weight_exponent=0.75)
    buffer.extend(transitions(10))
    batch = buffer.sample()
    assert (batch["priority_weight"] == 1).all()
    errors = torch.arange(1.0, 11.0)
    rows = TensorDict({"index": torch.arange(10), "td_error": errors}, batch_size=[10])
    buffer.update_tensordict_priority(rows)
    expected = errors**0.5 / (errors**0.5).sum()
    torch.testing.assert_close(drawn(buffer, 2_000), expected, atol=0.02, rtol=0)
    batch = buffer.sample()
    weights = (batch["index"] + 1.0) ** (-0.5 * 0.75)
    torch.testing.assert_close(batch["priority_weight"], weights, rtol=1e-4, atol=1e-5)


def test_the_exponent_of_the_weights_rises_to_1_over_the_frames_of_the_run(tmp_path: Path) -> None:
    buffer = ReplayConfig(10, Storage.ram, prioritized=True, priority_exponent=1.0, weight_exponent=0.4).build(
        tmp_path, SPECS, rows=20, batch_size=10, seed=0, device=CPU
    )
    errors = torch.arange(1.0, 11.0)
    for frames, exponent in ((10, 0.7), (15, 0.85), (20, 1.0), (25, 1.0)):
        buffer.extend(transitions(frames - buffer.write_count))
        buffer.update_priority(torch.arange(10), errors)
        batch = buffer.sample()
        torch.testing.assert_close(batch["priority_weight"], (batch["index"] + 1.0) ** -exponent)


def test_draws_and_priorities_are_those_of_torchrls_sampler(tmp_path: Path) -> None:
    ours: Any = ring(tmp_path, capacity=50)
    theirs: Any = ring(tmp_path, capacity=50)
    theirs._sampler = PrioritizedSampler(50, alpha=0.6, beta=0.4, device=CPU)
    theirs._sampler._rng = torch.Generator().manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    for _ in range(30):
        new = transitions(7)
        for buffer in (ours, theirs):
            buffer.extend(new)
        # Below 1, the priority of new rows, and above it.
        errors = 3 * torch.rand(10, generator=generator) ** 4
        batches = []
        for buffer in (ours, theirs):
            batch = buffer.sample()
            batches.append(batch)
            buffer.update_tensordict_priority(batch.set("td_error", errors))
        for key in ("index", "priority_weight", "observation"):
            assert torch.equal(*(batch[key] for batch in batches))
    everywhere = torch.arange(50)
    for tree in ("_sum_tree", "_min_tree"):
        assert torch.equal(*(getattr(buffer._sampler, tree)[everywhere] for buffer in (ours, theirs)))
    assert ours._sampler._max_priority == theirs._sampler._max_priority


def test_a_new_row_has_the_largest_priority_so_far_also_where_it_replaces_another(tmp_path: Path) -> None:
    buffer = ring(tmp_path, priority_exponent=1.0)
    buffer.extend(transitions(10))
    errors = torch.full((10,), 0.01)
    errors[3] = 1.0
    buffer.update_tensordict_priority(TensorDict({"index": torch.arange(10), "td_error": errors}, batch_size=[10]))
    buffer.extend(transitions(1, start=10))
    share = drawn(buffer, 500)
    assert share[0].item() == pytest.approx(1 / 2.08, abs=0.05)
    assert share[3].item() == pytest.approx(1 / 2.08, abs=0.05)


@VARIANTS
def test_weights_are_the_critics_alone(variant: Variant) -> None:
    torch.manual_seed(0)
    batch = transitions(2)
    specs = SPECS
    if isinstance(variant, DiscreteSAC):
        specs = replace(SPECS, action=Categorical(4))
        batch["action"] = torch.tensor([1, 3])
    loss = variant.build(specs, device=CPU).loss
    found = []
    for weights in (None, [1.0, 1.0], [1.0, 0.0], [0.0, 3.0]):
        torch.manual_seed(1)
        weighed = batch.clone()
        if weights is not None:
            weighed["priority_weight"] = torch.tensor(weights)
        found.append(loss(weighed).detach())
    plain, equal, first, second = found
    torch.testing.assert_close(equal["loss_qvalue"], plain["loss_qvalue"])
    torch.testing.assert_close((first["loss_qvalue"] + second["loss_qvalue"]) / 2, plain["loss_qvalue"])
    assert not torch.allclose(first["loss_qvalue"], second["loss_qvalue"])
    for name in ("loss_actor", "loss_alpha"):
        for other in (equal, first, second):
            torch.testing.assert_close(other[name], plain[name])


def test_priorities_are_in_a_checkpoint(tmp_path: Path) -> None:
    def build(name: str) -> TensorDictReplayBuffer:
        buffer = ring(tmp_path / name)
        buffer.extend(transitions(13))
        return buffer

    buffer = build("one")
    errors = torch.arange(1.0, 11.0)
    buffer.update_tensordict_priority(TensorDict({"index": torch.arange(10), "td_error": errors}, batch_size=[10]))
    CheckpointConfig().build(tmp_path / "saved", buffer).save(7)
    other = ring(tmp_path / "other")
    assert CheckpointConfig().build(tmp_path / "saved", other).restore() == 7
    for _ in range(3):
        assert (buffer.sample() == other.sample()).all()
    for each in (buffer, other):
        each.extend(transitions(1, start=20))
    assert (buffer.sample() == other.sample()).all()


def test_without_the_extension_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "SumSegmentTreeFp32", None)
    with pytest.raises(ConfigError, match=r"replay\.prioritized=true needs TorchRL's C\+\+ extension.*install") as it:
        ring(tmp_path)
    assert "\n" not in str(it.value)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_an_error_that_is_not_finite_changes_no_priority(wrong: float) -> None:
    config = ReplayConfig(20, Storage.ram, prioritized=True)
    buffer = config.build(Path(), SPECS, rows=20, batch_size=16, seed=1, device=CPU)
    buffer.extend(transitions(20))
    batch = buffer.sample()
    errors = torch.ones(16)
    errors[3] = wrong
    batch["td_error"] = errors
    with pytest.raises(LearnerFault, match="td_error is not finite"):
        buffer.update_tensordict_priority(batch)
    assert len(set(buffer.sample()["index"].tolist())) > 5
