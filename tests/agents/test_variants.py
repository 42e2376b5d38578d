import math
from itertools import combinations

import pytest
import torch
from torchrl.data import Bounded, Categorical, TensorSpec, Unbounded

from sac_torchrl.agents.agent import Agent
from sac_torchrl.agents.discrete_sac import DiscreteSAC
from sac_torchrl.agents.networks import NetworkConfig
from sac_torchrl.agents.sac import SAC
from sac_torchrl.agents.variant import Variant
from sac_torchrl.specs import Specs

CPU = torch.device("cpu")
VECTOR = Unbounded(shape=3)
CONTINUOUS = Specs(VECTOR, Bounded(-1, 1, shape=2))
DISCRETE = Specs(VECTOR, Categorical(4))
SMALL = NetworkConfig([8])


def build(*, discrete: bool, critics: int = 2, fixed_alpha: bool = False, seed: int = 0) -> Agent:
    torch.manual_seed(seed)
    if discrete:
        return DiscreteSAC(SMALL, critics=critics, fixed_alpha=fixed_alpha).build(DISCRETE, device=CPU)
    return SAC(network=SMALL, critics=critics, fixed_alpha=fixed_alpha).build(CONTINUOUS, device=CPU)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("critics", [1, 2, 3])
def test_critics_are_drawn_independently(discrete: bool, critics: int) -> None:
    leaves = list(build(discrete=discrete, critics=critics).loss.qvalue_network_params.values(True, True))
    assert len(leaves) == 4
    for leaf in leaves:
        assert leaf.shape[0] == critics
        assert not any(torch.equal(one, other) for one, other in combinations(leaf, 2))


@pytest.mark.parametrize("observation", [VECTOR, Categorical(5)], ids=["vector", "index"])
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("critics", [1, 2, 3])
def test_critics_keep_the_weights_they_were_built_with(observation: TensorSpec, discrete: bool, critics: int) -> None:
    """TorchRL draws the weights of a critic that it copies itself anew, from another distribution."""
    network = NetworkConfig([8], embedding=6)
    torch.manual_seed(0)
    if discrete:
        agent = DiscreteSAC(network, critics=critics).build(Specs(observation, Categorical(4)), device=CPU)
    else:
        agent = SAC(network=network, critics=critics).build(Specs(observation, Bounded(-1, 1, shape=2)), device=CPU)
    torch.manual_seed(0)
    network.build(observation, outputs=4, device=CPU)
    inputs, outputs = (0, 4) if discrete else (2, 1)
    built = [network.build(observation, inputs=inputs, outputs=outputs, device=CPU) for _ in range(critics)]
    found = [leaf for name, leaf in agent.loss.named_parameters() if name.startswith("qvalue_network_params")]
    expected = [torch.stack(leaves) for leaves in zip(*(critic.parameters() for critic in built), strict=True)]
    assert len(found) == len(expected)
    assert all(torch.equal(leaf, value) for leaf, value in zip(found, expected, strict=True))


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("critics", [1, 2, 3])
def test_targets_start_as_exact_copies(discrete: bool, critics: int) -> None:
    loss = build(discrete=discrete, critics=critics).loss
    online = dict(loss.qvalue_network_params.items(True, True))
    targets = dict(loss.target_qvalue_network_params.items(True, True))
    assert online.keys() == targets.keys()
    for key, target in targets.items():
        assert torch.equal(target, online[key])
        assert target.data_ptr() != online[key].data_ptr()
        assert not target.requires_grad


@pytest.mark.parametrize("discrete", [False, True])
def test_the_same_seed_builds_the_same_agent(discrete: bool) -> None:
    one, same, other = (build(discrete=discrete, seed=seed).loss.state_dict() for seed in (1, 1, 2))
    key = next(key for key in one if key.startswith("qvalue_network_params") and key.endswith("weight"))
    assert torch.equal(one[key], same[key])
    assert not torch.equal(one[key], other[key])


@pytest.mark.parametrize("discrete", [False, True])
def test_the_loss_trains_the_actor_that_acts(discrete: bool) -> None:
    agent = build(discrete=discrete)
    trained = [parameter for name, parameter in agent.loss.named_parameters() if name.startswith("actor_network")]
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in agent.actor.parameters()}


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_the_entropy_target_counts_action_dimensions(dimensions: int) -> None:
    specs = Specs(VECTOR, Bounded(-1, 1, shape=dimensions))
    assert float(SAC(network=SMALL).build(specs, device=CPU).loss.target_entropy) == -dimensions
    halved = SAC(network=SMALL, entropy_per_dimension=-0.5)
    assert float(halved.build(specs, device=CPU).loss.target_entropy) == -dimensions / 2
    assert float(SAC(network=SMALL, target_entropy=-0.5).build(specs, device=CPU).loss.target_entropy) == -0.5
    assert float(SAC(network=SMALL, target_entropy=0.0).build(specs, device=CPU).loss.target_entropy) == 0


def test_actor_and_critics_may_have_other_sizes() -> None:
    for variant, specs in (
        (SAC(network=SMALL, critic_hidden=[12, 6]), CONTINUOUS),
        (DiscreteSAC(SMALL, critic_hidden=[12, 6]), DISCRETE),
    ):
        loss = variant.build(specs, device=CPU).loss
        widths = [
            [leaf.shape[-2] for key, leaf in parameters.items(True, True) if key[-1] == "weight"][:-1]
            for parameters in (loss.actor_network_params, loss.qvalue_network_params)
        ]
        assert widths == [[8], [12, 6]]


@pytest.mark.parametrize(("actions", "ratio"), [(2, 0.2), (6, 0.2), (6, 0.98), (6, 0.0)])
def test_the_discrete_entropy_target_is_a_part_of_the_uniform_entropy(actions: int, ratio: float) -> None:
    variant = DiscreteSAC(SMALL, target_entropy_ratio=ratio)
    agent = variant.build(Specs(VECTOR, Categorical(actions)), device=CPU)
    assert float(agent.loss.target_entropy) == pytest.approx(ratio * math.log(actions))


@pytest.mark.parametrize("fixed_alpha", [False, True])
def test_the_temperature_starts_where_asked(fixed_alpha: bool) -> None:
    variant = SAC(network=SMALL, alpha=0.3, fixed_alpha=fixed_alpha)
    assert float(variant.build(CONTINUOUS, device=CPU).loss.log_alpha.detach().exp()) == pytest.approx(0.3)


@pytest.mark.parametrize("variant", [SAC(gamma=1.0, tau=0.5), SAC(gamma=0.0), DiscreteSAC(gamma=1.0, critics=1)])
def test_the_ends_of_the_ranges_are_allowed(variant: Variant) -> None:
    assert variant.build(CONTINUOUS if isinstance(variant, SAC) else DISCRETE, device=CPU).targets


@pytest.mark.parametrize("variant", [SAC(network=SMALL, tau=1.0), DiscreteSAC(SMALL, tau=1.0)])
def test_targets_may_follow_at_once(variant: Variant) -> None:
    agent = variant.build(CONTINUOUS if isinstance(variant, SAC) else DISCRETE, device=CPU)
    for _ in range(3):
        with torch.no_grad():
            for leaf in agent.loss.qvalue_network_params.values(True, True):
                leaf.add_(1)
        agent.targets[0].step()
        for key, target in agent.loss.target_qvalue_network_params.items(True, True):
            assert torch.equal(target, agent.loss.qvalue_network_params[key])
