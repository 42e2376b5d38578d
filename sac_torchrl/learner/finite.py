"""Guards against numbers that are not finite: seen where the numbers are, read on the host when it looks anyway."""

from collections.abc import Iterable

import torch
from torch import Tensor


class FiniteFlag:
    """Remembers on their device whether any of the numbers it was shown was NaN or infinite."""

    def __init__(self) -> None:
        self._seen: Tensor | None = None

    def see(self, numbers: Iterable[Tensor]) -> None:
        """Look at some numbers, of any shape; waits for no device."""
        for tensor in numbers:
            # A NaN and an infinity outlive a sum, and nought times either is NaN: one flag without a branch.
            total = tensor.detach().sum(dtype=torch.float64) * 0
            self._seen = total if self._seen is None else self._seen + total

    @property
    def finite(self) -> bool:
        """Whether all were finite; waits for the device."""
        return self._seen is None or bool(self._seen == 0)


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor with a NaN or an infinity in it; waits for the device."""
    named = [(name, tensor) for name, tensor in tensors if tensor.is_floating_point()]
    if not named:
        return None
    finite = torch.stack([tensor.isfinite().all() for _, tensor in named]).tolist()
    return next((name for (name, _), good in zip(named, finite, strict=True) if not good), None)
