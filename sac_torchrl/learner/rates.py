"""Learning rates that change from update to update."""

import math
from enum import Enum
from typing import Any

import torch
from torch.optim import Optimizer


class Schedule(Enum):
    """The learning rate over a run, as a factor of its value in the configuration.

    `linear` falls to 0 at the last update, `cosine` along half a cosine (Loshchilov and Hutter 2017, arXiv 1608.03983,
    equation 5, without restarts).
    """

    constant = "constant"
    linear = "linear"
    cosine = "cosine"

    def factor(self, number: int, *, warmup: int, updates: int) -> float:
        """The factor for update `number` of `updates`, counted from 1; rises linearly over the first `warmup`."""
        if number <= warmup:
            return number / warmup
        progress = min(1.0, (number - 1 - warmup) / max(1, updates - warmup))
        match self:
            case Schedule.constant:
                return 1.0
            case Schedule.linear:
                return 1.0 - progress
            case Schedule.cosine:
                return (1.0 + math.cos(math.pi * progress)) / 2.0


class Rates:
    """Holds the learning rates of optimizers in tensors, which a recorded update reads each time."""

    def __init__(self, optimizers: dict[str, Optimizer], schedule: Schedule, *, warmup: int, updates: int) -> None:
        self._schedule, self._warmup, self._updates = schedule, warmup, updates
        self._optimizers = optimizers
        self._base: list[float] = [group["lr"] for group in self._groups()]
        self._tensors = [_tensor(group) for group in self._groups()]

    def set(self, number: int) -> None:
        """Set the rates for update `number`, counted from 1."""
        factor = self._schedule.factor(number, warmup=self._warmup, updates=self._updates)
        for group, base, tensor in zip(self._groups(), self._base, self._tensors, strict=True):
            group["lr"] = tensor.fill_(base * factor)  # an optimizer that loads a state makes other groups

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._optimizers.values() for group in optimizer.param_groups]


def _tensor(group: dict[str, Any]) -> torch.Tensor:
    device = group["params"][0].device
    # The fused kernel of CUDA reads a float32.
    return torch.tensor(group["lr"], dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
