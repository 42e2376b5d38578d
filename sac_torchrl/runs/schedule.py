"""Schedules: what is due at a number of frames."""

from fractions import Fraction

from sac_torchrl.errors import ConfigError


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
