"""Tensor environments: all environments are one batch on one device, and their observations never leave it."""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, Composite, TensorSpec, Unbounded
from torchrl.envs import EnvBase


class TensorEnv(EnvBase):
    """`count` environments with observations `(count, n)`, that end by themselves or are truncated after `limit` steps.

    The state is the simulator's own. `begin` and `advance` make no transfer to the host, whatever ends when. Where
    `in_place` they do nothing but operate on tensors and keep their state where it is: a CUDA graph can hold them.
    """

    in_place = False

    def __init__(self, count: int, device: torch.device, *, observed: int, action_spec: TensorSpec, limit: int) -> None:
        super().__init__(device=device, batch_size=torch.Size([count]))
        self.limit = limit
        shape = self.batch_size
        self.observation_spec = Composite(
            observation=Unbounded(shape=torch.Size([*shape, observed]), device=device), shape=shape, device=device
        )
        self.action_spec = action_spec.to(device).expand(*shape, *action_spec.shape)
        self.reward_spec = Unbounded(shape=torch.Size([*shape, 1]), device=device)
        flag = Binary(1, shape=torch.Size([*shape, 1]), dtype=torch.bool, device=device)
        self.done_spec = Composite(  # type: ignore[misc]  # TorchRL's metaclass hides its setter
            done=flag, terminated=flag.clone(), truncated=flag.clone(), shape=shape, device=device
        )
        self.elapsed = torch.zeros(count, dtype=torch.int64, device=device)
        self.generator = torch.Generator(device=device)

    @abstractmethod
    def begin(self, mask: Tensor) -> Tensor:
        """Start an episode in the environments of `mask` `(count,)`; return what all of them observe."""

    @abstractmethod
    def advance(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take an action in every environment: observations `(count, n)`, rewards and terminations `(count,)`."""

    def take(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Step: observations `(count, n)`, and rewards, terminations and truncations `(count, 1)`."""
        observation, reward, terminated = self.advance(action)
        self.elapsed += 1
        return observation, reward.unsqueeze(-1), terminated.unsqueeze(-1), (self.elapsed >= self.limit).unsqueeze(-1)

    def restart(self, ended: Tensor) -> Tensor:
        """Start an episode where `ended`, of `count` elements; return what all environments observe, `(count, n)`."""
        mask = ended.reshape(-1)
        self.elapsed.masked_fill_(mask, 0)
        return self.begin(mask)

    def _reset(self, tensordict: TensorDictBase | None = None, **options: object) -> TensorDict:
        everywhere = torch.ones_like(self.elapsed, dtype=torch.bool)
        mask = everywhere if tensordict is None else tensordict.get("_reset", everywhere)
        return TensorDict({"observation": self.restart(mask)}, batch_size=self.batch_size, device=self.device)

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        observation, reward, terminated, truncated = self.take(tensordict["action"])
        return TensorDict(
            {
                "observation": observation,
                "reward": reward,
                "terminated": terminated,
                "truncated": truncated,
                "done": terminated | truncated,
            },
            batch_size=self.batch_size,
            device=self.device,
        )

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self.generator.manual_seed(seed)

    def random_action(self) -> Tensor:
        """Draw actions uniformly from torch's global generator: the numbers of the spec's `rand`, which waits."""
        spec = self.action_spec
        if isinstance(spec, Categorical):
            return spec.rand()
        return torch.rand(spec.shape, device=self.device) * 2.0 - 1.0


class Physics(TensorEnv):
    """Equations of motion in PyTorch: the state is `(count, n)` and starts uniformly between `low` and `high`."""

    in_place = True

    def __init__(
        self,
        count: int,
        device: torch.device,
        *,
        low: Sequence[float],
        high: Sequence[float],
        observed: int,
        action_spec: TensorSpec,
        limit: int,
    ) -> None:
        super().__init__(count, device, observed=observed, action_spec=action_spec, limit=limit)
        # In a tuple: of an environment's own tensors checkpoints hold the state.
        self._bounds = torch.tensor(low, device=device), torch.tensor(high, device=device)
        self._state = torch.zeros(count, len(low), device=device)

    @abstractmethod
    def move(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step: the next state `(count, n)`, rewards and terminations `(count,)`."""

    def observe(self, state: Tensor) -> Tensor:
        """What is seen of the state, `(count, observed)`."""
        return state.clone()

    def begin(self, mask: Tensor) -> Tensor:
        """Draw new states where an episode starts."""
        share = torch.rand(self._state.shape, generator=self.generator, device=self.device)
        self._state.copy_(torch.where(mask.unsqueeze(-1), self.start(share), self._state))
        return self.observe(self._state)

    def start(self, share: Tensor) -> Tensor:
        """The states `(count, n)` that belong to numbers from 0 to 1."""
        low, high = self._bounds
        return low + (high - low) * share

    def advance(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Move, and observe."""
        state, reward, terminated = self.move(self._state, action)
        self._state.copy_(state)
        return self.observe(self._state), reward, terminated


def wrapped(angle: Tensor) -> Tensor:
    """The same angle in [-pi, pi)."""
    return (angle + math.pi) % (2 * math.pi) - math.pi


class Pendulum(Physics):
    """Gymnasium's Pendulum-v1: it starts at an angle in [-pi, pi] and a speed in [-1, 1], and never terminates.

    The operations are those of TorchRL's PendulumEnv, which has neither a time limit nor a batch.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        torque = Bounded(-1.0, 1.0, shape=torch.Size([1]), dtype=torch.float32)
        bound = (math.pi, 1.0)
        super().__init__(
            count, device, low=[-at for at in bound], high=bound, observed=3, action_spec=torque, limit=200
        )

    def start(self, share: Tensor) -> Tensor:
        """As for every Physics, symmetric to the last bit."""
        return (2 * share - 1) * self._bounds[1]

    def move(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Apply a torque of twice the action, in N m, for 50 ms."""
        angle, speed = state.unbind(-1)
        torque = (2.0 * action.clamp(-1.0, 1.0)).squeeze(-1)
        cost = wrapped(angle) ** 2 + 0.1 * speed**2 + 0.001 * (torque**2)
        speed = (speed + (15.0 * angle.sin() + 3.0 * torque) * 0.05).clamp(-8.0, 8.0)
        angle = wrapped(angle + speed * 0.05)
        return torch.stack([angle, speed], -1), -cost, torch.zeros_like(cost, dtype=torch.bool)

    def observe(self, state: Tensor) -> Tensor:
        """Cosine and sine of the angle, and the speed."""
        angle, speed = state.unbind(-1)
        return torch.stack([angle.cos(), angle.sin(), speed], -1)


class CartPole(Physics):
    """Gymnasium's CartPole-v1 (Barto, Sutton and Anderson 1983): it starts with four numbers in [-0.05, 0.05]."""

    def __init__(self, count: int, device: torch.device) -> None:
        bound = [0.05] * 4
        super().__init__(count, device, low=[-0.05] * 4, high=bound, observed=4, action_spec=Categorical(2), limit=500)

    def start(self, share: Tensor) -> Tensor:
        """As for every Physics, symmetric to the last bit."""
        return (2 * share - 1) * self._bounds[1]

    def move(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Push the cart with 10 N to the left (0) or to the right (1), for 20 ms (Euler's method)."""
        place, speed, angle, turning = state.unbind(-1)
        gravity, total_mass, pole_mass, half_length, seconds = 9.8, 1.1, 0.1, 0.5, 0.02
        cosine, sine = angle.cos(), angle.sin()
        push = (20.0 * action - 10.0 + pole_mass * half_length * turning.square() * sine) / total_mass
        turning_faster = (gravity * sine - cosine * push) / (
            half_length * (4.0 / 3.0 - pole_mass * cosine.square() / total_mass)
        )
        faster = push - pole_mass * half_length * turning_faster * cosine / total_mass
        state = state + seconds * torch.stack([speed, faster, turning, turning_faster], -1)
        fallen = (state[:, 0].abs() > 2.4) | (state[:, 2].abs() > 12 * torch.pi / 180)
        return state, torch.ones_like(place), fallen
