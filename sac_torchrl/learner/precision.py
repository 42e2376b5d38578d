"""The numbers in which matrix products are computed."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import Enum
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Precision(Enum):
    """In what numbers matrix products of 8 million multiplications and more are computed; all else is float32.

    `bfloat16` has 8 binary digits where a float32 has 24, and takes a quarter of the time on processors with
    instructions for it; casts around it take back a part. `tf32`, which is for GPUs, has 11 digits inside every product
    and float32 outside: no casts.
    """

    float32 = "float32"
    bfloat16 = "bfloat16"
    tf32 = "tf32"

    def casts(self) -> AbstractContextManager[Any]:
        """Cast the factors of large products while the operations of an update are called or recorded."""
        return _BFloat16Products() if self is Precision.bfloat16 else nullcontext()  # type: ignore[no-untyped-call]

    def mode(self) -> AbstractContextManager[Any]:
        """Set the mode of the device's products while an update is computed or replayed."""
        return _tf32() if self is Precision.tf32 else nullcontext()


def has_bfloat16() -> bool:
    """Whether this processor has instructions for products in bfloat16 (AMX or AVX-512, or those of ARM)."""
    return any("bf16" in name and has for name, has in torch.cpu.get_capabilities().items())


class _BFloat16Products(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    """Computes large matrix products of float32 in bfloat16, those of gradients and the adding of a bias too."""

    _large = 2**23  # multiplications; a smaller product takes less time than the casts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _MATRIX_PRODUCTS and args[-2].numel() * args[-1].shape[-1] >= self._large:
            return func(*(factor.bfloat16() for factor in args), **(kwargs or {})).float()
        return func(*args, **(kwargs or {}))


_MATRIX_PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
}


@contextmanager
def _tf32() -> Iterator[None]:
    """Compute products on GPUs in TF32, and restore the mode that was set before."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before
