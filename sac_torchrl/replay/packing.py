"""A replay buffer with packed rows: the columns of a transition lie side by side, as bytes."""

import logging
from typing import Any

import torch
from tensordict import MemoryMappedTensor, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers import RoundRobinWriter

Key = tuple[str, ...]
Layout = dict[Key, tuple[torch.dtype, torch.Size]]


def unchecked(tree: dict[str, Any], count: int) -> TensorDict:
    """A TensorDict `(count,)` of tensors that are known to fit: checking them takes longer than a simulator's step."""
    made: TensorDict = TensorDict._new_unsafe(tree, batch_size=torch.Size([count]))
    return made


class Packing:
    """Turns rows of columns into rows of bytes, `(rows, width)` uint8, and back.

    Columns of one type lie side by side. Each begins at a multiple of its element's size, as does every row, so that
    columns are views of the bytes.
    """

    def __init__(self, columns: Layout) -> None:
        self._groups: list[tuple[torch.dtype, slice, list[tuple[Key, torch.Size]]]] = []
        # How a row, viewed as elements of a group's dtype, is split: what is before the group, its columns, the rest.
        self._sizes: list[list[int]] = []
        offset = 0
        # Not a set: the order of a set differs between processes, and workers send packed rows.
        dtypes = dict.fromkeys(dtype for dtype, _ in columns.values())
        for dtype in sorted(dtypes, key=lambda dtype: -dtype.itemsize):
            group = [(key, shape) for key, (kind, shape) in columns.items() if kind == dtype]
            start = offset
            offset += dtype.itemsize * sum(shape.numel() for _, shape in group)
            self._groups.append((dtype, slice(start, offset), group))
        largest = max(dtype.itemsize for dtype, _ in columns.values())
        self.width = -(-offset // largest) * largest
        for dtype, place, group in self._groups:
            sizes = [shape.numel() for _, shape in group]
            before, after = place.start // dtype.itemsize, (self.width - place.stop) // dtype.itemsize
            self._sizes.append([before, *sizes, after])

    def pack(self, rows: TensorDictBase, packed: Tensor | None = None) -> Tensor:
        """Write the columns of `rows`, `(n,)`, as bytes `(n, width)` on their device; other columns are left out.

        With `packed` they are written there.

        Raises ValueError for a column that is missing or has another dtype or shape: TorchRL would zero-fill, cast or
        broadcast it, or fail after moving its cursor.
        """
        count = len(rows)
        branches: dict[Key, dict[str, Any]] = {(): dict(rows.items())}
        for dtype, place, group in self._groups:
            columns = []
            for key, shape in group:
                *path, name = key
                parent = tuple(path)
                if parent not in branches:
                    branch = rows.get(parent, None)
                    branches[parent] = {} if branch is None else dict(branch.items())
                column = branches[parent].get(name)
                if column is None:
                    raise ValueError(f"rows for the replay buffer have no {'.'.join(key)!r}: collect it too.")
                if column.dtype != dtype or column.shape[1:] != shape:
                    raise ValueError(
                        f"{'.'.join(key)!r} of rows for the replay buffer is {column.dtype} {tuple(column.shape)}: "
                        f"the buffer takes {dtype} {(count, *shape)}."
                    )
                columns.append(column if len(shape) == 1 else column.reshape(count, -1))
            if packed is None:
                packed = torch.empty(count, self.width, dtype=torch.uint8, device=columns[0].device)
            with torch.no_grad():  # a rollout with a policy's gradients
                torch.cat(columns, dim=1, out=packed[:, place].view(dtype))
        assert packed is not None
        return packed

    def unpack(self, packed: Tensor, others: dict[str, Tensor] | None = None) -> TensorDict:
        """View bytes `(n, width)` as rows `(n,)`, with `others` as further columns."""
        count = len(packed)
        tree: dict[str, Any] = {}
        for (dtype, _, group), sizes in zip(self._groups, self._sizes, strict=True):
            _, *columns, _ = packed.view(dtype).split_with_sizes(sizes, dim=1)
            for ((*path, name), shape), column in zip(group, columns, strict=True):
                branch = tree
                for step in path:
                    branch = branch.setdefault(step, {})
                branch[name] = column if len(shape) == 1 else column.view(count, *shape)
        return unchecked(tree | (others or {}), count)

    def views(self, packed: Tensor) -> dict[Key, Any]:
        """NumPy's views of the columns in bytes `(n, width)` on the CPU, by their keys."""
        leaves = self.unpack(packed).items(include_nested=True, leaves_only=True)
        return {(key,) if isinstance(key, str) else key: leaf.numpy() for key, leaf in leaves}


class _PackedRows(LazyTensorStorage):
    """Rows of bytes, kept on any device and read on the device `destination`."""

    _storage: Any

    def __init__(self, max_size: int, columns: Layout, *, destination: torch.device, **options: Any) -> None:
        super().__init__(max_size, **options)
        self.packing = Packing(columns)
        self.destination = destination

    def set(self, cursor: Any, data: Any, **options: Any) -> None:
        """Write packed rows, `(n, width)`."""
        if self.initialized and isinstance(cursor, Tensor) and len(cursor) <= self.max_size:
            # TorchRL's own path for a tensor of positions, without its checks for other types.
            self._set_last_cursor(cursor)
            self._get_new_len(data, cursor)  # type: ignore[no-untyped-call]  # TorchRL leaves it unannotated
            self._storage.index_copy_(0, cursor, data)
            self._bump_mutation_revision()
        else:
            super().set(cursor, data, **options)

    def put(self, first: int, rows: Tensor) -> None:
        """Write packed rows `(n, width)` side by side from position `first`, as `set` does."""
        count = len(rows)
        self._set_last_cursor(range(first, first + count))
        self._len = min(self._len + count, self.max_size)
        if self._storage.is_cpu:
            self._storage.numpy()[first : first + count] = rows.numpy()  # in half the time of torch's views
        else:
            self._storage.narrow(0, first, count).copy_(rows)
        self._bump_mutation_revision()

    def get(self, index: Any, others: dict[str, Tensor] | None = None) -> TensorDict:
        """Read rows `(n,)`: copies on `destination` where `index` is a tensor, views where it is a slice.

        `others` are further columns `(n,)`.
        """
        if isinstance(index, Tensor) and self.initialized:
            packed = self._storage.index_select(0, index.to(self._storage.device))
            # All columns in one transfer.
            packed = packed.to(self.destination, non_blocking=self.destination.type != "cpu")
            return self.packing.unpack(packed, others)
        packed = super().get(index)
        return self.packing.unpack(packed) if packed.ndim > 1 else self.packing.unpack(packed.unsqueeze(0))[0]

    def _init(self, data: Any = None) -> None:
        torchrl = logging.getLogger("torchrl")
        level = torchrl.level
        torchrl.setLevel(logging.WARNING)  # it remarks on every storage, in color, on standard output
        try:
            super()._init(data)
        finally:
            torchrl.setLevel(level)
        if isinstance(self._storage, MemoryMappedTensor):
            # Indexing it as what it is, a tensor, saves 50 microseconds.
            self._storage = self._storage.as_subclass(Tensor)


class PackedTensorStorage(_PackedRows):
    """LazyTensorStorage of packed rows, in main memory or on a GPU."""


class PackedMemmapStorage(_PackedRows, LazyMemmapStorage):
    """LazyMemmapStorage of packed rows: one file."""


class RingWriter(RoundRobinWriter):
    """RoundRobinWriter that writes packed rows by one copy, but for those that go round the end of the storage."""

    _storage: _PackedRows

    def extend(self, data: Any) -> Tensor:
        """Write rows `(n, width)` and return their positions."""
        storage, first, count = self._storage, self._cursor, len(data)
        if not storage.initialized or first + count > storage.max_size:
            # The storage keeps a view of these positions, which its next write changes.
            return super().extend(data).clone()
        self._cursor = (first + count) % storage.max_size
        self._write_count += count
        storage.put(first, data)
        positions = torch.arange(first, first + count, device=data.device)
        for entity in storage._attached_entities_iter():  # without the shell that TorchDynamo puts around it
            entity.mark_update(positions)
        return positions


class PackedReplayBuffer(TensorDictReplayBuffer):
    """TensorDictReplayBuffer that stores the columns of its layout, and does not change the rows it is given."""

    _storage: _PackedRows

    def add(self, data: TensorDictBase) -> int:
        """Write one row `()` and return its position."""
        return int(self.extend(data.unsqueeze(0)))

    def __setitem__(self, index: Any, value: TensorDictBase) -> None:
        """Raises TypeError: checkpoints assume that rows never change."""
        raise TypeError("rows of a replay buffer are not replaced in place: `extend` it.")

    def extend(self, tensordicts: TensorDictBase, *, update_priority: bool | None = None) -> Tensor:
        """Write rows `(n,)`, or `(...)` flattened, from any device; return their positions, on that of the storage.

        `update_priority` has no meaning for new rows.

        Raises ValueError, and changes nothing, for rows that do not fit; see `Packing.pack`.
        """
        # TorchRL's own also writes the positions into the rows, which takes as long as storing them.
        if tensordicts.ndim > 1:  # of several environments and steps, as TorchRL's Collector has them
            tensordicts = tensordicts.reshape(-1)
        return self.extend_packed(self._storage.packing.pack(tensordicts))

    def extend_packed(self, packed: Tensor) -> Tensor:
        """As `extend`, with the bytes of rows, `(n, width)`, that the `packing` of the storage made."""
        if packed.device != self._storage.device:
            device = torch.device(self._storage.device)
            # A copy to the host that does not block would be read before it arrives.
            packed = packed.to(device, non_blocking=device.type != "cpu")
        positions: Tensor = self._extend(packed)  # type: ignore[arg-type]  # rows are enough
        return positions

    def sample(
        self, batch_size: int | None = None, return_info: bool = False, include_info: bool | None = None
    ) -> TensorDictBase:
        """Draw rows `(batch_size,)`, by default as many as the buffer was built for; `index` is where they are."""
        asked = batch_size is not None or return_info or include_info is not None
        # Cases that TorchRL's own method has to handle.
        held = self._prefetch or self._delayed_init or self._service_shutdown or self._sample_dependency is not None
        changed = len(self._transform) or self._sample_unit is not None  # type: ignore[arg-type]  # it is a Compose
        if asked or held or changed or self._batch_size is None:
            given: TensorDictBase = super().sample(batch_size, return_info, include_info)
            return given
        # Without its other checks, which take as long as reading the rows.
        with self._replay_lock, self._write_lock:
            index, info = self._sampler.sample(self._storage, self._batch_size)
            others = {"index": index, **info}
            device = self._storage.destination
            return self._storage.get(
                index, {name: torch.as_tensor(value, device=device) for name, value in others.items()}
            )
