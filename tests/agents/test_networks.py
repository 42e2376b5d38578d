import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torchrl.data import Categorical, TensorSpec, Unbounded

from sac_torchrl.agents.networks import Init, NetworkConfig, OneHot

CPU = torch.device("cpu")
VECTOR = Unbounded(shape=3)
STATES = Categorical(5)


def perceptron(network: nn.Module, value: Tensor) -> Tensor:
    """The linear layers inside `network` with a ReLU between any two, in plain torch."""
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    for layer in layers[:-1]:
        value = torch.relu(value @ layer.weight.T + layer.bias)
    return value @ layers[-1].weight.T + layers[-1].bias


def test_one_hot_of_every_state_is_the_identity() -> None:
    encoded = OneHot(4)(torch.tensor([[0, 1], [2, 3]]))
    assert encoded.dtype is torch.float32
    assert torch.equal(encoded, torch.eye(4).reshape(2, 2, 4))


def test_one_hot_has_the_type_of_newly_built_networks() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert OneHot(4)(torch.tensor(1)).dtype is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("hidden", [[], [7], [8, 6]])
@pytest.mark.parametrize("inputs", [0, 2])
def test_a_vector_passes_through_relu_layers(hidden: list[int], inputs: int) -> None:
    torch.manual_seed(0)
    network = NetworkConfig(hidden).build(VECTOR, inputs=inputs, outputs=4, device=CPU)
    values = [torch.randn(2, 9, 3)] + ([torch.randn(2, 9, inputs)] if inputs else [])
    torch.testing.assert_close(network(*values), perceptron(network, torch.cat(values, -1)))
    widths = [module.weight.shape for module in network.modules() if isinstance(module, nn.Linear)]
    assert widths == [(out, into) for into, out in pairwise([3 + inputs, *hidden, 4])]


@pytest.mark.parametrize("inputs", [0, 2])
def test_a_state_enters_one_hot(inputs: int) -> None:
    torch.manual_seed(0)
    network = NetworkConfig([8]).build(STATES, inputs=inputs, outputs=4, device=CPU)
    states = torch.tensor([[3, 0, 4], [1, 2, 3]])
    beside = [torch.randn(2, 3, inputs)] if inputs else []
    expected = perceptron(network, torch.cat([nn.functional.one_hot(states, 5).float(), *beside], -1))
    assert expected.shape == (2, 3, 4)
    torch.testing.assert_close(network(states, *beside), expected)


@pytest.mark.parametrize("inputs", [0, 2])
def test_a_state_enters_through_a_learned_embedding(inputs: int) -> None:
    torch.manual_seed(0)
    network = NetworkConfig([8], embedding=6).build(STATES, inputs=inputs, outputs=4, device=CPU)
    [table] = [module.weight for module in network.modules() if isinstance(module, nn.Embedding)]
    assert table.shape == (5, 6)
    assert any(parameter is table for parameter in network.parameters())
    states = torch.tensor([[3, 0, 4], [1, 2, 3]])
    beside = [torch.randn(2, 3, inputs)] if inputs else []
    torch.testing.assert_close(network(states, *beside), perceptron(network, torch.cat([table[states], *beside], -1)))


def test_a_state_without_a_batch_is_one_row() -> None:
    network = NetworkConfig([8]).build(STATES, outputs=4, device=CPU)
    assert torch.equal(network(torch.tensor(2)), network(torch.tensor([2]))[0])


@pytest.mark.parametrize("init", [init for init in Init if init is not Init.torch])
@pytest.mark.parametrize("observation", [VECTOR, STATES], ids=["vector", "index"])
def test_weights_are_drawn_as_configured_and_biases_are_zero(init: Init, observation: TensorSpec) -> None:
    torch.manual_seed(0)
    network = NetworkConfig([400, 300], init=init).build(observation, outputs=4, device=CPU)
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    assert len(layers) == 3
    for layer in layers:
        outputs, inputs = layer.weight.shape
        assert not layer.bias.any()
        match init:
            case Init.xavier_uniform:
                bound = math.sqrt(6 / (inputs + outputs))
                assert 0.97 * bound < float(layer.weight.detach().abs().max()) <= bound
            case Init.orthogonal:
                square = layer.weight @ layer.weight.T if outputs <= inputs else layer.weight.T @ layer.weight
                torch.testing.assert_close(square, torch.eye(min(layer.weight.shape)), rtol=0, atol=1e-5)
            case Init.he_normal:
                assert float(layer.weight.detach().std()) == pytest.approx(math.sqrt(2 / inputs), rel=0.1)
            case Init.lecun_normal:
                assert float(layer.weight.detach().std()) == pytest.approx(math.sqrt(1 / inputs), rel=0.1)
                assert float(layer.weight.detach().abs().max()) <= 2 / 0.8796 / math.sqrt(inputs)


def test_without_a_choice_weights_and_biases_are_those_of_torch() -> None:
    torch.manual_seed(0)
    network = NetworkConfig([8]).build(VECTOR, outputs=2, device=CPU)
    torch.manual_seed(0)
    layers = [nn.Linear(3, 8), nn.Linear(8, 2)]
    found = [module for module in network.modules() if isinstance(module, nn.Linear)]
    for layer, expected in zip(found, layers, strict=True):
        assert torch.equal(layer.weight, expected.weight)
        assert torch.equal(layer.bias, expected.bias)
