"""The spaces of an agent, and the names of the columns that a row of the replay buffer may have."""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from gymnasium import Space
from torch import Tensor
from torchrl.data import Composite, TensorSpec

from sac_torchrl.errors import ConfigError

# Key of the behavior policy's entropy, stored if Specs.entropy.
ENTROPY = "entropy"

# Key of a row's environment and the number of its episode there, stored if Specs.episodes.
EPISODE = "episode"

# Name of the observation's leaf that says which actions are legal.
MASK = "action_mask"

# Number of frames that a row spans: TorchRL's TD targets raise the discount to this power.
SPAN = "steps_to_next_obs"

# Keys of the importance weights that TorchRL's sampler writes into a batch, and of the TD errors that the learner adds.
WEIGHT, ERROR = "priority_weight", "td_error"

# The most joint values of discrete actions that are summed over.
MOST_ENUMERATED = 1024


def legal_actions(mask: Tensor, count: int) -> Tensor:
    """Which of `count` actions are legal, bool `(..., count)`, by a leaf `action_mask`, in bits or not."""
    if mask.dtype is torch.bool:
        return mask
    # numpy.packbits puts the first of eight into the highest bit.
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=mask.device)
    return ((mask.unsqueeze(-1) >> shifts) & 1).flatten(-2)[..., :count].to(torch.bool)


@dataclass(frozen=True)
class HybridAction:
    """How a vector `(M + D,)` in [-1, 1] holds an action of M discrete and then D continuous numbers.

    Discrete number m has `sizes[m]` values. Value k of n is stored as the middle of the k-th of n equal parts of
    [-1, 1], (2k + 1) / n - 1, and every number in that part stands for it: uniform numbers are uniform values.
    `parameters` lists the continuous numbers, from 0 to D - 1, that belong to each joint value of the discrete ones,
    the last of them running fastest. A joint value makes no use of the others.
    """

    sizes: tuple[int, ...]
    dimensions: int
    parameters: tuple[tuple[int, ...], ...]

    @cached_property
    def centers(self) -> list[list[float]]:
        """The stored numbers of each joint value, `(K, M)`."""
        joint = itertools.product(*(range(size) for size in self.sizes))
        return [[(2 * k + 1) / n - 1 for k, n in zip(values, self.sizes, strict=True)] for values in joint]

    @cached_property
    def belongs(self) -> list[list[bool]]:
        """Whether each continuous number belongs to each joint value, `(K, D)`."""
        return [[number in own for number in range(self.dimensions)] for own in self.parameters]

    @property
    def joint(self) -> int:
        """The number of joint values, K."""
        return math.prod(self.sizes)

    def __str__(self) -> str:
        sizes = " x ".join(str(size) for size in self.sizes)
        return f"{sizes} discrete values with {self.dimensions} continuous parameters"


@dataclass(frozen=True)
class Specs:
    """The spaces of one environment, without batch dimensions, and what a stored row holds besides.

    `observation` is a float32 vector `(n,)`, the int64 index `()` of a discrete state, the int64 indices `(n,)` of a
    MultiCategorical, or a Composite of such leaves by name, of which a row holds `("observation", name)`. Its leaf
    `action_mask`, if it is bool `(n,)` or the bits of that in uint8, is the mask of legal actions. `action` is a
    float32 vector `(n,)` in [-1, 1], the int64 index `()` of a discrete action, or the int64 indices `(n,)` of several.
    With `n_steps` above 1 a row holds the rewards of that many frames, discounted by `gamma`, as one. With `entropy`
    a row holds the entropy, in nats, of the policy that chose its action. With `episodes` a row holds its environment
    and the number of its episode there, int32 `(2,)`. `observation_space` and `action_space` are
    the environment's own, null where they are the agent's. `hybrid` says which columns of `action` are discrete.
    """

    observation: TensorSpec
    action: TensorSpec
    n_steps: int = 1
    gamma: float = 0.99
    entropy: bool = False
    episodes: bool = False
    observation_space: Space[Any] | None = None
    action_space: Space[Any] | None = None
    hybrid: HybridAction | None = None

    def __post_init__(self) -> None:
        leaves = self.action.values(True, True) if isinstance(self.action, Composite) else [self.action]
        for leaf in leaves:
            if not leaf.dtype.is_floating_point:
                continue
            space: Any = leaf.space
            low, high = space.low, space.high
            if (low != -1).any() or (high != 1).any():
                raise ConfigError(
                    f"actions from {low.min():g} to {high.max():g}, and those of the agent are in [-1, 1]: open the "
                    "environment with EnvConfig, which rescales them, or append "
                    "torchrl.envs.transforms.ActionScaling() to yours."
                )

    @property
    def mask(self) -> TensorSpec | None:
        """The leaf `action_mask` where it is a mask of legal actions, which networks do not read."""
        leaf = self.leaves.get(("observation", MASK))
        return leaf if leaf is not None and leaf.dtype in (torch.bool, torch.uint8) else None

    @property
    def leaves(self) -> dict[tuple[str, ...], TensorSpec]:
        """The spec of each observation leaf by its key in a row, `("observation",)` or `("observation", name)`."""
        if isinstance(self.observation, Composite):
            return {("observation", name): leaf for name, leaf in self.observation.items()}
        return {("observation",): self.observation}
