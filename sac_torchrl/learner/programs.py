"""What an update does on the device, recorded once for every plan and every form of a batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from sac_torchrl.agents.agent import Agent
from sac_torchrl.learner.capture import Captured, CudaGraph, Execution
from sac_torchrl.learner.precision import Precision
from sac_torchrl.specs import ERROR, WEIGHT

# What each loss of a TorchRL loss module trains: the parameters with names that begin so.
TRAINS = {
    "loss_qvalue": "qvalue_network_params",
    "loss_actor": "actor_network_params",
    "loss_value": "value_network_params",
    "loss_alpha": "log_alpha",
}
CRITICS = frozenset({"loss_qvalue", "loss_value"})

Computation = Callable[..., Sequence[Tensor]]
Form = tuple[tuple[Any, torch.Size, torch.dtype], ...]  # the key, shape and type of every column of a batch


@dataclass(frozen=True)
class Plan:
    """One update: the losses of each of its steps, in order, and whether the target networks move after the last."""

    steps: tuple[tuple[str, ...], ...]
    moves_targets: bool


@dataclass
class Losses:
    """A function from a batch's columns to gradients, in the order of the parameters, and then metrics.

    `metrics` names the latter, once the function has been called.
    """

    compute: Computation
    metrics: list[str] = field(default_factory=list)


class Programs:
    """Computes updates as `execution` says, and keeps what it recorded.

    A recording of losses holds for as long as the agent. That of a whole update also depends on the settings and the
    state of the optimizers: where settings changed it is dropped by itself, where the state was replaced by `clear`.
    """

    def __init__(
        self,
        agent: Agent,
        optimizers: dict[str, Optimizer],
        *,
        execution: Execution,
        precision: Precision,
        max_grad_norm: float | None = None,
    ) -> None:
        self._agent = agent
        self._optimizers = optimizers
        self._execution = execution
        self._precision = precision
        self._max_grad_norm = max_grad_norm
        self._losses: dict[tuple[tuple[str, ...], Form], Losses] = {}
        self._updates: dict[tuple[tuple[Plan, Form], ...], tuple[Computation, list[Losses]]] = {}
        self._settings: list[Any] = []

    def run(self, plans: Sequence[Plan], batches: Sequence[dict[Any, Tensor]]) -> dict[str, Tensor]:
        """Make an update with the columns of each batch, `(batch, ...)`; on a GPU `captured` makes one graph of all.

        Returns detached metrics, each of the newest update that computed it.
        """
        if (settings := _settings(self._optimizers)) != self._settings:  # A scheduler may have changed a learning rate.
            self.clear()
            self._settings = settings
        forms = [tuple((key, column.shape, column.dtype) for key, column in columns.items()) for columns in batches]
        parts = tuple(zip(plans, forms, strict=True))
        if parts not in self._updates:
            self._updates[parts] = self._sequence(parts)
        compute, losses = self._updates[parts]
        with self._precision.mode():
            values = compute(*chain.from_iterable(columns.values() for columns in batches))
        return dict(zip(chain.from_iterable(each.metrics for each in losses), values, strict=True))

    def clear(self) -> None:
        """Drop the recordings of updates: a CUDA graph would continue with the optimizers' old state."""
        self._updates.clear()

    def _sequence(self, parts: tuple[tuple[Plan, Form], ...]) -> tuple[Computation, list[Losses]]:
        """Updates in turn as a function from the columns of all batches to metrics, and the losses that name these."""
        made = {part: self._update(*part) for part in parts}

        def updates(*columns: Tensor) -> list[Tensor]:
            remaining, metrics = iter(columns), list[Tensor]()
            for part in parts:
                metrics += made[part][0](*islice(remaining, len(part[1])))
            return metrics

        graphed = self._execution is Execution.captured and next(self._agent.loss.parameters()).is_cuda
        losses = [each for part in parts for each in made[part][1]]
        return CudaGraph(updates) if graphed else updates, losses

    def _update(self, plan: Plan, form: Form) -> tuple[Computation, list[Losses]]:
        """The whole update as a function from a batch's columns to metrics, and the losses that name these."""
        losses = [self._losses_of(names, form) for names in plan.steps]
        steps = [
            self._step(names, last=number == len(plan.steps), moves_targets=plan.moves_targets)
            for number, names in enumerate(plan.steps, start=1)
        ]

        def update(*columns: Tensor) -> list[Tensor]:
            metrics = list[Tensor]()
            for each, step in zip(losses, steps, strict=True):
                values = each.compute(*columns)
                gradients = len(values) - len(each.metrics)
                step(*values[:gradients])
                metrics += values[gradients:]
            return metrics

        return update, losses

    def _losses_of(self, names: tuple[str, ...], form: Form) -> Losses:
        """Gradients of the losses `names`, then these losses, and the loss's metrics if they are the policy's."""
        if (names, form) in self._losses:
            return self._losses[names, form]
        keys, parameters = [key for key, *_ in form], self._parameters(names)
        of_policy = not CRITICS.issuperset(names)

        def compute(*columns: Tensor) -> list[Tensor]:
            batch = TensorDict(dict(zip(keys, columns, strict=True)), batch_size=columns[0].shape[:1])
            with self._precision.casts():
                losses = self._agent.loss(batch)
                total = sum(losses[name] for name in names)
                gradients = torch.autograd.grad(total, parameters)
            metrics = [name for name in list(losses.keys()) if name in names or (name not in TRAINS and of_policy)]
            if WEIGHT in keys and CRITICS.intersection(names):
                losses.set(ERROR, batch.get(ERROR))
                metrics.append(ERROR)
            self._losses[names, form].metrics[:] = metrics
            return [*gradients, *(losses[name].detach() for name in metrics)]

        compiled = self._execution is Execution.compiled
        eager = self._execution is Execution.eager
        self._losses[names, form] = Losses(compute if eager else Captured(compute, compiled=compiled))
        return self._losses[names, form]

    def _step(self, names: tuple[str, ...], *, last: bool, moves_targets: bool) -> Computation:
        """What follows the gradients of the losses `names`, which it takes."""
        parameters = self._parameters(names)

        def step(*gradients: Tensor) -> list[Tensor]:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            for name in names:
                if self._max_grad_norm is not None:
                    _clip(self._parameters((name,)), self._max_grad_norm)
                self._optimizers[name].step()
                self._optimizers[name].zero_grad()
            for statistics in self._agent.statistics if last else ():
                statistics.step()
            for target in self._agent.targets if last and moves_targets else ():
                target.step()
            return []

        return step if self._execution is Execution.eager else Captured(step)

    def _parameters(self, names: tuple[str, ...]) -> list[Parameter]:
        return [
            parameter
            for name in names
            for group in self._optimizers[name].param_groups
            for parameter in group["params"]
        ]


def _clip(parameters: Sequence[Parameter], largest: float) -> None:
    """Scale gradients to the norm `largest`, all parameters together, where it is larger (Pascanu et al. 2013).

    As torch's `clip_grad_norm_`, but into new tensors: gradients may share memory.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    factor = (largest / (torch.nn.utils.get_total_norm(gradients) + 1e-6)).clamp(max=1.0)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient * factor


def _settings(optimizers: dict[str, Optimizer]) -> list[Any]:
    return [
        value
        for optimizer in optimizers.values()
        for group in optimizer.param_groups
        for name, value in group.items()
        if name != "params"
    ]
