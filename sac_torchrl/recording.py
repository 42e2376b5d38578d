"""Recording a function of tensors as a flat list of tensor operations, to be replayed without its overhead."""

import logging
import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.jit._fuser import optimized_execution

log = logging.getLogger(__name__)

# They hand their argument on, for autograd, without which a recording is replayed.
NOTHING = {torch.ops.aten.alias.default, torch.ops.aten.detach.default, torch.ops.aten.lift_fresh_copy.default}


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
        _skip_what_changes_nothing(graph)
        graph.eliminate_dead_code()
        _compute_once(graph, recording)
        self._constants, self._results = _hoist(graph, recording), len(results)
        scriptable = not self._compiled and inputs[0].is_cpu and _keep_all(graph)
        self._replay = fx.GraphModule(torch.nn.Module(), graph).forward
        if self._compiled:
            # Inductor has a random number generator of its own; these are to be torch's draws.
            self._replay = torch.compile(self._replay, options={"fallback_random": True})
        elif scriptable:
            self._replay = _scripted(self._replay, [*inputs, *self._constants])
        return results


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


def _skip_what_changes_nothing(graph: fx.Graph) -> None:
    marks = []
    for node in graph.nodes:
        source: Any = node.args[0] if node.args else None
        if node.target in NOTHING:
            node.replace_all_uses_with(source)
        elif getattr(node.target, "namespace", None) == "profiler":
            marks.append(node)
        elif node.target is torch.ops.aten.t.default and source.target is torch.ops.aten.t.default:
            node.replace_all_uses_with(source.args[0])
    for mark in reversed(marks):
        graph.erase_node(mark)


def _compute_once(graph: fx.Graph, module: fx.GraphModule) -> None:
    """Let equal operations on equal inputs share their result, unless one of them is changed in place or random."""
    changed = {
        _memory(it, module)
        for node in graph.nodes
        for argument, value in _arguments(node)
        if argument.alias_info is not None and argument.alias_info.is_write
        for it in (value if isinstance(value, list | tuple) else [value])
    }
    seen: dict[object, fx.Node] = {}
    for node in graph.nodes:
        private = any(_memory(it, module) in changed for it in (node, *node.all_input_nodes))
        if node.op == "output" or node.is_impure() or private:
            continue
        key = (node.op, node.target, _frozen(node.args), _frozen(node.kwargs))
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _hoist(graph: fx.Graph, module: fx.GraphModule) -> list[Tensor]:
    """Make placeholders of the constants and of views of them, whose memory never moves; return their tensors."""
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in graph.nodes:
            if node.op == "get_attr":
                values[node] = getattr(module, node.target)
            elif node.op == "call_function" and _is_view(node) and all(it in values for it in node.all_input_nodes):
                values[node] = node.target(*map_arg(node.args, values.__getitem__), **node.kwargs)
    first = next(node for node in graph.nodes if node.op != "placeholder")
    constants: list[Tensor] = []
    for node, value in reversed(values.items()):
        if any(user not in values for user in node.users):
            with graph.inserting_before(first):
                placeholder = graph.placeholder(f"constant_{len(constants)}")
            placeholder.meta = node.meta
            node.replace_all_uses_with(placeholder, delete_user_cb=lambda user: user not in values)
            constants.append(value)
        graph.erase_node(node)
    return constants


def _keep_all(graph: fx.Graph) -> bool:
    """Return from the graph also what nothing asks for; False where an operation returns nothing.

    TorchScript leaves out draws without a use. Its tracer, operations without a result.
    """
    idle = [node for node in graph.nodes if node.op == "call_function" and not node.users]
    output = graph.output_node()
    wanted: Any = output.args[0]
    output.args = ((*wanted, *idle),)
    return bool(wanted) and all(_returns(node) for node in idle)


def _scripted(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Have TorchScript call the operations of `function`, which takes it less time than Python, if it knows them all.

    What `function` does to `inputs` is done to copies here, and what it draws is drawn again.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.no_grad():
        # Deprecated, and yet nothing else calls torch's operations one by one without Python.
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
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


def _is_view(node: fx.Node) -> bool:
    """Whether the results of a node are its first argument's memory, unchanged."""
    returns = _returns(node)
    view = bool(returns) and all(it.alias_info is not None and not it.alias_info.is_write for it in returns)
    return view or node.target is operator.getitem


def _returns(node: fx.Node) -> Sequence[Any]:
    """What the operation of a node says about its results."""
    found: Sequence[Any] = getattr(getattr(node.target, "_schema", None), "returns", [])
    return found


def _memory(node: Any, module: fx.GraphModule) -> Any:
    """Find what made the memory in which a node's value lies: a node, or the address of a constant."""
    while isinstance(node, fx.Node) and node.op == "call_function":
        returns = _returns(node)
        if node.target is not operator.getitem and all(it.alias_info is None for it in returns):
            break
        node = node.args[0]
    constant = isinstance(node, fx.Node) and node.op == "get_attr"
    return getattr(module, node.target).untyped_storage().data_ptr() if constant else node


def _arguments(node: fx.Node) -> list[tuple[Any, Any]]:
    """Pair what the operation of a node calls its arguments with their values."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return []
    by_name = {it.name: it for it in schema.arguments}
    return [*zip(schema.arguments, node.args, strict=False), *((by_name[key], it) for key, it in node.kwargs.items())]


def _frozen(value: Any) -> Any:
    """Make a key of arguments; 1, 1.0 and True are different ones."""
    if isinstance(value, list | tuple):
        return tuple(_frozen(it) for it in value)
    if isinstance(value, dict):
        return tuple((key, _frozen(it)) for key, it in value.items())
    return type(value), value
