"""Observations of mean 0 and variance 1 for the networks; the replay buffer keeps them as collected."""

import copy
from dataclasses import replace
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.data import Composite, TensorDictReplayBuffer, TensorSpec

from sac_torchrl.agents.agent import Agent
from sac_torchrl.errors import ConfigError
from sac_torchrl.specs import ERROR, Specs


class Normalizer(nn.Module):
    """(observation - mean) / sqrt(variance + 1e-8), over all rows that were ever stored.

    The statistics are buffers in float64, and only `read` changes them: evaluation and training do not. `elsewhere`
    counts the rows they hold that were never in the buffer of this run.
    """

    mean: Tensor
    var: Tensor
    seen: Tensor

    def __init__(self, features: int, *, device: torch.device, key: tuple[str, ...] = ("observation",)) -> None:
        super().__init__()
        self._key = key
        self.elsewhere = 0
        self.register_buffer("mean", torch.zeros(features, dtype=torch.float64, device=device))
        self.register_buffer("var", torch.ones(features, dtype=torch.float64, device=device))
        # On the CPU, where it is read at every step.
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, observation: Tensor) -> Tensor:
        """Normalize `(..., features)`, in the type of the observation."""
        deviation = (self.var + 1e-8).sqrt()
        return (observation - self.mean.to(observation.dtype)) / deviation.to(observation.dtype)

    @torch.no_grad()
    def read(self, buffer: TensorDictReplayBuffer) -> None:
        """Take in the rows that were stored since the last call (Chan, Golub and LeVeque 1983, equation 2.1)."""
        seen, written, capacity = int(self.seen) - self.elsewhere, buffer.write_count, buffer.storage.max_size
        if written <= seen:
            return
        positions = torch.arange(max(seen, written - capacity), written, device=buffer.storage.device) % capacity
        new = buffer.storage.get(positions).get(self._key).to(self.mean.device, torch.float64)
        shift, share = new.mean(0) - self.mean, (written - seen) / (written + self.elsewhere)
        inside = (1 - share) * self.var + share * new.var(0, correction=0)
        self.var.copy_(inside + share * (1 - share) * shift**2)
        self.mean.add_(share * shift)
        self.seen.fill_(written + self.elsewhere)


class LeafNormalizers(nn.Module):
    """A `Normalizer` for every leaf of an observation that holds numbers; indices stay as they are."""

    def __init__(self, leaves: dict[tuple[str, ...], TensorSpec], *, device: torch.device) -> None:
        super().__init__()
        self._names = [name for _, name in leaves]
        self.normalizers = nn.ModuleList(
            Normalizer(leaf.shape[-1], device=device, key=key) for key, leaf in leaves.items()
        )

    def forward(self, observation: TensorDictBase) -> TensorDictBase:
        """Normalize the leaves that are there, in a TensorDict of its own."""
        observation = observation.copy()
        for name, normalizer in zip(self._names, self.normalizers, strict=True):
            if name in observation:
                observation.set(name, normalizer(observation.get(name)))
        return observation

    def read(self, buffer: TensorDictReplayBuffer) -> None:
        """Take in the rows that were stored since the last call."""
        for normalizer in self.normalizers:
            assert isinstance(normalizer, Normalizer)
            normalizer.read(buffer)


def with_normalization(agent: Agent, specs: Specs, *, device: torch.device) -> Agent:
    """Put a `Normalizer` before the networks of an agent: before its loss, and in the actor that acts.

    Raises ConfigError where states are discrete.
    """
    numbers = {key: leaf for key, leaf in specs.leaves.items() if leaf.dtype.is_floating_point}
    if not numbers:
        raise ConfigError("normalize=true: discrete states are no numbers to normalize; give normalize=false.")
    normalizer: Normalizer | LeafNormalizers
    if isinstance(specs.observation, Composite):
        normalizer = LeafNormalizers(numbers, device=device)
    else:
        normalizer = Normalizer(specs.observation.shape[-1], device=device)

    given: list[TensorDictBase] = []

    def normalize(loss: nn.Module, inputs: tuple[TensorDictBase, ...]) -> tuple[TensorDictBase, ...]:
        given.append(inputs[0])
        batch = inputs[0].copy()
        for key in ("observation", ("next", "observation")):
            batch.set(key, normalizer(batch.get(key)))
        return (batch, *inputs[1:])

    def hand_back(loss: nn.Module, inputs: tuple[TensorDictBase, ...], losses: TensorDictBase) -> None:
        given.pop().set(ERROR, inputs[0].get(ERROR))

    agent.loss.add_module("normalizer", normalizer)  # its buffers are saved with the loss
    agent.loss.register_forward_pre_hook(normalize)
    agent.loss.register_forward_hook(hand_back)
    # The loss feeds observations that are normalized already to the actor's modules: the policy that acts needs
    # modules of its own, on the same parameters.
    shared = {id(tensor): tensor for tensor in (*agent.actor.parameters(), *agent.actor.buffers())}
    actor = copy.deepcopy(agent.actor, shared)
    head: Any = actor.module[0]
    head.module = nn.Sequential(normalizer, head.module)
    return replace(agent, actor=actor, observers=(*agent.observers, normalizer))
