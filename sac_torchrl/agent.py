"""What an agent is made from and what it is made of."""

from dataclasses import dataclass, field

from torchrl.data import TensorSpec
from torchrl.modules import ProbabilisticActor
from torchrl.objectives import LossModule
from torchrl.objectives.utils import TargetNetUpdater

from sac_torchrl.temperature import Temperature


@dataclass(frozen=True)
class Specs:
    """The spaces of one environment, without batch dimensions.

    `observation` is a float32 vector `(n,)` or the int64 index `()` of a discrete state; `action` is a
    float32 vector `(n,)` in [-1, 1] or the int64 index `()` of a discrete action.
    """

    observation: TensorSpec
    action: TensorSpec


@dataclass(frozen=True)
class Agent:
    """An actor, the loss that trains it and the updaters of the loss's target networks, in TorchRL's types.

    `targets` is empty where a variant has no target networks. `temperature` follows each update.
    """

    actor: ProbabilisticActor
    loss: LossModule
    targets: tuple[TargetNetUpdater, ...]
    temperature: Temperature = field(default_factory=Temperature)
