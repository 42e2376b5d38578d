"""The update: a batch goes in, every loss takes one gradient step, metrics come out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Adam, AdamW, Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torchrl.objectives import LossModule

from sac_torchrl.agents.agent import Agent
from sac_torchrl.errors import RECOVER, ConfigError, LearnerFault
from sac_torchrl.fields import check, field
from sac_torchrl.learner.capture import Captured, CudaGraph
from sac_torchrl.learner.finite import not_finite
from sac_torchrl.specs import ENTROPY, ERROR, SPAN, WEIGHT

_TERMINATED = ("next", "terminated")

# What each loss of a TorchRL loss module trains: the parameters whose names begin so.
TRAINS = {
    "loss_qvalue": "qvalue_network_params",
    "loss_actor": "actor_network_params",
    "loss_value": "value_network_params",
    "loss_alpha": "log_alpha",
}
CRITICS = frozenset({"loss_qvalue", "loss_value"})

Computation = Callable[..., Sequence[Tensor]]


class Execution(Enum):
    """How losses and gradients are computed; the numbers are the same.

    `eager` runs the loss module and autograd as they are, `captured` records them once as a flat list of tensor
    operations and replays it without their overhead, `compiled` gives that list to torch.compile. On a GPU `captured`
    holds the whole update, optimizers and targets included, in one CUDA graph. On a CPU where PyTorch has several
    threads it computes losses that have nothing to do with each other (those of `Order.together`) side by side, on
    half of the threads each.
    """

    eager = "eager"
    captured = "captured"
    compiled = "compiled"


class Precision(Enum):
    """In what numbers matrix products of 8 million multiplications and more are computed; all else is float32.

    `bfloat16` has 8 binary digits where a float32 has 24, and takes a quarter of the time on processors with
    instructions for it; casts around it take back a part. `tf32`, which is for GPUs, has 11 digits inside every product
    and float32 outside: no casts.
    """

    float32 = "float32"
    bfloat16 = "bfloat16"
    tf32 = "tf32"


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
    execution: Execution = field(Execution.captured, "how updates are computed, with the same numbers")
    precision: Precision = field(Precision.float32, "numbers in large matrix products: see learner.Precision")

    def __post_init__(self) -> None:
        check(self, "learner")

    def check(self, device: torch.device) -> None:
        """Raise ConfigError where the learner cannot compute so on this device."""
        if self.precision is Precision.tf32 and device.type == "cpu":
            raise ConfigError("learner.precision=tf32 is for GPUs: give float32, bfloat16, or a device that is one.")

    def build(self, agent: Agent) -> "Learner":
        """Make an optimizer for each loss of the agent that has parameters to train."""
        self.check(next(agent.loss.parameters()).device)
        if self.resets and agent.rebuild is None:
            raise ConfigError(f"learner.resets={list(self.resets)}: this agent does not say how to build it anew.")
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
                # A temperature is no weight: decay would pull it towards 1.
                weight_decay=0.0 if name == "loss_alpha" else self.weight_decay,
                fused=True,
            )
        return Learner(
            agent,
            optimizers,
            order=self.order,
            actor_every=self.actor_every,
            actor_updates=self.actor_updates,
            target_every=self.target_every,
            resets=self.resets,
            execution=self.execution,
            precision=self.precision,
        )


def trained_parameters(loss: LossModule) -> dict[str, list[Parameter]]:
    """The parameters that each loss trains; a loss with nothing to train (a fixed temperature) is left out."""
    named = list(loss.named_parameters())
    groups = {
        name: [parameter for key, parameter in named if key.startswith(prefix)] for name, prefix in TRAINS.items()
    }
    return {name: parameters for name, parameters in groups.items() if parameters}


class Learner:
    """Trains an agent: losses, gradients, a step of every optimizer, a step of every target network.

    `updates` counts the calls of `update`; the other arguments are those of `LearnerConfig`.
    """

    def __init__(
        self,
        agent: Agent,
        optimizers: dict[str, Optimizer],
        *,
        order: Order = Order.together,
        actor_every: int = 1,
        actor_updates: int = 1,
        target_every: int = 1,
        resets: Sequence[int] = (),
        execution: Execution = Execution.eager,
        precision: Precision = Precision.float32,
    ) -> None:
        self.agent = agent
        self.optimizers = optimizers
        self.updates = 0
        self._order = order
        self._actor_every = actor_every
        self._actor_updates = actor_updates
        self._target_every = target_every
        self._resets = frozenset(resets)
        self._execution = execution
        self._precision = precision
        self._recordings: dict[object, tuple[Computation, list[str]]] = {}
        self._programs: dict[object, tuple[Computation, list[list[str]]]] = {}
        self._recorded_settings: list[Any] = []
        self._newest: dict[str, Tensor] = {}

    def update(self, batch: TensorDictBase) -> TensorDictBase:
        """Train on `batch`, of shape `(batch,)`, on the agent's device.

        Returns detached scalars on that device: every loss, `alpha`, and `entropy` (of the policy, in nats), each
        from the newest update that computed it. Where the rows of `batch` are prioritized, their absolute TD errors
        `(batch,)` are written into it as `td_error`. Raises ValueError for a batch without `("next", "terminated")`.
        """
        # TorchRL's losses read the last three without asking for them.
        found = dict(_leaves(batch, [*self.agent.loss.in_keys, SPAN, WEIGHT, ENTROPY]))
        if _TERMINATED not in found:  # TorchRL would take `done` for it, truncations too
            raise ValueError("the batch has no ('next', 'terminated'): only its True ends the bootstrap.")
        keys, inputs = list(found), list(found.values())
        form = tuple((key, tensor.shape, tensor.dtype) for key, tensor in zip(keys, inputs, strict=True))
        steps, self.updates = self._steps(), self.updates + 1
        if (settings := self._settings()) != self._recorded_settings:  # A scheduler may have changed a learning rate.
            self._programs.clear()
            self._recorded_settings = settings
        moving = self.updates % self._target_every == 0
        if (form, *steps, moving) not in self._programs:
            self._programs[form, *steps, moving] = self._program(steps, keys, inputs, moving=moving)
        program, told = self._programs[form, *steps, moving]
        with _tf32() if self._precision is Precision.tf32 else nullcontext():
            values = program(*inputs)
        metrics = dict(zip(chain.from_iterable(told), values, strict=True))
        if ERROR in metrics:
            batch.set(ERROR, metrics.pop(ERROR))
        self._newest |= metrics
        if self.updates in self._resets:
            self.reset()
        self.agent.temperature.step(self.updates)
        return TensorDict(self._newest)

    def __deepcopy__(self, memo: object) -> "Learner":
        """Raises TypeError: a copy would go on training the tensors of this one."""
        raise TypeError(
            "a Learner cannot be deep-copied: the copy would train the original's tensors. Build another agent and "
            "learner, and let it take over the state: other.load_state_dict(learner.state_dict())."
        )

    def reset(self) -> None:
        """Give networks, targets, statistics and temperature new initial values, and the optimizers no past.

        Draws from torch's global generator. Raises ValueError where the agent does not know how it was built.
        """
        if self.agent.rebuild is None:
            raise ValueError("this agent cannot be reset: build it with `anew`.")
        tensors = _tensors(self.agent.loss)
        with torch.no_grad():
            # A normalizer of observations is not among them, and keeps what it has seen.
            for name, tensor in _tensors(self.agent.rebuild().loss).items():
                tensors[name].copy_(tensor)
        for optimizer in self.optimizers.values():
            optimizer.state.clear()
        self._programs.clear()  # A CUDA graph would go on in the optimizers' old state.

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
            # Adam would go on in the very tensors it is given.
            moments = {
                int(index): {key: value.clone() for key, value in moment.items()}
                for index, moment in part["state"].items()
            }
            optimizer.load_state_dict({**part, "state": moments})
        self._programs.clear()  # A CUDA graph would go on in the optimizers' old state.
        self.updates = state["updates"]
        self._newest = {name: value.clone() for name, value in state["newest"].items()}

    def _check(self) -> None:
        """Raise LearnerFault if a number is not finite: what a NaN has reached it never leaves again."""
        moments = (
            (f"the optimizer of {name}", value)
            for name, optimizer in self.optimizers.items()
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        )
        if (name := not_finite([*_tensors(self.agent.loss).items(), *moments])) is not None:
            raise LearnerFault(f"{name} is not finite after {self.updates} updates. {RECOVER}")

    def _steps(self) -> list[tuple[str, ...]]:
        """Name the losses of each step of this update, in order."""
        critics = tuple(name for name in self.optimizers if name in CRITICS)
        policy = tuple(name for name in self.optimizers if name not in CRITICS)
        if (self.updates + 1) % self._actor_every:
            return [critics]
        match self._order:
            case Order.together:
                return [(*critics, *policy), *[policy] * (self._actor_updates - 1)]
            case Order.critics_first:
                return [critics, *[policy] * self._actor_updates]
            case Order.one_by_one:
                return [critics, *[(name,) for name in policy] * self._actor_updates]

    def _program(
        self, steps: list[tuple[str, ...]], keys: list[Any], inputs: list[Tensor], *, moving: bool
    ) -> tuple[Computation, list[list[str]]]:
        """All that an update does on the device, given the batch's tensors, and the names of what it returns."""
        parts = [
            (*self._losses(names, keys, inputs), *self._step(names, last=number == len(steps), moving=moving))
            for number, names in enumerate(steps, start=1)
        ]

        def program(*tensors: Tensor) -> list[Tensor]:
            values = list[Tensor]()
            for losses_and_gradients, _, step, parameters in parts:
                outputs = losses_and_gradients(*tensors)
                step(*outputs[:parameters])
                values += outputs[parameters:]
            return values

        graphed = self._execution is Execution.captured and inputs[0].is_cuda
        return CudaGraph(program) if graphed else program, [told for _, told, *_ in parts]

    def _losses(self, names: tuple[str, ...], keys: list[Any], inputs: list[Tensor]) -> tuple[Computation, list[str]]:
        """Gradients of the losses `names`, then these losses, and the loss's metrics if they are the policy's.

        The second value names what follows the gradients, once the first has been called.
        """
        form = (names, *((key, tensor.shape, tensor.dtype) for key, tensor in zip(keys, inputs, strict=True)))
        if form in self._recordings:
            return self._recordings[form]
        parameters = self._parameters(names)
        metrics, told = not CRITICS.issuperset(names), list[str]()

        def losses_and_gradients(*tensors: Tensor) -> list[Tensor]:
            batch = TensorDict(dict(zip(keys, tensors, strict=True)), batch_size=tensors[0].shape[:1])
            with _PRODUCTS[self._precision]():
                losses = self.agent.loss(batch)
                total = sum(losses[name] for name in names)
                gradients = torch.autograd.grad(total, parameters)
            told[:] = [name for name in list(losses.keys()) if name in names or (name not in TRAINS and metrics)]
            if WEIGHT in keys and CRITICS.intersection(names):
                losses.set(ERROR, batch.get(ERROR))
                told.append(ERROR)
            return [*gradients, *(losses[name].detach() for name in told)]

        compiled = self._execution is Execution.compiled
        eager = self._execution is Execution.eager
        computation = losses_and_gradients if eager else Captured(losses_and_gradients, compiled=compiled)
        self._recordings[form] = computation, told
        return self._recordings[form]

    def _step(self, names: tuple[str, ...], *, last: bool, moving: bool) -> tuple[Computation, int]:
        """What follows the gradients of the losses `names`, which it takes, and their number."""
        parameters = self._parameters(names)

        def step(*gradients: Tensor) -> list[Tensor]:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            for name in names:
                self.optimizers[name].step()
                self.optimizers[name].zero_grad()
            for statistics in self.agent.statistics if last else ():
                statistics.step()
            for target in self.agent.targets if last and moving else ():
                target.step()
            return []

        return step if self._execution is Execution.eager else Captured(step), len(parameters)

    def _settings(self) -> list[Any]:
        return [
            value
            for optimizer in self.optimizers.values()
            for group in optimizer.param_groups
            for name, value in group.items()
            if name != "params"
        ]

    def _parameters(self, names: tuple[str, ...]) -> list[Parameter]:
        return [
            parameter for name in names for group in self.optimizers[name].param_groups for parameter in group["params"]
        ]


class _BFloat16Products(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    """Computes large matrix products of float32 in bfloat16, those of gradients and the adding of a bias too."""

    _large = 2**23  # multiplications; a smaller product takes less time than the casts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _MATRIX_PRODUCTS and args[-2].numel() * args[-1].shape[-1] >= self._large:
            return func(*(factor.bfloat16() for factor in args), **(kwargs or {})).float()
        return func(*args, **(kwargs or {}))


_MATRIX_PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
}
_PRODUCTS: dict[Precision, Callable[[], AbstractContextManager[Any]]] = {
    Precision.float32: nullcontext,
    Precision.bfloat16: _BFloat16Products,
    Precision.tf32: nullcontext,
}


def _leaves(batch: TensorDictBase, keys: Sequence[Any]) -> Iterator[tuple[Any, Tensor]]:
    """The columns `keys` of a batch that are there, one of several leaves leaf by leaf."""
    for key in keys:
        column = batch.get(key, None)
        if isinstance(column, TensorDictBase):
            path = (key,) if isinstance(key, str) else key
            yield from (((*path, name), leaf) for name, leaf in column.items())
        elif column is not None:
            yield key, column


@contextmanager
def _tf32() -> Iterator[None]:
    """Have products on GPUs computed in TF32, and as before afterwards."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _tensors(loss: LossModule) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in loss.state_dict().items() if isinstance(tensor, Tensor)}


def _optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    state = optimizer.state_dict()
    return {**state, "state": {str(index): moment for index, moment in state["state"].items()}}
