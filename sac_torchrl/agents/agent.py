"""An agent: actor, loss, target updaters and statistics."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from torchrl.data import TensorDictReplayBuffer
from torchrl.modules import ProbabilisticActor
from torchrl.objectives import LossModule
from torchrl.objectives.utils import TargetNetUpdater

from sac_torchrl.agents.temperature import Temperature


class Statistics(Protocol):
    """Running statistics of the networks, updated from the batches of the newest losses."""

    def step(self) -> None:
        """Update them once."""


class Observer(Protocol):
    """A part that is updated by collected rows, not by sampled ones."""

    def read(self, buffer: TensorDictReplayBuffer) -> None:
        """Update from the rows that were stored since the last call."""


@dataclass(frozen=True)
class Agent:
    """An actor, the loss that trains it and the updaters of the loss's target networks, in TorchRL's types.

    `targets` is empty where a variant has no target networks, `statistics` where nothing is normalized by batches.
    `temperature` follows each update. `rebuild` builds the agent once more, with other initial weights.
    """

    actor: ProbabilisticActor
    loss: LossModule
    targets: tuple[TargetNetUpdater, ...]
    temperature: Temperature = field(default_factory=Temperature)
    statistics: tuple[Statistics, ...] = ()
    observers: tuple[Observer, ...] = ()
    rebuild: Callable[[], "Agent"] | None = None

    def __deepcopy__(self, memo: object) -> "Agent":
        """Raises TypeError: a copy's actor and target updaters would no longer share the loss's tensors."""
        raise TypeError(
            "an Agent cannot be deep-copied: its actor, loss and targets share tensors, which copies would not. Build "
            "another one and give it this one's tensors: other.loss.load_state_dict(agent.loss.state_dict())."
        )

    def observe(self, buffer: TensorDictReplayBuffer) -> None:
        """Update `observers` (a normalizer of observations) from the new rows of `buffer`."""
        for observer in self.observers:
            observer.read(buffer)
