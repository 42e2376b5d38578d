"""The networks inside actors and critics: an encoder for the observation and a perceptron behind it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.data import Categorical, Composite, MultiCategorical, TensorSpec
from torchrl.modules import MLP

from sac_torchrl.errors import ConfigError
from sac_torchrl.fields import check, field


class OneHot(nn.Module):
    """The index of a discrete state, int64 `(...)`, as a one-hot vector `(..., states)`."""

    def __init__(self, states: int) -> None:
        super().__init__()
        self.states = states

    def forward(self, index: Tensor) -> Tensor:
        """Encode in torch's default floating point type, which is that of newly built networks."""
        # One shared constant: with a tensor for each network, a recording would encode once for every network.
        classes = torch.arange(self.states, device=index.device)
        return (index.unsqueeze(-1) == classes).to(torch.get_default_dtype())


class OneHots(nn.Module):
    """Several indices, int64 `(..., n)`, as one-hot vectors side by side, `(..., sum of counts)`."""

    def __init__(self, counts: Sequence[int]) -> None:
        super().__init__()
        self.counts = list(counts)

    def forward(self, indices: Tensor) -> Tensor:
        """Encode in torch's default floating point type."""
        # One comparison of all, in operations that every exporter knows: an index is repeated for each of its classes.
        pairs = [(place, number) for place, count in enumerate(self.counts) for number in range(count)]
        places, classes = torch.tensor(pairs, device=indices.device).unbind(-1)
        return (indices.index_select(-1, places) == classes).to(torch.get_default_dtype())


class Embeddings(nn.Module):
    """Several indices, int64 `(..., n)`, through a learned embedding each, side by side, `(..., n * size)`."""

    def __init__(self, counts: Sequence[int], size: int, *, device: torch.device) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(count, size, device=device) for count in counts)

    def forward(self, indices: Tensor) -> Tensor:
        """Look up and concatenate the embeddings."""
        return torch.cat([one(index) for one, index in zip(self.embeddings, indices.unbind(-1), strict=True)], -1)


class Leaves(nn.Module):
    """The leaves `names` of an observation, a TensorDict, each encoded by one of `encoders`, side by side."""

    def __init__(self, names: Sequence[str], encoders: Sequence[nn.Module]) -> None:
        super().__init__()
        self.names = list(names)
        self.encoders = nn.ModuleList(encoders)

    def forward(self, observation: TensorDictBase) -> Tensor:
        """Return features `(..., n)`; other leaves are left alone and may be missing."""
        return torch.cat(
            [encoder(observation.get(name)) for name, encoder in zip(self.names, self.encoders, strict=True)], -1
        )


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
    (pytorch_sac, jaxrl), `he_normal` (Christodoulou 2019) and `lecun_normal`, which is cut off at two standard
    deviations (Flax for CrossQ).
    """

    torch = "torch"
    xavier_uniform = "xavier_uniform"
    orthogonal = "orthogonal"
    he_normal = "he_normal"
    lecun_normal = "lecun_normal"

    def __call__(self, network: nn.Module) -> None:
        """Initialize the weights of every linear layer in `network` from torch's global generator."""
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


# 4 GB of float32 in one layer, of which an agent has ten: three networks, their gradients, moments and targets.
_MOST_WEIGHTS = 10**9


def _leaves(observation: TensorSpec) -> list[TensorSpec]:
    return list(observation.values(True, True)) if isinstance(observation, Composite) else [observation]


@dataclass
class NetworkConfig:
    """A ReLU perceptron; discrete observations enter one-hot, or through a learned embedding each."""

    hidden: list[int] = field(
        [256, 256], "widths of the hidden layers (Haarnoja et al. 2018b, table 1, and every system since)", least=1
    )
    embedding: int | None = field(None, "size of a discrete observation's embedding; null: one-hot", least=1)
    init: Init = field(Init.torch, "how the linear layers' weights are drawn: see networks.Init")

    def __post_init__(self) -> None:
        check(self, "variant.network")

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

        The module takes `(..., n)` float32 or `(...)` int64 observations, or a TensorDict of such leaves where
        `observation` is a Composite, and, where `inputs` is not 0, a second tensor `(..., inputs)`; it returns
        `(..., outputs)`. `perceptron` builds another network behind the encoder,
        from the numbers of its inputs and outputs; it concatenates the tensors that it is given. `init` is for it too.
        """
        self._refuse_huge(observation, inputs, outputs)
        # The encoder's own weights are drawn after those of the perceptron.
        network = (perceptron or self._perceptron)(self._features(observation) + inputs, outputs).to(device)
        self.init(network)
        encoder = self._encoder(observation, device)
        return network if isinstance(encoder, nn.Identity) else Encoded(encoder, network)

    def _refuse_huge(self, observation: TensorSpec, inputs: int, outputs: int) -> None:
        """Raise ConfigError for a layer of more weights than fit, before memory is asked for."""
        features, widths = self._features(observation) + inputs, [*self.hidden, outputs]
        rows = list[int]()
        for leaf in _leaves(observation):
            if isinstance(leaf, MultiCategorical):  # a Categorical too
                rows += [int(count) for count in leaf.nvec]
            elif isinstance(leaf, Categorical):
                rows.append(int(leaf.space.n))
        layers = {
            "observation": max(features * widths[0], max(rows, default=0) * (self.embedding or 0)),
            "action space": outputs * (self.hidden[-1] if self.hidden else features),
        }
        for what, weights in layers.items():
            if weights > _MOST_WEIGHTS:
                count = max(rows, default=features) if what == "observation" else outputs
                raise ConfigError(
                    f"the {what} has {count:,} values, for which every network would need a layer of {weights:,} "
                    f"weights ({4 * weights / 1e9:.1f} GB): give an environment with fewer, or one that gives numbers."
                )

    def _features(self, observation: TensorSpec) -> int:
        """The number of features that the encoder of `observation` makes."""
        match observation:
            case Composite():
                return sum(self._features(leaf) for leaf in observation.values())
            case MultiCategorical():
                counts = [int(count) for count in observation.nvec]
                return sum(counts) if self.embedding is None else len(counts) * self.embedding
            case Categorical():
                return int(observation.space.n) if self.embedding is None else self.embedding
            case _:
                return int(observation.shape[-1])

    def _encoder(self, observation: TensorSpec, device: torch.device) -> nn.Module:
        """What a kind of leaf needs before a perceptron can take it."""
        match observation:
            case Composite():
                encoders = [self._encoder(leaf, device) for leaf in observation.values()]
                return Leaves(list(observation.keys()), encoders)
            case MultiCategorical():
                counts = [int(count) for count in observation.nvec]
                if self.embedding is None:
                    return OneHots(counts)
                return Embeddings(counts, self.embedding, device=device)
            case Categorical():
                states = int(observation.space.n)
                if self.embedding is None:
                    return OneHot(states)
                return nn.Embedding(states, self.embedding, device=device)
            case _:
                return nn.Identity()

    def _perceptron(self, inputs: int, outputs: int) -> nn.Module:
        return MLP(in_features=inputs, out_features=outputs, num_cells=list(self.hidden), activation_class=nn.ReLU)
