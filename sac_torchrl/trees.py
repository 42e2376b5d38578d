"""State trees on disk: tensors as safetensors, everything else as JSON, never pickle."""

from typing import Any, TypeAlias

import torch

Tree: TypeAlias = dict[str, Any]
"""Nested str-keyed dicts; leaves are tensors, bools, ints, floats, strings, None and lists of these."""

_TENSOR = "$tensor"


def encode(tree: Tree) -> tuple[Any, dict[str, torch.Tensor]]:
    """The JSON of `tree` with placeholders for its tensors, and copies of the tensors on the CPU.

    Tensors are named by JSON pointer, as in `/learner/loss/log_alpha`. Tuples become lists. Raises
    `TypeError` for a leaf or a key that would not come back as it was.
    """
    tensors: dict[str, torch.Tensor] = {}

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, torch.Tensor):
            # Copies: safetensors refuses tensors that share memory, as targets and views may.
            tensors[path] = node.detach().to("cpu", copy=True).contiguous()
            return {_TENSOR: path}
        if isinstance(node, dict):
            for key in node:
                if not isinstance(key, str) or key == _TENSOR:
                    raise TypeError(f"cannot save {path or '/'}: its key {key!r} is not a string of its own.")
            return {key: walk(value, f"{path}/{_escape(key)}") for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [walk(value, f"{path}/{index}") for index, value in enumerate(node)]
        if node is None or isinstance(node, bool | int | float | str):
            return node
        raise TypeError(f"cannot save {path}: {type(node).__name__} is neither a tensor nor JSON.")

    return walk(tree, ""), tensors


def decode(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The tree that `encode` was given. Raises `KeyError` if a tensor is missing."""
    if isinstance(node, list):
        return [decode(value, tensors) for value in node]
    if not isinstance(node, dict):
        return node
    if node.keys() == {_TENSOR}:
        return tensors[node[_TENSOR]]
    return {key: decode(value, tensors) for key, value in node.items()}


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
