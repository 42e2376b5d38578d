"""Imports that take no longer than they must."""

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Generator[None, None, None]:
    """Import without Python's garbage collector, which would walk all that PyTorch and TorchRL made several times.

    Hardly anything of it is garbage, and looking for it takes a fifth of the time.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
