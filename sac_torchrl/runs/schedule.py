"""Schedules: what is due at a number of frames, and the end of a run before its length."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from sac_torchrl.errors import ConfigError
from sac_torchrl.fields import check, field


@dataclass
class StopConfig:
    """What ends a run before total_frames, at an evaluation; the run saves and ends normally."""

    at_return: float | None = field(None, "mean return of an evaluation that ends the run; null: none")
    patience: int | None = field(None, "evaluations without a better mean return that end the run; null: none", least=1)

    def __post_init__(self) -> None:
        check(self, "stop")

    def build(self, means: Iterable[float]) -> "Stopping":
        """Begin after evaluations with these mean returns, those of a resumed run."""
        stopping = Stopping(self.at_return, self.patience)
        for mean in means:
            stopping.evaluated(mean)
        return stopping


class Stopping:
    """Says after every evaluation whether the run ends there; `reason` is empty where it does not."""

    def __init__(self, at_return: float | None, patience: int | None) -> None:
        self.reason = ""
        self._at_return = at_return
        self._patience = patience
        self._best, self._since = -math.inf, 0

    def evaluated(self, mean: float) -> None:
        """Take note of the mean return of an evaluation."""
        self._since = 0 if mean > self._best else self._since + 1
        self._best = max(mean, self._best)
        self.reason = ""
        if self._at_return is not None and mean >= self._at_return:
            self.reason = f"the mean return {mean:.6g} is at stop.at_return={self._at_return:g}"
        elif self._patience is not None and self._since >= self._patience:
            self.reason = f"{self._since} evaluations were no better than {self._best:.6g}, stop.patience"


class Every:
    """True once for each multiple of `period` frames that is reached or passed; never where `period` is 0."""

    def __init__(self, period: int, *, frames: int = 0) -> None:
        if period < 0:
            raise ConfigError(f"a period of {period} frames: give 0 for never, or a positive number.")
        self._period = period
        self._frames = frames

    def __call__(self, frames: int) -> bool:
        """Whether a multiple lies after the frames of the last call and up to `frames`."""
        last, self._frames = self._frames, frames
        return self._period > 0 and frames // self._period > last // self._period


class ReplayRatio:
    """How many updates are due so that updates = floor(ratio x (frames - after)), at every moment.

    `ratio` counts updates per frame over all environments, so it means the same for 1 and for 4096 of them;
    nothing is due for the first `after` frames, nor made up for later. With an `every` above 1 updates come in
    bursts: the formula holds at the multiples of `every` frames, and nothing is due between them.
    """

    def __init__(self, ratio: float, *, after: int, every: int = 1, frames: int = 0) -> None:
        if not 0 < ratio < float("inf"):
            raise ConfigError(f"replay_ratio={ratio}: give a positive number of updates per frame.")
        if every < 1:
            raise ConfigError(f"update_every={every}: give 1 or more frames.")
        # A fraction, so that 0.1 is a tenth: no update is lost to rounding in a run of any length.
        small = ratio < 1
        whole = Fraction(1 / ratio if small else ratio).limit_denominator(1_000_000)
        self._ratio = 1 / whole if small else whole
        self._after = after
        self._every = every
        self._frames = frames

    def due(self, frames: int) -> int:
        """Count `frames` more frames and return the updates they call for."""
        before = self._total()
        self._frames += frames
        return self._total() - before

    def _total(self) -> int:
        frames = self._frames - self._frames % self._every
        return int(self._ratio * max(0, frames - self._after))


def groups(count: int, most: int) -> list[int]:
    """Sizes of at most `most` that add up to `count`, the last one smaller if need be."""
    whole, rest = divmod(count, most)
    return [most] * whole + [rest] * (rest > 0)
