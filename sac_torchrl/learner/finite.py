"""Guards against numbers that are not finite: seen where the numbers are, read on the host when it looks anyway."""

from collections.abc import Iterable

import torch
from torch import Tensor


class FiniteFlag:
    """Remembers on `device` whether any of the numbers it has seen was NaN or infinite."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._seen = torch.zeros((), dtype=torch.float64, device=device)

    def see(self, numbers: Iterable[Tensor]) -> None:
        """Check numbers of any shape on that device; waits for nothing, and changes the flag in place."""
        # A sum keeps a NaN or an infinity, and 0 times either is NaN: one flag without a branch.
        everything = torch.cat([tensor.detach().reshape(-1) for tensor in numbers])
        self._seen += everything.sum(dtype=torch.float64) * 0

    @property
    def finite(self) -> bool:
        """Whether all were finite; waits for the device."""
        return bool(self._seen == 0)


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor with a NaN or an infinity in it; waits for the device."""
    named = [(name, tensor) for name, tensor in tensors if tensor.is_floating_point()]
    if not named:
        return None
    finite = torch.stack([tensor.isfinite().all() for _, tensor in named]).tolist()
    return next((name for (name, _), good in zip(named, finite, strict=True) if not good), None)
