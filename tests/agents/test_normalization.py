import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Categorical, TensorDictReplayBuffer, Unbounded

from sac_torchrl import SAC, Agent, NetworkConfig, ReplayConfig, SimBa, Specs, Storage
from sac_torchrl.agents.normalization import Normalizer, with_normalization
from sac_torchrl.agents.variant import Variant
from sac_torchrl.errors import ConfigError
from sac_torchrl.learner.learner import LearnerConfig

CPU = torch.device("cpu")
SPECS = Specs(Unbounded(shape=torch.Size([3])), Bounded(-1, 1, shape=torch.Size([2])))
VARIANTS = pytest.mark.parametrize(
    "variant",
    [SAC(network=NetworkConfig([8])), SimBa(actor_width=8, critic_width=8)],
    ids=lambda variant: type(variant).__name__,
)


def transitions(count: int, *, seed: int) -> TensorDict:
    """Observations around (5, -100, 0.1), with deviations of 1, 20 and 0.01."""
    generator = torch.Generator().manual_seed(seed)

    def observed() -> torch.Tensor:
        noise = torch.randn(count, 3, generator=generator)
        return torch.tensor([5.0, -100.0, 0.1]) + noise * torch.tensor([1.0, 20.0, 0.01])

    return TensorDict(
        {
            "observation": observed(),
            "action": torch.rand(count, 2, generator=generator),
            "next": {
                "observation": observed(),
                "reward": torch.randn(count, 1, generator=generator),
                "terminated": torch.rand(count, 1, generator=generator) < 0.2,
            },
        },
        batch_size=[count],
    )


def build(variant: Variant, *, seed: int = 0) -> Agent:
    torch.manual_seed(seed)
    return with_normalization(variant.build(SPECS, device=CPU), SPECS, device=CPU)


def ring(folder: Path, capacity: int = 1_000) -> TensorDictReplayBuffer:
    return ReplayConfig(capacity, Storage.ram).build(folder, SPECS, rows=capacity, batch_size=8, seed=0, device=CPU)


@pytest.mark.parametrize("capacity", [50, 1_000])
def test_the_statistics_are_those_of_all_rows_ever_stored(tmp_path: Path, capacity: int) -> None:
    buffer, normalizer = ring(tmp_path, capacity), Normalizer(3, device=CPU)
    parts = [transitions(count, seed=count) for count in (1, 7, 30, 30, 2)]
    for part in parts:
        buffer.extend(part)
        normalizer.read(buffer)
        normalizer.read(buffer)  # nothing new
    everything: TensorDict = torch.cat(parts)
    seen = everything["observation"].double()
    torch.testing.assert_close(normalizer.mean, seen.mean(0), rtol=1e-9, atol=0)
    torch.testing.assert_close(normalizer.var, seen.var(0, correction=0), rtol=1e-9, atol=0)
    torch.testing.assert_close(
        normalizer(seen.float()), ((seen - seen.mean(0)) / seen.std(0, correction=0)).float(), rtol=1e-3, atol=1e-3
    )
    kept = transitions(2, seed=2)["observation"]
    last = (buffer.write_count - 1) % capacity
    assert torch.equal(buffer.storage.get(slice(None)).get("observation")[last], kept[-1]), "the buffer keeps what came"


@VARIANTS
def test_losses_and_actions_are_those_of_normalised_observations(tmp_path: Path, variant: Variant) -> None:
    buffer = ring(tmp_path)
    buffer.extend(transitions(300, seed=0))
    agent = build(variant)
    agent.observe(buffer)
    torch.manual_seed(0)
    plain = variant.build(SPECS, device=CPU)
    batch = transitions(16, seed=1)
    before = batch.clone()
    seen = transitions(300, seed=0)["observation"].double()
    by_hand = batch.clone()
    for key in ("observation", ("next", "observation")):
        by_hand[key] = ((batch[key] - seen.mean(0)) / seen.std(0, correction=0)).float()
    torch.manual_seed(1)
    found = agent.loss(batch)
    torch.manual_seed(1)
    expected = plain.loss(by_hand)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)
    assert torch.equal(batch["observation"], before["observation"])
    acts, would = (it.get_dist(td).loc for it, td in ((agent.actor, batch), (plain.actor, by_hand)))
    torch.testing.assert_close(acts, would, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain.actor.get_dist(batch).loc, would, atol=1e-2)
    trained = [parameter for name, parameter in agent.loss.named_parameters() if name.startswith("actor_network")]
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in agent.actor.parameters()}


def test_updates_and_evaluations_move_no_statistics(tmp_path: Path) -> None:
    buffer = ring(tmp_path)
    buffer.extend(transitions(50, seed=0))
    agent = build(SAC(network=NetworkConfig([8])))
    agent.observe(buffer)
    [normalizer] = agent.observers
    assert isinstance(normalizer, Normalizer)
    before = copy.deepcopy(normalizer.state_dict())
    LearnerConfig().build(agent).update(transitions(16, seed=3))
    agent.actor(transitions(16, seed=4))
    assert all(torch.equal(before[name], value) for name, value in normalizer.state_dict().items())


def test_discrete_states_are_refused() -> None:
    specs = replace(SPECS, observation=Categorical(5))
    with pytest.raises(ConfigError, match="normalize=true: discrete states"):
        with_normalization(SAC(network=NetworkConfig([8])).build(specs, device=CPU), specs, device=CPU)
