"""Undoing, after every call, what an environment's code changes in the process around it."""

import importlib
import logging
import signal
import threading
import warnings
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sac_torchrl.signals import STOPPING

log = logging.getLogger(__name__)

# signal.getsignal looks every handler up in an enumeration, which takes longer than everything else here.
_handler: Any = importlib.import_module("_signal").getsignal

# Torch's generator as the environments of this process left it, once one has seeded it: they draw from a stream of
# their own then, since exploration and losses draw from the same generator.
_stream: Tensor | None = None


def stream() -> Tensor | None:
    """The state of torch's generator that environments draw from; None while none has seeded it."""
    return _stream


def set_stream(state: Tensor | None) -> None:
    """Restore that state."""
    global _stream
    _stream = state


class Contained:
    """Run the environment `id` in the block, and restore what it changes of the process.

    That is the handlers of signals that stop a run, grad mode, the default dtype, the number of threads, the level
    below which logging is silent, filters that turn warnings into errors, and torch's generator where it is seeded.
    Each is logged once.
    """

    __slots__ = ("_before", "_generator", "_id", "_seed")

    def __init__(self, id: str) -> None:
        self._id = id

    def __enter__(self) -> None:
        self._before = _state()
        self._generator = None
        if _stream is not None:
            self._generator = torch.get_rng_state()
            torch.set_rng_state(_stream)
        self._seed = torch.default_generator.initial_seed()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._generator is not None:
            set_stream(torch.get_rng_state())
            torch.set_rng_state(self._generator)
        elif torch.default_generator.initial_seed() != self._seed:
            set_stream(torch.get_rng_state())
            # Where the generator stood is gone, and to keep it at every step takes too long.
            torch.manual_seed(int(np.random.SeedSequence([self._seed, 1]).generate_state(1)[0]))
            _tell(self._id, "seeded torch's generator: it has one of its own from here on")
        after = _state()
        if after != self._before:
            self._put_back(after)

    def _put_back(self, after: tuple[Any, ...]) -> None:
        *handlers, filters, grad, dtype, threads, silent = self._before
        if handlers != list(after[: len(handlers)]) and threading.current_thread() is threading.main_thread():
            for number, handler in zip(STOPPING, handlers, strict=True):
                if handler is not None:  # one that Python did not install
                    signal.signal(number, handler)
            _tell(self._id, "installed handlers of signals, which would keep the run from being stopped")
        new = max(0, len(warnings.filters) - filters)
        if any(one[0] == "error" for one in warnings.filters[:new]):  # as warnings.filterwarnings inserts them
            warnings.filters[:new] = [one for one in warnings.filters[:new] if one[0] != "error"]  # type: ignore[index]
            _tell(self._id, "turned warnings into errors, those of other packages too")
        others: tuple[tuple[str, Any, Any, Callable[[Any], object]], ...] = (
            ("grad mode", grad, after[-4], torch.set_grad_enabled),
            ("torch's default dtype", dtype, after[-3], torch.set_default_dtype),
            ("torch's number of threads", threads, after[-2], torch.set_num_threads),
            ("logging", silent, after[-1], logging.disable),
        )
        for name, was, now, put in others:
            if was != now:
                put(was)
                _tell(self._id, f"changed {name}")


def _state() -> tuple[Any, ...]:
    return (
        *map(_handler, STOPPING),
        len(warnings.filters),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        logging.root.manager.disable,
    )


@cache
def _tell(id: str, what: str) -> None:
    """Log it once in a process."""
    log.warning("env.id=%s %s; it is put back", id, what)


def forget() -> None:
    """Log again what was logged before."""
    _tell.cache_clear()
