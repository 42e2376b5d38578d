"""Recorded operations as a graph: rewritten without changing a bit of what they compute, and cut in two."""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

_ATEN = torch.ops.aten
# They hand their argument on, for autograd, without which a recording is replayed.
NOTHING = {_ATEN.alias.default, _ATEN.detach.default, _ATEN.lift_fresh_copy.default}
_PRODUCTS = {
    _ATEN.mm.default,
    _ATEN.addmm.default,
    _ATEN.bmm.default,
    _ATEN.baddbmm.default,
}

_FEW = 32


def simplify(graph: fx.Graph) -> None:
    """Remove no-ops, copies that nothing needs, and dead code."""
    marks, kept = [], _changed(graph) | {_memory(node) for node in graph.output_node().all_input_nodes}
    for node in graph.nodes:
        source: Any = node.args[0] if node.args else None
        if node.target in NOTHING:
            node.replace_all_uses_with(source)
        elif getattr(node.target, "namespace", None) == "profiler":
            marks.append(node)
        elif node.target is _ATEN.t.default and source.target is _ATEN.t.default:
            node.replace_all_uses_with(source.args[0])
        elif node.target is _ATEN.view.default and node.meta["val"].shape == source.meta["val"].shape:
            node.replace_all_uses_with(source)
        elif node.target is _ATEN.clone.default and not node.kwargs and not kept & {node, _memory(source)}:
            # A parameter may be a part of memory that is changed under another name.
            own = _memory(source).op != "get_attr"
            if own and node.meta["val"].stride() == source.meta["val"].stride():
                node.replace_all_uses_with(source)
        elif node.target is _ATEN.ones_like.default:
            # Where the gradients of a sum begin: they ask for its shape alone.
            like = node.meta["val"]
            with graph.inserting_before(node):
                ones = graph.call_function(
                    _ATEN.ones.default, (list(like.shape),), {"dtype": like.dtype, "device": like.device}
                )
            ones.meta = node.meta
            node.replace_all_uses_with(ones)
    for mark in reversed(marks):
        graph.erase_node(mark)
    graph.eliminate_dead_code()


def transpose_narrow(graph: fx.Graph) -> None:
    """Compute products with a few columns, and parts of them, as the transpose of one with a few rows.

    BLAS takes half the time for them. Where it does not get the same bits from it they stay as they are. Products of a
    column and a row are computed without it.
    """
    for node in list(graph.nodes):
        if node.target not in (_ATEN.mm.default, _ATEN.addmm.default) or not node.meta["val"].is_cpu:
            continue
        *bias, left, right = node.args
        if node.kwargs or any(it.meta["val"].ndim != 1 for it in bias):
            continue
        (rows, inner), columns = left.meta["val"].shape, right.meta["val"].shape[1]
        if inner == 1 and not bias:
            with graph.inserting_before(node):
                outer = graph.call_function(_ATEN.mul.Tensor, node.args)
            outer.meta = node.meta
            node.replace_all_uses_with(outer)
        if not 1 < columns <= _FEW < min(rows, inner):
            continue
        part, only = (0, columns), next(iter(node.users))
        cut_out = only.target is _ATEN.slice.Tensor and only.args[1:2] == (1,) and len(only.args) == 4
        if cut_out and not bias and len(node.users) == 1:
            part, node = only.args[2:], only
        if _turns([*bias, left, right], part):
            with graph.inserting_before(node):
                few = graph.call_function(_ATEN.slice.Tensor, (right, 1, *part))
                factors = [graph.call_function(_ATEN.t.default, (it,)) for it in (few, left)]
                upright = [graph.call_function(_ATEN.unsqueeze.default, (it, 1)) for it in bias]
                product = graph.call_function(_ATEN.addmm.default if bias else _ATEN.mm.default, (*upright, *factors))
                turned = graph.call_function(_ATEN.t.default, (product,))
                copied = graph.call_function(_ATEN.clone.default, (turned,), {"memory_format": torch.contiguous_format})
            copied.meta = node.meta
            node.replace_all_uses_with(copied)
    graph.eliminate_dead_code()


def hoist(graph: fx.Graph, module: fx.GraphModule) -> list[Any]:
    """Turn constants, views of them and generators, which never move in memory, into placeholders; return them."""
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in graph.nodes:
            if node.op == "get_attr":
                values[node] = getattr(module, node.target)
            elif node.op == "call_function" and _is_view(node) and all(it in values for it in node.all_input_nodes):
                values[node] = node.target(*map_arg(node.args, values.__getitem__), **node.kwargs)
    first = next(node for node in graph.nodes if node.op != "placeholder")
    constants: list[Any] = []
    for node, value in reversed(values.items()):
        if any(user not in values for user in node.users):
            kind = torch.Generator if isinstance(value, torch.Generator) else None  # TorchScript assumes tensors
            with graph.inserting_before(first):
                placeholder = graph.placeholder(f"constant_{len(constants)}", kind)
            placeholder.meta = node.meta
            node.replace_all_uses_with(placeholder, delete_user_cb=lambda user: user not in values)
            constants.append(value)
        graph.erase_node(node)
    return constants


def keep_all(graph: fx.Graph) -> bool:
    """Return from the graph also what nothing asks for, since TorchScript leaves it out.

    False where an operation has no result, and would be left out for all that.
    """
    idle = [node for node in graph.nodes if node.op == "call_function" and not node.users]
    output = graph.output_node()
    wanted: Any = output.args[0]
    output.args = ((*wanted, *idle),)
    return all(map(_returns, idle))


@dataclass(frozen=True)
class Parts:
    """A graph in three: `halves` take the graph's inputs and the results of `before`, and nothing of each other.

    `places` says for each result of the graph where it is: part 0 are the inputs and then the results of `before`, 1
    and 2 those of the halves.
    """

    before: fx.GraphModule
    halves: tuple[fx.GraphModule, fx.GraphModule]
    places: list[tuple[int, int]]


def cut(graph: fx.Graph) -> Parts | None:
    """Cut behind the first matrix products what falls apart there, into halves of about as many of them.

    What is computed before them for one half alone goes with that half. None where the graph does not fall apart, or is
    kept together by what is drawn or changed in place: `before` comes first.
    """
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    calls = [node for node in graph.nodes if node.op == "call_function"]
    late, read = dict[fx.Node, None](), set[Any]()
    for node in calls:
        if node.target in _PRODUCTS or any(it in late for it in node.all_input_nodes):
            late[node] = None
            read.update(_memory(it) for it in node.all_input_nodes)
        elif read & _written(node):  # it would run before the readers of what it changes
            return None
    pieces = list[dict[fx.Node, None]]()
    for node in late:
        mine = [piece for piece in pieces if any(it in piece for it in node.all_input_nodes)]
        joined = {one: None for piece in mine for one in piece} | {node: None}
        pieces = [piece for piece in pieces if piece not in mine] + [joined]
    shares: tuple[set[fx.Node], set[fx.Node]] = set(), set()
    for piece in sorted(pieces, key=_products, reverse=True):
        min(shares, key=_products).update(piece)
    early = {node for node in calls if node not in late}
    changed = _changed(graph)
    for node in reversed(calls):
        bound = _is_random(node) or changed & {_memory(it) for it in (node, *node.all_input_nodes)}
        share = next((share for share in shares if share.issuperset(node.users)), early)
        if node in early and not bound:
            early.remove(node)
            share.add(node)
    if not all(map(_products, shares)) or not all(_stays_within(node, (early, *shares)) for node in calls):
        return None
    wanted: Any = graph.output_node().args[0]
    handed = [node for node in calls if node in early and not early.issuperset(node.users)]
    given = [*inputs, *handed]
    results = [[node for node in dict.fromkeys(wanted) if node in share] for share in shares]
    places = {node: (part, place) for part, held in enumerate((given, *results)) for place, node in enumerate(held)}
    first, second = (
        _part([node for node in calls if node in share], given, outputs)
        for share, outputs in zip(shares, results, strict=True)
    )
    before = _part([node for node in calls if node in early], inputs, handed)
    return Parts(before, (first, second), [places[node] for node in wanted])


def _turns(factors: Sequence[fx.Node], part: Sequence[int]) -> bool:
    """Whether BLAS gets the same bits for some columns of a product and for the same rows of the transposed one."""
    random = torch.Generator().manual_seed(0)
    values = []
    for node in factors:
        like = node.meta["val"]
        values.append(torch.empty_strided(like.shape, like.stride(), dtype=like.dtype).normal_(generator=random))
    *bias, left, right = values
    few = right[:, part[0] : part[1]].t()
    whole = torch.addmm(bias[0], left, right) if bias else left @ right
    turned = torch.addmm(bias[0].unsqueeze(1), few, left.t()) if bias else few @ left.t()
    return torch.equal(whole[:, part[0] : part[1]], turned.t())


def _products(nodes: Iterable[fx.Node]) -> int:
    return sum(node.target in _PRODUCTS for node in nodes)


def _stays_within(node: fx.Node, parts: Iterable[set[fx.Node]]) -> bool:
    """Whether a node may be computed at another time than between its neighbors in the graph."""
    part = next(part for part in parts if node in part)
    if _is_random(node) and _products(part):
        return False
    return part >= _written(node)


def _is_random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _changed(graph: fx.Graph) -> set[Any]:
    """Find what made the memory that anything in the graph changes in place, as `_memory` does."""
    return set[Any]().union(*(_written(node) for node in graph.nodes))


def _part(nodes: list[fx.Node], given: list[fx.Node], wanted: list[fx.Node]) -> fx.GraphModule:
    """The computation of `wanted` from `given` by `nodes`."""
    graph, known = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in given:
        known[node] = graph.placeholder(node.name)
    for node in nodes:
        known[node] = graph.node_copy(node, known.__getitem__)
    graph.output(tuple(known[node] for node in wanted))
    return fx.GraphModule(torch.nn.Module(), graph)


def _is_view(node: fx.Node) -> bool:
    """Whether the results of a node are its first argument's memory, unchanged."""
    returns = _returns(node)
    view = bool(returns) and all(it.alias_info is not None and not it.alias_info.is_write for it in returns)
    return view or node.target is operator.getitem


def _returns(node: fx.Node) -> Sequence[Any]:
    """What the operation of a node says about its results."""
    found: Sequence[Any] = getattr(getattr(node.target, "_schema", None), "returns", [])
    return found


def _memory(node: Any) -> Any:
    """Find the node that made the memory in which a node's value lies."""
    while isinstance(node, fx.Node) and node.op == "call_function":
        returns = _returns(node)
        if node.target is not operator.getitem and all(it.alias_info is None for it in returns):
            break
        node = node.args[0]
    return node


def _written(node: fx.Node) -> set[Any]:
    """Find what made the memory that a node changes in place, as `_memory` does."""
    return {
        _memory(it)
        for argument, value in _arguments(node)
        if argument.alias_info is not None and argument.alias_info.is_write
        for it in (value if isinstance(value, list | tuple) else [value])
    }


def _arguments(node: fx.Node) -> list[tuple[Any, Any]]:
    """Pair what the operation of a node calls its arguments with their values."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return []
    by_name = {it.name: it for it in schema.arguments}
    return [*zip(schema.arguments, node.args, strict=False), *((by_name[key], it) for key, it in node.kwargs.items())]
