"""What ends a run from inside its loop: the keys `stop.` and functions of the user."""

import logging
from collections.abc import Callable

from sac_torchrl.errors import SacError, short
from sac_torchrl.runs.evaluation import Evaluation
from sac_torchrl.runs.schedule import Stopping

log = logging.getLogger(__name__)

OnStep = Callable[[int, dict[str, float]], object]
OnEvaluation = Callable[[int, Evaluation], object]


class Stop(Exception):
    """Raised by a callback: the run evaluates, saves and ends normally."""


class Callbacks:
    """Calls `on_step(frames, metrics)` and `on_evaluation(frames, evaluation)`, where given.

    A callback that raises is logged once, with its traceback in run.log, and not called again; the run continues.
    `stopped` says whether one raised Stop, or `stopping` has a reason to end the run.
    """

    def __init__(
        self, on_step: OnStep | None, on_evaluation: OnEvaluation | None, stopping: Stopping | None = None
    ) -> None:
        self._stopping = stopping or Stopping(None, None)
        self.stopped = bool(self._stopping.reason)
        self._on_step = on_step
        self._on_evaluation = on_evaluation

    def step(self, frames: int, metrics: dict[str, float]) -> None:
        """Report an iteration of the loop; `metrics` is empty where none are due."""
        if self._on_step is not None and not self._call("on_step", self._on_step, frames, dict(metrics)):
            self._on_step = None

    def evaluation(self, frames: int, evaluation: Evaluation) -> None:
        """Report an evaluation."""
        self._stopping.evaluated(evaluation.mean)
        if self._stopping.reason:
            log.info("stopping at %d frames: %s", frames, self._stopping.reason)
            self.stopped = True
        if self._on_evaluation is not None and not self._call("on_evaluation", self._on_evaluation, frames, evaluation):
            self._on_evaluation = None

    def _call(self, name: str, callback: Callable[..., object], *arguments: object) -> bool:
        try:
            callback(*arguments)
        except Stop:
            self.stopped = True
        except SacError:
            raise
        except Exception as error:
            log.warning("%s raised %s and is not called again: the run continues.", name, short(repr(error)))
            log.debug("%s raised", name, exc_info=True)
            return False
        return True
