"""The signals that ask a run to save and stop."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

from sac_torchrl.errors import EnvironmentFault

# From a scheduler, a person, a scheduler's early warning, and a terminal that is closed.
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class Signals:
    """The signal that asked the run to stop, if any: the handler only records it, the loop reads it.

    A second signal ends the process at once if it comes more than a tenth of a second later (some senders repeat
    theirs) and is not SIGHUP: shell and terminal both send SIGHUP, so a repeat is not a second request. Where SIGHUP
    is ignored (nohup), it stays ignored.
    """

    def __init__(self) -> None:
        self.received = ""
        self._at = 0.0

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Record signals until the `with` block ends; Python handles signals in the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # Python's helper process ignores SIGINT and SIGTERM that go to the whole group, but not the others: it inherits
        # the mask. One that comes meanwhile is noted when the mask is taken off.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGHUP})
        resource_tracker.ensure_running()
        unheard = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        noted = [one for one in STOPPING if one is not signal.SIGHUP or not unheard]
        before = {one: signal.signal(one, self._note) for one in noted}
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._at = signal.Signals(number).name, time.monotonic()
        elif number != signal.SIGHUP and time.monotonic() - self._at > 0.1:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Put the handlers of the signals that stop a run back, whatever the block sets in their place."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.getsignal(one) for one in STOPPING}
    try:
        yield
    finally:
        for one, handler in before.items():
            if signal.getsignal(one) is not handler and handler is not None:
                signal.signal(one, handler)


@contextmanager
def time_limit(seconds: float, message: str) -> Iterator[None]:
    """Raise EnvironmentFault where the block takes longer, in the middle of whatever Python can interrupt.

    Only the main thread can be interrupted. An earlier alarm that is already set stays.
    """
    running = signal.getitimer(signal.ITIMER_REAL)[0]
    busy = 0 < running < seconds or threading.current_thread() is not threading.main_thread()
    if busy or math.isinf(seconds):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise EnvironmentFault(message)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, min(seconds, 1e8))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, running)
        signal.signal(signal.SIGALRM, before)
