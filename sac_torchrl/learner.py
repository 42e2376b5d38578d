"""The update: a batch goes in, every loss takes one gradient step, metrics come out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import Parameter
from torch.optim import Adam, Optimizer
from torchrl.objectives import LossModule

from sac_torchrl.agent import Agent
from sac_torchrl.errors import ConfigError

# What each loss of a TorchRL loss module trains: the parameters whose names begin so.
TRAINS = {
    "loss_qvalue": "qvalue_network_params",
    "loss_actor": "actor_network_params",
    "loss_value": "value_network_params",
    "loss_alpha": "log_alpha",
}


class Execution(Enum):
    """How losses and gradients are computed; the numbers are the same.

    `eager` runs the loss module and autograd as they are, `captured` records them once as a flat list of tensor
    operations and replays it without their overhead, `compiled` gives that list to torch.compile.
    """

    eager = "eager"
    captured = "captured"
    compiled = "compiled"


@dataclass
class Learning:
    """Adam for every loss, with one learning rate `lr` (3e-4, table 1 of Haarnoja et al. 2018b) and eps 1e-8."""

    lr: float = 3e-4
    execution: Execution = Execution.captured

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"learner.lr={self.lr}: give a positive learning rate.")

    def build(self, agent: Agent) -> "Learner":
        """Make an optimizer for each loss of the agent that has parameters to train."""
        optimizers: dict[str, Optimizer] = {
            name: Adam(parameters, lr=self.lr, fused=True)
            for name, parameters in trained_parameters(agent.loss).items()
        }
        return Learner(agent, optimizers, execution=self.execution)


def trained_parameters(loss: LossModule) -> dict[str, list[Parameter]]:
    """The parameters that each loss trains; a loss with nothing to train (a fixed temperature) is left out."""
    named = list(loss.named_parameters())
    groups = {
        name: [parameter for key, parameter in named if key.startswith(prefix)] for name, prefix in TRAINS.items()
    }
    return {name: parameters for name, parameters in groups.items() if parameters}


class Learner:
    """Trains an agent: losses, one backward pass, a step of every optimizer, a step of every target network.

    All losses are computed from the weights before the step, as in TorchRL's recipe: the actor sees the critics
    that the batch found. `updates` counts the calls.
    """

    def __init__(
        self, agent: Agent, optimizers: dict[str, Optimizer], *, execution: Execution = Execution.eager
    ) -> None:
        self.agent = agent
        self.optimizers = optimizers
        self.updates = 0
        self._parameters: list[Parameter] = [
            parameter
            for optimizer in optimizers.values()
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]
        self._execution = execution
        self._recordings: dict[object, Callable[..., Sequence[Tensor]]] = {}
        self._names: list[str] = []
        self._newest: TensorDictBase = TensorDict()

    def update(self, batch: TensorDictBase) -> TensorDictBase:
        """Take one gradient step on every loss with `batch`, of shape `(batch,)`, on the agent's device.

        Returns detached scalars on that device: every loss, `alpha`, and `entropy` (of the policy, in nats).
        """
        keys = [key for key in self.agent.loss.in_keys if key in batch.keys(include_nested=True)]
        inputs = [batch.get(key) for key in keys]
        gradients, metrics = self._gradients(keys, inputs)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        for target in self.agent.targets:
            target.step()
        self.updates += 1
        self._newest = TensorDict(dict(zip(self._names, metrics, strict=True)))
        return self._newest

    def metrics(self) -> dict[str, float]:
        """The newest update's metrics as numbers, named for a log; waits for the device to finish."""
        newest = {f"train/{name}": float(value) for name, value in self._newest.items()}
        return {**newest, "time/updates": self.updates}

    def state_dict(self) -> dict[str, Any]:
        """Everything an update reads or changes: weights, targets, temperature, optimizers, the counter."""
        return {
            "loss": _tensors(self.agent.loss),
            "optimizers": {name: _optimizer_state(optimizer) for name, optimizer in self.optimizers.items()},
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy a saved state into this learner; raises KeyError or RuntimeError where the two do not match."""
        tensors, saved = _tensors(self.agent.loss), state["loss"]
        shapes, found = ({name: tensor.shape for name, tensor in part.items()} for part in (tensors, saved))
        if shapes != found:
            other = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
            raise KeyError(f"the saved learner has other tensors: {other}")
        if self.optimizers.keys() != state["optimizers"].keys():
            raise KeyError(
                f"the saved learner trained {sorted(state['optimizers'])}, this one {sorted(self.optimizers)}"
            )
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(saved[name])
        for name, optimizer in self.optimizers.items():
            part = state["optimizers"][name]
            # Adam would go on in the very tensors it is given.
            moments = {
                int(index): {key: value.clone() for key, value in moment.items()}
                for index, moment in part["state"].items()
            }
            optimizer.load_state_dict({**part, "state": moments})
        self.updates = state["updates"]

    def _gradients(self, keys: list[Any], inputs: list[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        def losses_and_gradients(*tensors: Tensor) -> list[Tensor]:
            batch = TensorDict(dict(zip(keys, tensors, strict=True)), batch_size=tensors[0].shape[:1])
            losses = self.agent.loss(batch)
            self._names = list(losses.keys())
            total = sum(losses[name] for name in self.optimizers)
            gradients = torch.autograd.grad(total, self._parameters)
            return [*gradients, *(losses[name].detach() for name in self._names)]

        if self._execution is Execution.eager:
            outputs: Sequence[Tensor] = losses_and_gradients(*inputs)
        else:
            form = tuple((key, tensor.shape, tensor.dtype) for key, tensor in zip(keys, inputs, strict=True))
            if form not in self._recordings:
                self._recordings[form] = self._record(losses_and_gradients, inputs)
            with torch.no_grad():
                outputs = self._recordings[form](*inputs)
        count = len(self._parameters)
        return outputs[:count], outputs[count:]

    def _record(self, function: Callable[..., list[Tensor]], inputs: list[Tensor]) -> Callable[..., Sequence[Tensor]]:
        # Recording runs the operations once: the random numbers they draw are given back.
        with torch.random.fork_rng(devices=[inputs[0].device] if inputs[0].is_cuda else []):
            recording = make_fx(function)(*inputs)
        recording.graph.eliminate_dead_code()
        recording.recompile()
        if self._execution is Execution.compiled:
            # Inductor has a random number generator of its own; these are to be torch's draws.
            return torch.compile(recording, options={"fallback_random": True})
        return recording


def _tensors(loss: LossModule) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in loss.state_dict().items() if isinstance(tensor, Tensor)}


def _optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    state = optimizer.state_dict()
    return {**state, "state": {str(index): moment for index, moment in state["state"].items()}}
