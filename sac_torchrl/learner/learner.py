"""The update: every loss takes one gradient step on a batch."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Adam, AdamW, Optimizer
from torchrl.objectives import LossModule

from sac_torchrl.agents.agent import Agent
from sac_torchrl.agents.temperature import Temperature
from sac_torchrl.errors import RECOVER, ConfigError, LearnerFault
from sac_torchrl.fields import check, field
from sac_torchrl.learner.capture import Execution
from sac_torchrl.learner.finite import not_finite
from sac_torchrl.learner.precision import Precision, has_bfloat16
from sac_torchrl.learner.programs import CRITICS, TRAINS, Plan, Programs
from sac_torchrl.learner.rates import Rates, Schedule
from sac_torchrl.specs import ENTROPY, ERROR, SPAN, WEIGHT

log = logging.getLogger(__name__)

_TERMINATED = ("next", "terminated")


class Order(Enum):
    """Which losses of an update see the weights of which step.

    `together`: all of them see the weights from before the update, in one backward pass (TorchRL's recipe).
    `critics_first`: the critics step, then actor and temperature on one draw of actions (Spinning Up, pytorch_sac,
    Stable-Baselines3). `one_by_one`: critics, actor and temperature step in turn, each on a new draw (softlearning,
    CleanRL).
    """

    together = "together"
    critics_first = "critics_first"
    one_by_one = "one_by_one"


@dataclass
class LearnerConfig:
    """Optimizers and losses: Adam for every loss, AdamW where weights decay."""

    lr: float = field(3e-4, "learning rate of every loss (Haarnoja et al. 2018b, table 1)", above=0)
    actor_lr: float | None = field(None, "learning rate of the actor; null: lr", above=0)
    critic_lr: float | None = field(None, "learning rate of the critics; null: lr", above=0)
    alpha_lr: float | None = field(None, "learning rate of the temperature; null: lr", above=0)
    lr_schedule: Schedule = field(Schedule.constant, "learning rates over the run: see learner.Schedule")
    lr_warmup: int = field(0, "first updates, over which learning rates rise from 0", least=0)
    max_grad_norm: float | None = field(None, "norm that each loss's gradient is clipped to; null: none", above=0)
    eps: float = field(1e-8, "Adam's epsilon", above=0, below=1)
    betas: tuple[float, float] = field((0.9, 0.999), "Adam's betas", least=0, below=1)
    weight_decay: float = field(0.0, "weight decay, for all but the temperature; above 0 it is AdamW", least=0)
    order: Order = field(Order.together, "which losses see which weights: see learner.Order")
    actor_every: int = field(1, "updates between steps of actor and temperature (CleanRL: 2)", least=1)
    actor_updates: int = field(1, "steps that actor and temperature then make (CleanRL: 2)", least=1)
    target_every: int = field(1, "updates between steps of the target networks (pytorch_sac: 2)", least=1)
    # For replay ratios above 1: D'Oro et al. 2023; BRO, arXiv 2405.16158: 15,000, 50,000, 250,000, 500,000, 750,000,
    # 1,000,000, 1,500,000 and 2,000,000 updates with a replay ratio of 10.
    resets: tuple[int, ...] = field(
        (),
        "updates after which weights and optimizers are drawn again (Nikishin et al. 2022, arXiv 2205.07802)",
        least=1,
    )
    at_once: int = field(1, "updates of a step of all environments that are one CUDA graph, on a GPU", least=1)
    execution: Execution = field(Execution.captured, "how updates are computed, with the same numbers")
    precision: Precision = field(Precision.float32, "numbers in large matrix products: see learner.Precision")

    def __post_init__(self) -> None:
        check(self, "learner")

    def check(self, device: torch.device) -> None:
        """Raise ConfigError where the learner cannot compute so on this device."""
        if self.precision is Precision.tf32 and device.type == "cpu":
            raise ConfigError("learner.precision=tf32 is for GPUs: give float32, bfloat16, or a device that is one.")

    def build(self, agent: Agent, *, updates: int | None = None) -> "Learner":
        """Make an optimizer for each loss of the agent that has parameters to train.

        `updates` is the length of the run, which `lr_schedule` needs. Raises ConfigError without it.
        """
        device = next(agent.loss.parameters()).device
        self.check(device)
        if self.precision is Precision.bfloat16 and device.type == "cpu" and not has_bfloat16():
            log.warning(
                "learner.precision=bfloat16: this processor has no instructions for it, and an update takes many times "
                "as long as with float32"
            )
        if self.resets and agent.rebuild is None:
            raise ConfigError(
                f"learner.resets={list(self.resets)}: this agent cannot be built again; set its `rebuild`."
            )
        rates = {"loss_actor": self.actor_lr, "loss_alpha": self.alpha_lr}
        kind = AdamW if self.weight_decay else Adam
        optimizers: dict[str, Optimizer] = {}
        for name, parameters in trained_parameters(agent.loss).items():
            rate = rates.get(name, self.critic_lr)
            optimizers[name] = kind(
                parameters,
                lr=self.lr if rate is None else rate,
                betas=self.betas,
                eps=self.eps,
                # A CUDA graph counts steps on the device.
                capturable=parameters[0].is_cuda,
                # Decay would pull the temperature towards 1.
                weight_decay=0.0 if name == "loss_alpha" else self.weight_decay,
                fused=True,
            )
        return Learner(agent, optimizers, self, rates=self._rates(optimizers, updates))

    def _rates(self, optimizers: dict[str, Optimizer], updates: int | None) -> Rates | None:
        if self.lr_schedule is Schedule.constant and not self.lr_warmup:
            return None
        if updates is None and self.lr_schedule is not Schedule.constant:
            raise ConfigError(f"learner.lr_schedule={self.lr_schedule.value}: give build the number of `updates`.")
        return Rates(optimizers, self.lr_schedule, warmup=self.lr_warmup, updates=updates or 0)


def trained_parameters(loss: LossModule) -> dict[str, list[Parameter]]:
    """The parameters that each loss trains; a loss with nothing to train (a fixed temperature) is left out."""
    named = list(loss.named_parameters())
    groups = {
        name: [parameter for key, parameter in named if key.startswith(prefix)] for name, prefix in TRAINS.items()
    }
    return {name: parameters for name, parameters in groups.items() if parameters}


class Learner:
    """Trains an agent: losses, gradients, a step of every optimizer, a step of every target network.

    `updates` counts the updates. `rates` change the optimizers' learning rates before each.
    """

    def __init__(
        self, agent: Agent, optimizers: dict[str, Optimizer], config: LearnerConfig, *, rates: Rates | None = None
    ) -> None:
        self.agent = agent
        self.optimizers = optimizers
        self.updates = 0
        self._config = config
        self._rates = rates
        self._programs = Programs(
            agent,
            optimizers,
            execution=config.execution,
            precision=config.precision,
            max_grad_norm=config.max_grad_norm,
        )
        self._newest: dict[str, Tensor] = {}

    def update(self, batch: TensorDictBase, *more: TensorDictBase) -> TensorDictBase:
        """Train on `batch`, of shape `(batch,)`, on the agent's device, and then on `more` such, an update each.

        Returns detached scalars on that device: every loss, `alpha`, and `entropy` (of the policy, in nats), each
        from the newest update that computed it. Where the rows of a batch are prioritized, their absolute TD errors
        `(batch,)` are written into it as `td_error`. Raises ValueError for a batch without `("next", "terminated")`.

        The numbers are those of as many calls. On a GPU `captured` makes all updates in one CUDA graph, but for rows
        that are prioritized, and where the host sets something between two updates: learning rates of a schedule,
        entropy targets on their way, a reset.
        """
        batches = (batch, *more)
        # TorchRL's losses read the last three without declaring them.
        keys = [*self.agent.loss.in_keys, SPAN, WEIGHT, ENTROPY]
        columns = [dict(_leaves(rows, keys)) for rows in batches]
        if any(_TERMINATED not in each for each in columns):  # TorchRL would take `done` for it, truncations too
            raise ValueError("the batch has no ('next', 'terminated'): only its True ends the bootstrap.")
        if self._needs_the_host(columns):
            for rows, each in zip(batches, columns, strict=True):
                metrics = self._run([each])
                if ERROR in metrics:
                    rows.set(ERROR, metrics.pop(ERROR))
                self._newest |= metrics
        else:
            self._newest |= self._run(columns)
        return TensorDict(self._newest)

    def _needs_the_host(self, batches: list[dict[Any, Tensor]]) -> bool:
        """Whether the host reads or sets something after each of the updates with these columns."""
        numbers = range(self.updates + 1, self.updates + len(batches))  # of all but the last
        followed = self._rates is not None or type(self.agent.temperature) is not Temperature
        return followed or WEIGHT in batches[0] or any(number in numbers for number in self._config.resets)

    def _run(self, batches: list[dict[Any, Tensor]]) -> dict[str, Tensor]:
        """Make updates with these columns, and what follows the last of them."""
        numbers = range(self.updates + 1, self.updates + 1 + len(batches))
        self.updates = numbers[-1]
        if self._rates is not None:
            self._rates.set(self.updates)
        metrics = self._programs.run([self._plan(number) for number in numbers], batches)
        if self.updates in self._config.resets:
            self.reset()
        self.agent.temperature.step(self.updates)
        return metrics

    def __deepcopy__(self, memo: object) -> "Learner":
        """Raises TypeError: a copy would train the tensors of this one."""
        raise TypeError(
            "a Learner cannot be deep-copied: the copy would train the original's tensors. Build another agent and "
            "learner, and copy the state: other.load_state_dict(learner.state_dict())."
        )

    def reset(self) -> None:
        """Give networks, targets, statistics and temperature new initial values, and clear the optimizers.

        Draws from torch's global generator. Raises ValueError for an agent without `rebuild`.
        """
        if self.agent.rebuild is None:
            raise ValueError("this agent cannot be reset: set its `rebuild`.")
        tensors = _tensors(self.agent.loss)
        with torch.no_grad():
            # A normalizer of observations is not part of the loss, and keeps its statistics.
            for name, tensor in _tensors(self.agent.rebuild().loss).items():
                tensors[name].copy_(tensor)
        for optimizer in self.optimizers.values():
            optimizer.state.clear()
        self._programs.clear()

    def metrics(self) -> dict[str, float]:
        """The newest update's metrics as numbers, named for a log; waits for the device. Raises LearnerFault."""
        self._check()
        newest = {name: float(value) for name, value in self._newest.items()}
        if newest:
            self.agent.temperature.watch(newest)
        return {**{f"train/{name}": value for name, value in newest.items()}, "time/updates": self.updates}

    def state_dict(self) -> dict[str, Any]:
        """Everything an update reads or changes: weights, targets, temperature, optimizers, counter, newest metrics."""
        self._check()
        return {
            "loss": _tensors(self.agent.loss),
            "optimizers": {name: _optimizer_state(optimizer) for name, optimizer in self.optimizers.items()},
            "updates": self.updates,
            "newest": dict(self._newest),
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
            # The optimizer would update the tensors of `state` in place.
            moments = {
                int(index): {key: value.clone() for key, value in moment.items()}
                for index, moment in part["state"].items()
            }
            optimizer.load_state_dict({**part, "state": moments})
        self._programs.clear()
        self.updates = state["updates"]
        self._newest = {name: value.clone() for name, value in state["newest"].items()}

    def _check(self) -> None:
        """Raise LearnerFault if a number is not finite: a NaN in a parameter stays."""
        moments = (
            (f"the optimizer of {name}", value)
            for name, optimizer in self.optimizers.items()
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        )
        if (name := not_finite([*_tensors(self.agent.loss).items(), *moments])) is not None:
            raise LearnerFault(f"{name} is not finite after {self.updates} updates. {RECOVER}")

    def _plan(self, number: int) -> Plan:
        """The plan of the update with this number, counted from 1."""
        moves_targets = number % self._config.target_every == 0
        critics = tuple(name for name in self.optimizers if name in CRITICS)
        policy = tuple(name for name in self.optimizers if name not in CRITICS)
        if number % self._config.actor_every:
            return Plan((critics,), moves_targets)
        repeated = self._config.actor_updates
        match self._config.order:
            case Order.together:
                steps = ((*critics, *policy), *[policy] * (repeated - 1))
            case Order.critics_first:
                steps = (critics, *[policy] * repeated)
            case Order.one_by_one:
                steps = (critics, *[(name,) for name in policy] * repeated)
        return Plan(steps, moves_targets)


def _leaves(batch: TensorDictBase, keys: Sequence[Any]) -> Iterator[tuple[Any, Tensor]]:
    """The columns `keys` that a batch has; the leaves of a nested column, one by one."""
    for key in keys:
        column = batch.get(key, None)
        if isinstance(column, TensorDictBase):
            path = (key,) if isinstance(key, str) else key
            yield from (((*path, name), leaf) for name, leaf in column.items())
        elif column is not None:
            yield key, column


def _tensors(loss: LossModule) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in loss.state_dict().items() if isinstance(tensor, Tensor)}


def _optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    state = optimizer.state_dict()
    return {**state, "state": {str(index): moment for index, moment in state["state"].items()}}
