"""A pretend GPU: tensors that live on the device `pretend:0` and are computed on the CPU.

A machine without a GPU executes with it the path that a GPU takes. PyTorch lets Python register a backend; this one
keeps a tensor of the CPU inside each of its own. As on a GPU, operators refuse tensors of two devices and generators of
another device, and `numpy()` refuses. A copy to the CPU that does not block holds zeros until the host synchronizes. A
CUDA graph runs nothing while it is captured, and everything in the memory of the capture when it is replayed.
`counting` counts the operators that are launched and what would wait for the device.

It cannot see streams and their order, the memory pool of a graph, the numbers of real kernels, `torch.compile`, JAX,
or time.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, ClassVar, Self

import pytest
import torch
import torch.fx.experimental.proxy_tensor as tracing
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend
from torchrl.collectors import Collector


class _Backend(_DummyBackendModule):
    """What PyTorch and TensorDict ask of a device."""

    def synchronize(self, device: Any = None) -> None:
        """TensorDict waits so after some of its copies."""
        for copied, numbers in _under_way:
            copied.copy_(numbers)
        _under_way.clear()
        if _counts is not None:
            _counts.waits[f"synchronize at {_site()}"] += 1


# Once in a process, and before its first backward pass.
_setup_privateuseone_for_python_backend("pretend", backend_module=_Backend())
CPU, DEVICE = torch.device("cpu"), torch.device("pretend:0")

_ATEN = torch.ops.aten
_COPIES = {_ATEN.copy_.default, _ATEN._to_copy.default}
_INDEXED = {_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default, _ATEN._unsafe_index.Tensor}
# The size or the value of what they return is known to the device alone.
_WAITS = {
    _ATEN._local_scalar_dense.default,
    _ATEN.equal.default,
    _ATEN.is_nonzero.default,
    _ATEN.masked_select.default,
    _ATEN.nonzero.default,
    _ATEN.repeat_interleave.Tensor,
    _ATEN._unique2.default,
    _ATEN.unique_consecutive.default,
    _ATEN.unique_dim.default,
}
_LAUNCH_NOTHING = {"detach", "empty_like", "lift_fresh", "new_empty", "new_empty_strided", "set_"}


@dataclass
class Counts:
    """The operators that were launched, and what waited: the operator, and the line that asked for it."""

    operators: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)


_counts: Counts | None = None
# Copies from the device that do not block, and the numbers that arrive when the host synchronizes.
_under_way: list[tuple[Tensor, Tensor]] = []


class PretendTensor(Tensor):
    """A tensor on `pretend:0`, whose numbers are in `inner`, a tensor on the CPU. `is_cuda` is true."""

    inner: Any
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # so do PyTorch's own
    is_cuda: Any = True

    @staticmethod
    def __new__(cls: type[Self], inner: Tensor) -> Self:
        with torch.inference_mode(False):  # what it wraps may be a view of a tensor from outside
            made: Self = torch.Tensor._make_wrapper_subclass(
                cls,
                inner.size(),
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                device=DEVICE,
            )
        made.inner = inner
        return made

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]  # it takes options of no use here
        return f"{self.inner!r} on {DEVICE}"

    def tolist(self) -> Any:
        """As of a tensor on a GPU; of a subclass PyTorch has none."""
        return self.cpu().tolist()

    def untyped_storage(self) -> Any:
        """The memory that holds the numbers."""
        return self.inner.untyped_storage()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # annotated as what refuses it
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [isinstance(tensor, PretendTensor) for tensor in tensors]
        target = kwargs.get("device")
        arriving = target is None or torch.device(target).type == DEVICE.type
        _refuse(func, args, kwargs, tensors)
        if func is _ATEN._to_copy.default:
            crosses = not (arriving and here[0])
        else:
            crosses = func is _ATEN.copy_.default and here[0] != here[1]
        _note(func, args, kwargs, crosses=crosses, arriving=here[0] if func is _ATEN.copy_.default else arriving)

        def run(*own: Any, **options: Any) -> Any:
            if options.get("device") is not None:
                options["device"] = CPU
            return func(*own, **options)

        bare_args, bare_kwargs = tree_map_only(PretendTensor, lambda tensor: tensor.inner, (args, kwargs))
        if Graph.capturing is None:
            result = run(*bare_args, **bare_kwargs)
        else:
            result = Graph.capturing.record(func, run, bare_args, bare_kwargs)
        if func is _ATEN._to_copy.default and here[0] and not arriving and kwargs.get("non_blocking"):
            _under_way.append((result, result.clone()))
            result.zero_()
        if func is _ATEN._local_scalar_dense.default or not arriving or (func is _ATEN.copy_.default and not here[0]):
            return args[0] if func is _ATEN.copy_.default else result
        wrapped = tree_map_only(Tensor, PretendTensor, result)
        return return_and_correct_aliasing(func, args, kwargs, wrapped)  # type: ignore[no-untyped-call]


class Graph:
    """In place of torch.cuda.CUDAGraph."""

    capturing: "Graph | None" = None

    def __init__(self) -> None:
        self._calls: list[tuple[Callable[..., Any], Any, Any, Any]] = []
        self._generators = set[int]()

    def register_generator_state(self, generator: Any) -> None:
        """Let the captured operators draw from it."""
        self._generators.add(generator._cdata)

    def record(self, func: Any, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Note an operator; what it returns has the right shapes and no meaning yet, and what it changes stays."""
        generator = kwargs.get("generator")
        if generator is not None and generator._cdata not in self._generators:
            raise RuntimeError(f"{func} draws in a capture from a generator that is not registered with the graph.")
        if func._schema.is_mutable:
            self._calls.append((run, args, kwargs, None))
            # Returned are the arguments that it changes: `return_and_correct_aliasing` puts them in place of these.
            return run(*tree_map_only(Tensor, Tensor.clone, args), **tree_map_only(Tensor, Tensor.clone, kwargs))
        result = run(*args, **kwargs)
        if not func.is_view:
            self._calls.append((run, args, kwargs, result))
        return result

    def replay(self) -> None:
        """Do all that was recorded, in the memory of the capture."""
        with torch.inference_mode():
            for run, args, kwargs, result in self._calls:
                new = run(*args, **kwargs)
                for mine, found in zip(tree_leaves(result), tree_leaves(new), strict=result is not None):
                    if isinstance(mine, Tensor):
                        mine.copy_(found)
        if _counts is not None:
            _counts.operators["graph"] += 1


class PretendGenerator(torch.Generator):
    """A generator whose device may be `pretend`, and whose numbers are the CPU's."""

    # Those on `pretend`: an operator sees what is inside of a generator and not the object of Python.
    there: ClassVar[dict[int, "PretendGenerator"]] = {}

    _cdata: int

    def __new__(cls, device: Any = "cpu") -> Self:
        return super().__new__(cls, device="cpu")  # type: ignore[call-arg]  # it is annotated at __init__

    def __init__(self, device: Any = "cpu") -> None:
        if torch.device(device).type == DEVICE.type:
            self.there[self._cdata] = self

    @property
    def device(self) -> torch.device:  # type: ignore[override]  # an attribute there
        """Where it draws."""
        return DEVICE if self._cdata in self.there else CPU


@contextmanager
def pretending() -> Iterator[torch.device]:
    """Have generators and CUDA graphs for the device `pretend`, which is the value."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "Generator", PretendGenerator)
        patch.setattr(torch.cuda, "CUDAGraph", Graph)
        patch.setattr(torch.cuda, "graph", _captured)
        patch.setattr(PretendGenerator, "there", {})
        for name in ("rand", "randint", "randn", "randperm"):
            patch.setattr(torch, name, _drawing(getattr(torch, name)))
        patch.setattr(Collector, "_get_sync_fn", lambda self, device: lambda: None)  # it knows real devices alone
        patch.setattr(tracing, "HANDLED_TYPES", (*tracing.HANDLED_TYPES, PretendTensor))
        yield torch.device("pretend")


@contextmanager
def counting() -> Iterator[Counts]:
    """Count what happens on the device until the end of the block; a replayed graph is one operator."""
    global _counts
    _counts = counts = Counts()
    try:
        yield counts
    finally:
        _counts = None


@contextmanager
def _captured(graph: Graph, **options: Any) -> Iterator[None]:
    # Nothing is drawn while a graph is captured.
    state, states = torch.get_rng_state(), [(one, one.get_state()) for one in PretendGenerator.there.values()]
    Graph.capturing = graph
    try:
        yield
    finally:
        Graph.capturing = None
        torch.set_rng_state(state)
        for generator, before in states:
            generator.set_state(before)


def _drawing(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same, for the CPU and with the generator of another device refused: the operator would see a CPU's."""

    @wraps(function)
    def draw(*args: Any, generator: Any = None, device: Any = None, **options: Any) -> Tensor:
        if generator is not None and torch.device(device or CPU).type != generator.device.type:
            raise RuntimeError(
                f"Expected a '{device or CPU}' device type for generator but found '{generator.device}'."
            )
        return function(*args, generator=generator, device=device, **options)

    return draw


def _refuse(func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
    """Raise RuntimeError where a GPU would: for tensors of two devices, and for the generator of another."""
    others = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor) and tensor.ndim > 0]
    if func in _INDEXED and isinstance(args[0], PretendTensor):
        others = [tensor for tensor in others if all(tensor is not index for index in args[1])]
    if others and func not in _COPIES:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {func} found {DEVICE} and {others[0].device}."
        )
    generator = kwargs.get("generator")
    if generator is not None and generator._cdata not in PretendGenerator.there:
        raise RuntimeError(f"Expected a '{DEVICE}' device type for generator but {func} found '{generator.device}'.")


def _note(func: Any, args: Any, kwargs: Any, *, crosses: bool, arriving: bool) -> None:
    name = func.overloadpacket.__name__
    wait = name if func in _WAITS else ""
    if func in _INDEXED:
        indices = [index for index in args[1] if index is not None]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            wait = f"{name} by a mask"
        elif any(index.is_cpu for index in indices):
            wait = f"{name} by positions on the CPU"
    held = kwargs.get("non_blocking", len(args) > 2 and args[2])
    if crosses and not (arriving and held):
        wait = f"copy {'to' if arriving else 'from'} the device"
    if wait and Graph.capturing is not None:
        raise RuntimeError(f"operation not permitted when stream is capturing: {wait}")
    if _counts is None:
        return
    if wait:
        _counts.waits[f"{wait} at {_site()}"] += 1
    elif not func.is_view and name not in _LAUNCH_NOTHING:
        _counts.operators[name] += 1


def _site() -> str:
    """The innermost line of the package, or where there is none of the test."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        file = frame.f_code.co_filename
        if "/sac_torchrl/" in file and "site-packages" not in file:
            return f"{file.rpartition('/sac_torchrl/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "the test"


def _empty(size: Any, *, dtype: Any = None, **options: Any) -> Tensor:
    # A capture computes with what nothing has written yet: nought is a position and a number everywhere.
    make = torch.empty if Graph.capturing is None else torch.zeros
    return PretendTensor(make(size, dtype=dtype, device=CPU))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **options: Any) -> Tensor:
    made = torch.empty_strided(size, stride, dtype=dtype, device=CPU)
    return PretendTensor(made if Graph.capturing is None else made.zero_())


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """What `torch.tensor(numbers, device=...)` calls, past everything else."""
    assert isinstance(target, PretendTensor)
    _note(_ATEN.copy_.default, (target, source, non_blocking), {}, crosses=True, arriving=True)
    target.inner.copy_(source)
    return target


def _made_of(operator: Any) -> Callable[..., Tensor]:
    """A factory whose own path makes nothing and then resizes it, which a tensor around another does not follow."""

    def make(*args: Any, dtype: Any = None, **options: Any) -> Tensor:
        if _counts is not None:
            _counts.operators[operator.overloadpacket.__name__] += 1
        return PretendTensor(operator(*args, dtype=dtype, device=CPU))

    return make


_library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]  # torch leaves it unannotated
for _name, _kernel in {
    "empty.memory_format": _empty,
    "empty_strided": _empty_strided,
    "_copy_from": _copy_from,
    "arange": _made_of(_ATEN.arange.default),
    "arange.start": _made_of(_ATEN.arange.start),
    "arange.start_step": _made_of(_ATEN.arange.start_step),
    "linspace": _made_of(_ATEN.linspace.default),
}.items():
    _library.impl(_name, _kernel, "PrivateUse1")
