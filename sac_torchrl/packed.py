"""A replay buffer that keeps a transition in one place: the columns of a row lie side by side, as bytes."""

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, TensorDictReplayBuffer

Key = tuple[str, ...]
Layout = dict[Key, tuple[torch.dtype, torch.Size]]


class Packing:
    """Turns rows of columns into rows of bytes, `(rows, width)` uint8, and back.

    Columns of one type lie side by side. Each begins at a multiple of its element's size, as does every row, so that
    columns are views of the bytes.
    """

    def __init__(self, columns: Layout) -> None:
        self._columns: list[tuple[Key, torch.dtype, torch.Size, slice]] = []
        self._groups: list[tuple[torch.dtype, slice, list[Key]]] = []
        offset = 0
        for dtype in sorted({dtype for dtype, _ in columns.values()}, key=lambda dtype: -dtype.itemsize):
            group = {key: shape for key, (kind, shape) in columns.items() if kind == dtype}
            start = offset
            for key, shape in group.items():
                width = dtype.itemsize * shape.numel()
                self._columns.append((key, dtype, shape, slice(offset, offset + width)))
                offset += width
            self._groups.append((dtype, slice(start, offset), list(group)))
        largest = max(dtype.itemsize for dtype, _ in columns.values())
        self.width = -(-offset // largest) * largest

    def pack(self, rows: TensorDictBase) -> Tensor:
        """Write `rows`, `(n,)`, as bytes `(n, width)` on their device."""
        count = rows.shape[0]
        branches: dict[Key, TensorDictBase] = {(): rows}
        packed: Tensor | None = None
        for dtype, place, keys in self._groups:
            columns = []
            for *path, name in keys:
                parent = tuple(path)
                if parent not in branches:
                    branches[parent] = rows.get(parent)
                columns.append(branches[parent].get(name).reshape(count, -1))
            if packed is None:
                packed = torch.empty(count, self.width, dtype=torch.uint8, device=columns[0].device)
            torch.cat(columns, dim=1, out=packed[:, place].view(dtype))
        assert packed is not None
        return packed

    def unpack(self, packed: Tensor) -> TensorDict:
        """View bytes `(n, width)` as rows `(n,)`."""
        tree: dict[str, Any] = {}
        for (*path, name), dtype, shape, place in self._columns:
            branch = tree
            for step in path:
                branch = branch.setdefault(step, {})
            column = packed[:, place].view(dtype)
            branch[name] = column if len(shape) == 1 else column.view(len(packed), *shape)
        return TensorDict(tree, batch_size=[len(packed)])


class _PackedRows(LazyTensorStorage):
    _storage: Any

    def __init__(self, max_size: int, columns: Layout, **options: Any) -> None:
        super().__init__(max_size, **options)
        self.packing = Packing(columns)

    def set(self, cursor: Any, data: Any, **options: Any) -> None:
        """Write rows `(n,)`."""
        packed = self.packing.pack(data)
        if self.initialized and isinstance(cursor, Tensor) and len(cursor) <= self.max_size:
            # What TorchRL's own does with a tensor of positions, without asking what else they might be.
            self._set_last_cursor(cursor)
            self._get_new_len(packed, cursor)  # type: ignore[no-untyped-call]  # TorchRL leaves it unannotated
            self._storage.index_copy_(0, cursor, packed)
            self._bump_mutation_revision()
        else:
            super().set(cursor, packed, **options)

    def get(self, index: Any) -> TensorDict:
        """Read rows `(n,)`: copies where `index` is a tensor, views where it is a slice."""
        if isinstance(index, Tensor) and self.initialized:
            return self.packing.unpack(self._storage.index_select(0, index))
        return self.packing.unpack(super().get(index))

    def _init(self, data: Any = None) -> None:
        super()._init(data)
        # Indexing a memory-mapped tensor as what it is, a tensor, saves 50 microseconds.
        self._storage = self._storage.as_subclass(Tensor)


class PackedTensorStorage(_PackedRows):
    """LazyTensorStorage of packed rows, in main memory or on a GPU."""


class PackedMemmapStorage(_PackedRows, LazyMemmapStorage):
    """LazyMemmapStorage of packed rows: one file."""


class PackedReplayBuffer(TensorDictReplayBuffer):
    """TensorDictReplayBuffer that leaves the rows it is given as they are."""

    def extend(self, tensordicts: TensorDictBase, *, update_priority: bool | None = None) -> Tensor:
        """Write rows `(n,)` and return their positions `(n,)`; `update_priority` has no meaning for new rows."""
        # TorchRL's own goes on to write the positions into the rows, which takes as long as storing them.
        positions: Tensor = self._extend(tensordicts)
        return positions
