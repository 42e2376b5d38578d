"""The networks inside actors and critics: an encoder for the observation and a perceptron behind it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor, nn
from torchrl.data import Categorical, TensorSpec
from torchrl.modules import MLP

from sac_torchrl.errors import ConfigError


class OneHot(nn.Module):
    """The index of a discrete state, int64 `(...)`, as a one-hot vector `(..., states)`."""

    def __init__(self, states: int) -> None:
        super().__init__()
        self.states = states

    def forward(self, index: Tensor) -> Tensor:
        """Encode in torch's default floating point type, which is that of newly built networks."""
        # Made here: tensors of every network's own would keep a recording from encoding once for all of them.
        classes = torch.arange(self.states, device=index.device)
        return (index.unsqueeze(-1) == classes).to(torch.get_default_dtype())


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


class Init(Enum):
    """How the weights of linear layers are drawn.

    `torch`: PyTorch's default, uniform within 1/sqrt(inputs), biases too (Spinning Up, CleanRL, Stable-Baselines3);
    the others have biases of zero: `xavier_uniform` (haarnoja/sac, Keras for softlearning, REDQ, DroQ), `orthogonal`
    (pytorch_sac), `he_normal` (Christodoulou 2019) and `lecun_normal`, which is cut off at two standard deviations
    (Flax for CrossQ).
    """

    torch = "torch"
    xavier_uniform = "xavier_uniform"
    orthogonal = "orthogonal"
    he_normal = "he_normal"
    lecun_normal = "lecun_normal"

    def __call__(self, network: nn.Module) -> None:
        """Draw the weights of every linear layer in `network` anew, from torch's global generator."""
        for layer in network.modules() if self is not Init.torch else ():
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)
                match self:
                    case Init.xavier_uniform:
                        nn.init.xavier_uniform_(layer.weight)
                    case Init.orthogonal:
                        nn.init.orthogonal_(layer.weight)
                    case Init.he_normal:
                        nn.init.kaiming_normal_(layer.weight)
                    case Init.lecun_normal:
                        # A normal distribution cut off at two standard deviations keeps 0.8796 of its own.
                        std = layer.in_features**-0.5 / 0.87962566103423978
                        nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)


@dataclass
class NetworkConfig:
    """A ReLU perceptron; a discrete observation enters one-hot, or through a learned embedding.

    Two hidden layers of 256 are the size of every system SAC descends from (Haarnoja et al. 2018b, table 1).
    `init` is how the linear layers' weights are drawn.
    """

    hidden: list[int] = field(default_factory=lambda: [256, 256])
    embedding: int | None = None
    init: Init = Init.torch

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
        from the numbers of its inputs and outputs; it concatenates the tensors that it is given. `init` is for it too.
        """
        if not isinstance(observation, Categorical):
            features = observation.shape[-1]
        elif self.embedding is None:
            features = observation.space.n
        else:
            features = self.embedding
        network = (perceptron or self._perceptron)(features + inputs, outputs).to(device)
        self.init(network)
        if not isinstance(observation, Categorical):
            return network
        states = observation.space.n
        if self.embedding is None:
            return Encoded(OneHot(states), network)
        return Encoded(nn.Embedding(states, self.embedding, device=device), network)

    def _perceptron(self, inputs: int, outputs: int) -> nn.Module:
        return MLP(in_features=inputs, out_features=outputs, num_cells=list(self.hidden), activation_class=nn.ReLU)
