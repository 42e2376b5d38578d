"""Gymnasium's other classic control tasks as tensors, by its equations, step for step, and the names of all of them."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchrl.data import Bounded, Categorical, TensorSpec

from sac_torchrl.envs.quadrotor import Quadrotor
from sac_torchrl.envs.tensors import CartPole, Pendulum, Physics, TensorEnv, wrapped


class MountainCar(Physics):
    """Gymnasium's MountainCar-v0 (Moore 1990): a car too weak for its hill, with three actions."""

    power, goal, longest = 0.001, 0.5, 200

    def __init__(self, count: int, device: torch.device) -> None:
        low, high = (-0.6, 0.0), (-0.4, 0.0)
        spec = self.actions()
        super().__init__(count, device, low=low, high=high, observed=2, action_spec=spec, limit=self.longest)

    def actions(self) -> TensorSpec:
        """Left, nothing, right."""
        return Categorical(3)

    def push(self, action: Tensor) -> Tensor:
        """The force `(count,)`, from -1 to 1."""
        return action - 1.0

    def move(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step of the discrete equations."""
        place, speed = state.unbind(-1)
        push = self.push(action)
        speed = (speed + push * self.power - 0.0025 * (3.0 * place).cos()).clamp(-0.07, 0.07)
        place = (place + speed).clamp(-1.2, 0.6)
        speed = torch.where((place <= -1.2) & (speed < 0), 0.0, speed)
        reached = (place >= self.goal) & (speed >= 0)
        return torch.stack([place, speed], -1), self.pay(push, reached), reached

    def pay(self, push: Tensor, reached: Tensor) -> Tensor:
        """A step costs 1."""
        return torch.full_like(push, -1.0)


class MountainCarContinuous(MountainCar):
    """Gymnasium's MountainCarContinuous-v0: a force from -1 to 1 with a cost, and a reward of 100 at the goal."""

    power, goal, longest = 0.0015, 0.45, 999

    def actions(self) -> TensorSpec:
        """The action as the force."""
        return Bounded(-1.0, 1.0, shape=torch.Size([1]), dtype=torch.float32)

    def push(self, action: Tensor) -> Tensor:
        """The action within its bounds."""
        return action.squeeze(-1).clamp(-1.0, 1.0)

    def pay(self, push: Tensor, reached: Tensor) -> Tensor:
        """Minus a tenth of the squared force, and the reward at the goal."""
        return 100.0 * reached - 0.1 * push.square()


class Acrobot(Physics):
    """Gymnasium's Acrobot-v1 (Sutton and Barto 2018, section 11.3): two links and a torque of -1, 0 or 1 N m."""

    def __init__(self, count: int, device: torch.device) -> None:
        low, high = [-0.1] * 4, [0.1] * 4
        super().__init__(count, device, low=low, high=high, observed=6, action_spec=Categorical(3), limit=500)

    def observe(self, state: Tensor) -> Tensor:
        """Cosine and sine of both angles, and both speeds."""
        first, second, *speeds = state.unbind(-1)
        return torch.stack([first.cos(), first.sin(), second.cos(), second.sin(), *speeds], -1)

    def move(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """0.2 s, by one step of Runge and Kutta's method of order 4."""
        torque, step = action - 1.0, 0.2
        k1 = self._slope(state, torque)
        k2 = self._slope(state + step / 2 * k1, torque)
        k3 = self._slope(state + step / 2 * k2, torque)
        k4 = self._slope(state + step * k3, torque)
        first, second, speed, other = (state + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)).unbind(-1)
        first, second = wrapped(first), wrapped(second)
        speed = speed.clamp(-4 * math.pi, 4 * math.pi)
        other = other.clamp(-9 * math.pi, 9 * math.pi)
        above = -first.cos() - (second + first).cos() > 1.0
        return torch.stack([first, second, speed, other], -1), above.to(first.dtype) - 1.0, above

    def _slope(self, state: Tensor, torque: Tensor) -> Tensor:
        """The state's derivative `(count, 4)`: the book's equations, lengths and masses 1, centers at 1/2."""
        first, second, speed, other = state.unbind(-1)
        gravity, sine, cosine = 9.8, second.sin(), second.cos()
        d1 = 0.25 + (1.25 + cosine) + 2.0
        d2 = (0.25 + 0.5 * cosine) + 1.0
        phi2 = 0.5 * gravity * (first + second - math.pi / 2).cos()
        phi1 = -0.5 * other.square() * sine - other * speed * sine + 1.5 * gravity * (first - math.pi / 2).cos() + phi2
        pull = torque + d2 / d1 * phi1 - 0.5 * speed.square() * sine - phi2
        second_faster = pull / (0.25 + 1.0 - d2.square() / d1)
        first_faster = -(d2 * second_faster + phi1) / d1
        return torch.stack([speed, other, first_faster, second_faster], -1)


TORCH: dict[str, Callable[[int, torch.device], TensorEnv]] = {
    "pendulum": Pendulum,
    "cartpole": CartPole,
    "acrobot": Acrobot,
    "mountain_car": MountainCar,
    "mountain_car_continuous": MountainCarContinuous,
    "quadrotor": Quadrotor,
}
