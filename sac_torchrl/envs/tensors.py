"""Simulators that are tensors: all environments are one batch on one device, and their observations never leave it."""

from abc import abstractmethod
from collections.abc import Callable

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, Composite, TensorSpec, Unbounded
from torchrl.envs import EnvBase, PendulumEnv


class TensorEnv(EnvBase):
    """`count` environments with observations `(count, n)`, that end by themselves or are truncated after `limit` steps.

    The state is the simulator's own. `begin` and `advance` make no transfer to the host, whatever ends when.
    """

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

    def _reset(self, tensordict: TensorDictBase | None = None, **options: object) -> TensorDict:
        mask = torch.ones_like(self.elapsed, dtype=torch.bool)
        if tensordict is not None and "_reset" in tensordict:
            mask = tensordict["_reset"].reshape(-1)
        self.elapsed.masked_fill_(mask, 0)
        return TensorDict({"observation": self.begin(mask)}, batch_size=self.batch_size, device=self.device)

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        observation, reward, terminated = self.advance(tensordict["action"])
        self.elapsed += 1
        truncated = self.elapsed >= self.limit
        return TensorDict(
            {
                "observation": observation,
                "reward": reward.unsqueeze(-1),
                "terminated": terminated.unsqueeze(-1),
                "truncated": truncated.unsqueeze(-1),
                "done": (terminated | truncated).unsqueeze(-1),
            },
            batch_size=self.batch_size,
            device=self.device,
        )

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self.generator.manual_seed(seed)

    def _uniform(self, *bounds: float) -> Tensor:
        """Numbers `(count, len(bounds))`, each column between minus and plus its bound."""
        high = torch.tensor(bounds, device=self.device)
        shape = (*self.batch_size, len(bounds))
        return (2 * torch.rand(shape, generator=self.generator, device=self.device) - 1) * high


class Pendulum(TensorEnv):
    """Gymnasium's Pendulum-v1, with the equations of TorchRL's PendulumEnv, which has no time limit or batch itself."""

    def __init__(self, count: int, device: torch.device) -> None:
        torque = Bounded(-1.0, 1.0, shape=torch.Size([1]), dtype=torch.float32)
        super().__init__(count, device, observed=3, action_spec=torque, limit=200)
        self._params = PendulumEnv.gen_params(batch_size=[count], device=device)["params"]
        self._state = torch.zeros(count, 2, device=device)

    def begin(self, mask: Tensor) -> Tensor:
        """Start at an angle in [-pi, pi] and a speed in [-1, 1]."""
        fresh = self._uniform(PendulumEnv.DEFAULT_X, PendulumEnv.DEFAULT_Y)
        self._state = torch.where(mask.unsqueeze(-1), fresh, self._state)
        return self._observed()

    def advance(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Apply a torque of twice the action."""
        angle, speed = self._state.unbind(-1)
        before = TensorDict(
            {"th": angle, "thdot": speed, "params": self._params, "action": 2.0 * action.clamp(-1.0, 1.0)},
            batch_size=self.batch_size,
        )
        after = PendulumEnv._step(before)  # type: ignore[no-untyped-call]
        self._state = torch.stack([after["th"], after["thdot"]], -1)
        return self._observed(), after["reward"].squeeze(-1), torch.zeros_like(self.elapsed, dtype=torch.bool)

    def _observed(self) -> Tensor:
        angle, speed = self._state.unbind(-1)
        return torch.stack([angle.cos(), angle.sin(), speed], -1)


class CartPole(TensorEnv):
    """Gymnasium's CartPole-v1 (Barto, Sutton and Anderson 1983), which TorchRL has no tensors for."""

    def __init__(self, count: int, device: torch.device) -> None:
        super().__init__(count, device, observed=4, action_spec=Categorical(2), limit=500)
        self._state = torch.zeros(count, 4, device=device)

    def begin(self, mask: Tensor) -> Tensor:
        """Start with all four numbers in [-0.05, 0.05]."""
        self._state = torch.where(mask.unsqueeze(-1), self._uniform(0.05, 0.05, 0.05, 0.05), self._state)
        return self._state

    def advance(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Push the cart with 10 N to the left (0) or to the right (1), for 20 ms (Euler's method)."""
        place, speed, angle, turning = self._state.unbind(-1)
        gravity, total_mass, pole_mass, half_length, seconds = 9.8, 1.1, 0.1, 0.5, 0.02
        cosine, sine = angle.cos(), angle.sin()
        push = (20.0 * action - 10.0 + pole_mass * half_length * turning.square() * sine) / total_mass
        turning_faster = (gravity * sine - cosine * push) / (
            half_length * (4.0 / 3.0 - pole_mass * cosine.square() / total_mass)
        )
        faster = push - pole_mass * half_length * turning_faster * cosine / total_mass
        self._state = self._state + seconds * torch.stack([speed, faster, turning, turning_faster], -1)
        fallen = (self._state[:, 0].abs() > 2.4) | (self._state[:, 2].abs() > 12 * torch.pi / 180)
        return self._state, torch.ones_like(place), fallen


TORCH: dict[str, Callable[[int, torch.device], TensorEnv]] = {"pendulum": Pendulum, "cartpole": CartPole}
