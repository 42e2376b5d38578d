"""Temperature bounds, a schedule of the entropy target, and a warning of divergence."""

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor

logger = logging.getLogger("sac_torchrl")


class Temperature:
    """A temperature that only its optimizer changes."""

    def step(self, updates: int) -> None:
        """Follow the optimizer, after `updates` updates in all; waits for no device."""

    def watch(self, metrics: Mapping[str, float]) -> None:
        """Inspect `alpha`, `entropy` and, where it is, `entropy_target` (in nats) of an update that is logged."""


class BoundedTemperature(Temperature):
    """A learned temperature within bounds, with a linear schedule of the entropy target of discrete actions.

    After each update `log_alpha`, `()`, is clamped so that alpha lies within `bounds`, and `target_entropy`, `()`, is
    interpolated linearly from the first of `targets` (in nats) to the second over `over` updates.

    It warns, once, when the entropy cannot reach its target: where alpha rests at a bound and the entropy is more
    than 0.02 nats on the wrong side, or where alpha has grown tenfold and the entropy has not come nearer to its
    target by a tenth of what was missing.
    """

    tolerance = 0.02

    def __init__(
        self,
        log_alpha: Tensor,
        target_entropy: Tensor,
        *,
        bounds: tuple[float, float],
        targets: tuple[float, float],
        over: int,
    ) -> None:
        self._log_alpha = log_alpha
        self._target_entropy = target_entropy
        self._bounds = bounds
        self._log_bounds = tuple(math.log(bound) if bound else -math.inf for bound in bounds)
        self._targets = targets
        self._over = over
        self._since: tuple[float, float] | None = None
        self._warned = False

    @torch.no_grad()
    def step(self, updates: int) -> None:
        """Clamp the temperature, and set the entropy target of the next update."""
        self._log_alpha.clamp_(*self._log_bounds)
        self._target_entropy.fill_(self.target(updates))

    def target(self, updates: int) -> float:
        """The entropy target after so many updates, in nats."""
        first, last = self._targets
        return last if updates >= self._over else first + (last - first) * updates / self._over

    def watch(self, metrics: Mapping[str, float]) -> None:
        """Warn, once, when the entropy cannot reach its target."""
        alpha, entropy = metrics["alpha"], metrics["entropy"]
        target = metrics.get("entropy_target", float(self._target_entropy))
        missing = target - entropy
        low, high = self._bounds
        if missing > self.tolerance and alpha >= 0.999 * high:
            self._warn(f"alpha is at variant.max_alpha={high:g} and the entropy at {entropy:.3g}", target)
        elif missing < -self.tolerance and alpha <= 1.001 * low:
            self._warn(f"alpha is at variant.min_alpha={low:g} and the entropy at {entropy:.3g}", target)
        if missing <= self.tolerance:
            self._since = None
        elif self._since is None or missing < 0.9 * self._since[1]:
            self._since = alpha, missing
        elif alpha > 10 * self._since[0]:
            grew = f"alpha grew from {self._since[0]:.3g} to {alpha:.3g}"
            self._warn(f"{grew} and the entropy stays at {entropy:.3g}", target)

    def _warn(self, what: str, target: float) -> None:
        if not self._warned:
            logger.warning(
                "the policy's entropy cannot reach its target: %s, for a target of %.3g nats. Rewards drown in the "
                "entropy bonus as alpha grows: lower variant.target_entropy_ratio, or set variant.max_alpha.",
                what,
                target,
            )
        self._warned = True
