"""A planar quadrotor as tensors, which Gymnasium does not have."""

import math

import torch
from torch import Tensor
from torchrl.data import Bounded

from sac_torchrl.envs.tensors import Physics, wrapped


class Quadrotor(Physics):
    """A planar quadrotor that hovers at the origin: R. Tedrake, Underactuated Robotics, 2023, section 3.3.1.

    m x'' = -(u1 + u2) sin(angle), m y'' = (u1 + u2) cos(angle) - m g and I angle'' = r (u1 - u2), in SI units, with
    the mass, arm and moment of inertia of the book's code, which are from Bouadi, Bouchoucha and Tadjine 2007. An
    action (2,) in [-1, 1] is the thrust of each rotor, from none to twice that of hovering. An episode ends after 5
    s, or beyond 3 m in x or y. The reward is ours: exp(-x^2 - y^2) (1 + cos(angle)) / 2, at most 1 a step, which is
    best kept for the whole episode.
    """

    mass, arm, inertia, gravity = 0.486, 0.25, 0.00383, 9.81
    seconds, reach = 0.02, 3.0

    def __init__(self, count: int, device: torch.device) -> None:
        thrusts = Bounded(-1.0, 1.0, shape=torch.Size([2]), dtype=torch.float32)
        high = [1.0, 1.0, math.pi / 4, 0.5, 0.5, 0.5]
        low = [-bound for bound in high]
        super().__init__(count, device, low=low, high=high, observed=7, action_spec=thrusts, limit=250)

    def observe(self, state: Tensor) -> Tensor:
        """Place, cosine and sine of the angle, and all speeds."""
        x, y, angle, *speeds = state.unbind(-1)
        return torch.stack([x, y, angle.cos(), angle.sin(), *speeds], -1)

    def move(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """20 ms, by one step of the classical Runge-Kutta method of order 4."""
        thrusts, step = self.mass * self.gravity / 2 * (1.0 + action.clamp(-1.0, 1.0)), self.seconds
        k1 = self._slope(state, thrusts)
        k2 = self._slope(state + step / 2 * k1, thrusts)
        k3 = self._slope(state + step / 2 * k2, thrusts)
        k4 = self._slope(state + step * k3, thrusts)
        x, y, angle, *speeds = (state + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)).unbind(-1)
        reward = (-x.square() - y.square()).exp() * (1.0 + angle.cos()) / 2
        lost = (x.abs() > self.reach) | (y.abs() > self.reach)
        return torch.stack([x, y, wrapped(angle), *speeds], -1), reward, lost

    def _slope(self, state: Tensor, thrusts: Tensor) -> Tensor:
        """The state's derivative `(count, 6)`."""
        _, _, angle, *speeds = state.unbind(-1)
        first, second = thrusts.unbind(-1)
        push = (first + second) / self.mass
        turning = self.arm / self.inertia * (first - second)
        return torch.stack([*speeds, -push * angle.sin(), push * angle.cos() - self.gravity, turning], -1)
