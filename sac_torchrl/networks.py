"""The networks inside actors and critics: an encoder for the observation and a perceptron behind it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torchrl.data import Categorical, TensorSpec
from torchrl.modules import MLP

from sac_torchrl.errors import ConfigError


class OneHot(nn.Module):
    """The index of a discrete state, int64 `(...)`, as a one-hot vector `(..., states)`."""

    classes: Tensor

    def __init__(self, states: int, *, device: torch.device | None = None) -> None:
        super().__init__()
        self.register_buffer("classes", torch.arange(states, device=device), persistent=False)

    def forward(self, index: Tensor) -> Tensor:
        """Encode in torch's default floating point type, which is that of newly built networks."""
        return (index.unsqueeze(-1) == self.classes).to(torch.get_default_dtype())


class Encoded(nn.Module):
    """A network on an encoded observation, with any further inputs (an action) beside it."""

    def __init__(self, encoder: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.network = network

    def forward(self, observation: Tensor, *inputs: Tensor) -> Tensor:
        """Return the network's output for `observation` and `inputs`, which share their batch dimensions."""
        output: Tensor = self.network(self.encoder(observation), *inputs)
        return output


@dataclass
class Network:
    """A ReLU perceptron; a discrete observation enters one-hot, or through a learned embedding.

    Two hidden layers of 256 are the size of every system SAC descends from (Haarnoja et al. 2018b, table 1).
    """

    hidden: list[int] = field(default_factory=lambda: [256, 256])
    embedding: int | None = None

    def __post_init__(self) -> None:
        if any(width < 1 for width in self.hidden):
            raise ConfigError(f"network.hidden={list(self.hidden)}: every layer needs a width of at least 1.")
        if self.embedding is not None and self.embedding < 1:
            raise ConfigError(f"network.embedding={self.embedding}: give a size of at least 1, or null for one-hot.")

    def build(
        self,
        observation: TensorSpec,
        *,
        inputs: int = 0,
        outputs: int,
        device: torch.device,
        perceptron: Callable[[int, int], nn.Module] | None = None,
    ) -> nn.Module:
        """Map an observation, and `inputs` further numbers, to `outputs` numbers.

        The module takes `(..., n)` float32 or `(...)` int64 observations and, where `inputs` is not 0, a second
        tensor `(..., inputs)`; it returns `(..., outputs)`. `perceptron` builds another network behind the encoder,
        from the numbers of its inputs and outputs; it concatenates the tensors that it is given.
        """
        if not isinstance(observation, Categorical):
            features = observation.shape[-1]
        elif self.embedding is None:
            features = observation.space.n
        else:
            features = self.embedding
        network = (perceptron or self._perceptron)(features + inputs, outputs).to(device)
        if not isinstance(observation, Categorical):
            return network
        states = observation.space.n
        if self.embedding is None:
            return Encoded(OneHot(states, device=device), network)
        return Encoded(nn.Embedding(states, self.embedding, device=device), network)

    def _perceptron(self, inputs: int, outputs: int) -> nn.Module:
        return MLP(in_features=inputs, out_features=outputs, num_cells=list(self.hidden), activation_class=nn.ReLU)
