"""What an agent is made from and what it is made of."""

from dataclasses import dataclass
from typing import Protocol

from torchrl.data import TensorSpec
from torchrl.modules import ProbabilisticActor
from torchrl.objectives import LossModule
from torchrl.objectives.utils import TargetNetUpdater


@dataclass(frozen=True)
class Specs:
    """The spaces of one environment, without batch dimensions.

    `observation` is a float32 vector `(n,)` or the int64 index `()` of a discrete state; `action` is a
    float32 vector `(n,)` in [-1, 1] or the int64 index `()` of a discrete action.
    """

    observation: TensorSpec
    action: TensorSpec


class Statistics(Protocol):
    """Running statistics of the networks, moved by what the newest losses have seen."""

    def step(self) -> None:
        """Move them once."""


@dataclass(frozen=True)
class Agent:
    """An actor, the loss that trains it and the updaters of the loss's target networks, in TorchRL's types.

    `targets` is empty where a variant has no target networks, `statistics` where nothing is normalised by batches.
    """

    actor: ProbabilisticActor
    loss: LossModule
    targets: tuple[TargetNetUpdater, ...]
    statistics: tuple[Statistics, ...] = ()
