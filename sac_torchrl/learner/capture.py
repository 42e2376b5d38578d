"""Recording a function of tensors as a flat list of tensor operations, to be replayed without its overhead."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from functools import cache

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from sac_torchrl.errors import short
from sac_torchrl.learner.passes import Parts, cut, hoist, keep_all, simplify, transpose_narrow

log = logging.getLogger(__name__)


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


class Captured:
    """Calls `function` as it is at first, records the second call while it is made, and replays that from then on.

    `function` takes and returns tensors, of the same shapes each time. It may read others, draw random numbers, and
    change tensors in place, which have to keep their memory; what the first call makes, such as an optimizer's state,
    is there for the second. Results are equal bit for bit. With `compiled` the recording is replayed by torch.compile,
    equal to rounding. On a CPU where PyTorch has several threads, computations that do not depend on each other run
    side by side. Without `scripted` Python calls the operations, which for a dozen takes less time than to enter
    TorchScript.
    """

    def __init__(
        self, function: Callable[..., Sequence[Tensor]], *, compiled: bool = False, scripted: bool = True
    ) -> None:
        self._function = function
        self._compiled = compiled
        self._scripted = scripted
        self._called = False
        self._replay: Callable[..., Sequence[Tensor]] | None = None

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Call, record or replay the function."""
        if self._replay is not None:
            with torch.inference_mode():
                return self._replay(*inputs, *self._constants)[: self._results]
        if self._called:
            return self._record(inputs)
        self._called = True
        return self._function(*inputs)

    def _record(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        results: list[Tensor] = []

        def watched(*inputs: Tensor) -> tuple[Tensor, ...]:
            results[:] = self._function(*inputs)
            return tuple(results)

        # Without a fake mode at hand make_fx makes one for every operation, which takes longer than all else here.
        with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
            recording = make_fx(watched)(*inputs)
        graph = recording.graph
        simplify(graph)
        if not self._compiled:
            transpose_narrow(graph)
            simplify(graph)
        self._constants, self._results = hoist(graph, recording), len(results)
        whole = fx.GraphModule(torch.nn.Module(), graph)
        self._replay = whole.forward
        if self._compiled:
            # Inductor has a random number generator of its own; these are to be torch's draws.
            self._replay = torch.compile(self._replay, options={"fallback_random": True})
        elif self._scripted and inputs[0].is_cpu and keep_all(graph):
            parts = cut(graph) if torch.get_num_threads() > 1 else None
            self._replay = _scripted(whole) if parts is None else SideBySide(parts)
        return results


class SideBySide:
    """Computes the halves of a recording in two Python threads, with half of PyTorch's threads each.

    A matrix product of some hundred rows is too short to amortize a thread barrier; here there is one for all of them.
    TorchScript releases the GIL. Afterward PyTorch has as many threads as before, but within `half_the_threads`.
    """

    def __init__(self, parts: Parts) -> None:
        threads = torch.get_num_threads()
        self._threads = threads - threads // 2, threads // 2
        self._before = _scripted(parts.before)
        self._halves = [_scripted(half) for half in parts.halves]
        self._places = parts.places

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Compute all results from the inputs of the recording."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self._threads[0])
        try:
            shared = [*inputs, *self._before(*inputs)]
            second = _second_thread().submit(self._half, 1, shared)
            results = shared, self._half(0, shared), second.result()
        finally:
            if not _halved.get():
                torch.set_num_threads(threads)
        return [results[part][place] for part, place in self._places]

    def _half(self, number: int, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        torch.set_num_threads(self._threads[number])  # of this thread
        with torch.inference_mode():
            return self._halves[number](*inputs)


_halved = ContextVar("halved", default=False)


@contextmanager
def half_the_threads() -> Iterator[None]:
    """Leave PyTorch half of its threads between updates that are computed side by side, until the `with` block ends.

    OpenMP's threads spin for milliseconds after their work, and would take cores from the other half of an update: a
    loop on two cores made 81 to 86 frames/s with all threads and 115 with half of them.
    """
    threads, token = torch.get_num_threads(), _halved.set(True)
    try:
        yield
    finally:
        _halved.reset(token)
        torch.set_num_threads(threads)


@cache
def _second_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "second half of an update")


class CudaGraph:
    """Calls `function` as it is for the first `WARM_UP` times, and then replays it as one CUDA graph.

    `function` takes and returns tensors on the GPU and may change others in place, which have to keep their memory. It
    may draw from torch's global generator and from `generators`. The results hold until the next call. Nothing waits
    for the GPU, but once, before the capture.
    """

    WARM_UP = 3  # an optimizer makes its state at its first step, and a library its handles

    def __init__(
        self, function: Callable[..., Sequence[Tensor]], *, generators: Sequence[torch.Generator] = ()
    ) -> None:
        self._function = function
        self._generators = generators
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Call or replay the function with tensors of the same shapes each time."""
        self._calls += 1
        if self._calls <= self.WARM_UP:
            return self._function(*inputs)
        if self._graph is None:
            self._inputs = [tensor.clone() for tensor in inputs]
            self._graph = torch.cuda.CUDAGraph()
            for generator in self._generators:
                self._graph.register_generator_state(generator)
            # A capture runs nothing: what it records is done for the first time by the replay below.
            with torch.cuda.graph(self._graph):
                self._outputs = self._function(*self._inputs)
        elif inputs:
            torch._foreach_copy_(self._inputs, inputs)
        self._graph.replay()
        return self._outputs


def _scripted(module: fx.GraphModule) -> Callable[..., Sequence[Tensor]]:
    """Have TorchScript call the operations of `module`, which takes it less time than Python, if it knows them all."""
    for node in module.graph.nodes:
        if isinstance(node.target, OpOverload):
            # It finds the same overload again by the types of the arguments.
            node.target = node.target.overloadpacket
    module.recompile()
    with warnings.catch_warnings():
        # Deprecated, and yet nothing else calls torch's operations one by one without Python.
        warnings.filterwarnings("ignore", "`torch.jit|The TorchScript type system")
        try:
            return Scripted(torch.jit.script(module).forward)
        except RuntimeError as error:
            log.debug("a recording is replayed by Python: TorchScript does not take it (%s)", short(error))
            return module.forward


class Scripted:
    """Calls a recording in TorchScript as it is: optimized, some results would differ.

    `torch.jit.optimized_execution`, which does the same, takes as long as two operations.
    """

    def __init__(self, script: Callable[..., Sequence[Tensor]]) -> None:
        self._script = script

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Compute all results from the inputs of the recording."""
        optimized = torch._C._get_graph_executor_optimize()
        torch._C._set_graph_executor_optimize(False)
        try:
            return self._script(*inputs)
        finally:
            torch._C._set_graph_executor_optimize(optimized)
