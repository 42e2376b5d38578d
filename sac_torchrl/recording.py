"""Recording a function of tensors as a flat list of tensor operations, to be replayed without its overhead."""

import logging
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.jit._fuser import optimized_execution

from sac_torchrl.graphs import Parts, compute_once, cut, fold, hoist, keep_all, reuse, simplify, turn

log = logging.getLogger(__name__)


class Recorded:
    """Calls `function` as it is at first, records the second call while it is made, and replays that from then on.

    `function` takes and returns tensors, of the same shapes each time. It may read others, draw random numbers, and
    change tensors in place, which have to keep their memory; what the first call makes, such as an optimizer's state,
    is there for the second. Nothing is computed otherwise than `function` does, only what it computes twice is computed
    once: results are equal bit for bit. With `compiled` the recording is replayed by torch.compile, equal to rounding.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], *, compiled: bool = False) -> None:
        self._function = function
        self._compiled = compiled
        self._called = False
        self._replay: Callable[..., Sequence[Tensor]] | None = None

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Call, record or replay the function."""
        if self._replay is not None:
            # Optimized, TorchScript would compute some results otherwise.
            with torch.inference_mode(), optimized_execution(False):
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

        recording = make_fx(watched)(*inputs)
        graph = recording.graph
        simplify(graph)
        compute_once(graph, recording)
        fold(graph, recording)
        if not self._compiled:
            turn(graph)
            simplify(graph)
            reuse(graph, recording)
        self._constants, self._results = hoist(graph, recording), len(results)
        scriptable = not self._compiled and inputs[0].is_cpu and keep_all(graph)
        parts = cut(graph) if scriptable and torch.get_num_threads() > 1 else None
        self._replay = fx.GraphModule(torch.nn.Module(), graph).forward
        if self._compiled:
            # Inductor has a random number generator of its own; these are to be torch's draws.
            self._replay = torch.compile(self._replay, options={"fallback_random": True})
        elif parts is not None:
            self._replay = SideBySide(parts, [*inputs, *self._constants])
        elif scriptable:
            self._replay = _scripted(self._replay, [*inputs, *self._constants])
        return results


class SideBySide:
    """Computes the halves of a recording in two threads, with half of PyTorch's threads each.

    A matrix product of some hundred rows is over too soon to be worth the meeting of two threads at its end; here they
    meet once. TorchScript leaves Python's lock alone. The calling thread keeps its half of PyTorch's threads for what
    it does in between: more of OpenMP's, which spin for a while, would take their cores from the other half.
    """

    def __init__(self, parts: Parts, inputs: Sequence[Tensor]) -> None:
        threads = torch.get_num_threads()
        self._threads = threads - threads // 2, threads // 2
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            given = [*inputs, *parts.before(*(tensor.clone() for tensor in inputs))]
        self._before = _scripted(parts.before.forward, inputs)
        self._halves = [_scripted(half.forward, given) for half in parts.halves]
        self._places = parts.places

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Compute all results from the inputs of the recording."""
        torch.set_num_threads(self._threads[0])
        given = [*inputs, *self._before(*inputs)]
        second = _second_thread().submit(self._half, 1, given)
        found = given, self._half(0, given), second.result()
        return [found[part][place] for part, place in self._places]

    def _half(self, number: int, given: Sequence[Tensor]) -> Sequence[Tensor]:
        torch.set_num_threads(self._threads[number])  # of this thread
        with torch.inference_mode(), optimized_execution(False):
            return self._halves[number](*given)


@cache
def _second_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "second half of an update")


class CudaGraph:
    """Calls `function` as it is for the first `WARM_UP` times, and then replays it as one CUDA graph.

    `function` takes and returns tensors on the GPU and may change others in place, which have to keep their memory.
    The results are copies. Nothing waits for the GPU, but once, before the capture.
    """

    WARM_UP = 3  # an optimizer makes its state at its first step, and a library its handles

    def __init__(self, function: Callable[..., Sequence[Tensor]]) -> None:
        self._function = function
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
            # A capture runs nothing: what it records is done for the first time by the replay below.
            with torch.cuda.graph(self._graph):
                self._outputs = self._function(*self._inputs)
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return [tensor.clone() for tensor in self._outputs]


def _scripted(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Have TorchScript call the operations of `function`, which takes it less time than Python, if it knows them all.

    What `function` does to `inputs` is done to copies here, and what it draws is drawn again.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.no_grad():
        # Deprecated, and yet nothing else calls torch's operations one by one without Python.
        warnings.filterwarnings("ignore", "`torch.jit")
        try:
            script: Callable[..., Sequence[Tensor]] = torch.jit.trace(  # type: ignore[no-untyped-call]  # as torch has it
                function, tuple(tensor.clone() for tensor in inputs), check_trace=False
            )
        except RuntimeError as error:
            if "unsupported argument type" not in str(error):
                raise
            log.debug("a recording is replayed by Python: TorchScript cannot hand on what one of its operations takes")
            return function
    return script
