"""Batched simulators that reset their environments by themselves: the interface of Isaac Lab and MJLab."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from sac_torchrl.envs.actions import adapt_action, bounded
from sac_torchrl.errors import ConfigError, EnvironmentFault, short

log = logging.getLogger(__name__)

# TorchRL's IsaacLabWrapper marks every final observation as unknown, also where the simulator gives it, and needs an
# installed Isaac Lab: MJLab has the same interface.


def resets_itself(made: Any) -> bool:
    """Whether `made` steps `num_envs` environments of tensors at once, as Isaac Lab, MJLab and RSL-RL declare it."""
    if isinstance(made, EnvBase):  # a SerialEnv that was not started yet fails in `hasattr`
        return False
    inner = getattr(made, "unwrapped", made)
    return hasattr(inner, "num_envs") and hasattr(inner, "device")


class AutoresetEnv(EnvBase):
    """The `num_envs` environments of a simulator as one environment of TorchRL, batch size `(num_envs,)`.

    Groups of observations (`policy`, `critic`) are its leaves. A step returns observations, rewards, terminations,
    time-outs and extras, as in Isaac Lab and MJLab, or observations, rewards, ends and extras with `time_outs`, as in
    RSL-RL, all of length `num_envs`. What an episode ended with is `extras["final_obs"]`, or what the step returned
    where `cfg.auto_reset` is false and `reset(env_ids=...)` starts the next one. Without either, `next` repeats the
    observation that the step began with, and `unknown` marks the truncated steps: nothing can bootstrap from them.
    `bounds` replace the bounds of actions where there are none. Raises ConfigError for other spaces.
    """

    unknown: Tensor | None = None
    """Bool `(num_envs,)`: the environments that the last step truncated without a final observation; None: none."""

    def __init__(self, simulator: Any, id: str, *, bounds: tuple[float, float] | None, keep_open: bool) -> None:
        inner = getattr(simulator, "unwrapped", simulator)
        self._count, self._id, self._keep_open = int(inner.num_envs), id, keep_open
        super().__init__(device=torch.device(inner.device), batch_size=torch.Size([self._count]))
        self._simulator = simulator
        self._seed: int | None = None
        self._manual = getattr(getattr(inner, "cfg", None), "auto_reset", True) is False
        self._seen = self._groups(simulator.reset()[0])
        self._fresh, self._warned = True, False
        self.observation_spec = Composite(
            {
                key: Unbounded(value.shape, dtype=value.dtype, device=self.device)
                for key, value in self._seen.items(True, True)
            },
            shape=self.batch_size,
        )
        self.action_space = _actions(inner, id)
        adapt_action(self.action_space, id, bounds)
        space = self.action_space if bounds is None else bounded(self.action_space, id, bounds)
        low, high = (torch.as_tensor(bound).expand(self._count, *space.shape) for bound in (space.low, space.high))
        self.action_spec = Bounded(low, high, dtype=torch.float32, device=self.device)
        column = torch.Size([self._count, 1])
        self.reward_spec = Unbounded(column, device=self.device)
        flag = Binary(1, shape=column, dtype=torch.bool, device=self.device)
        self.done_spec = Composite(  # type: ignore[misc]  # TorchRL's metaclass hides its setter
            done=flag, terminated=flag.clone(), truncated=flag.clone(), shape=self.batch_size
        )

    def _reset(self, tensordict: TensorDictBase | None = None, **options: Any) -> TensorDictBase:
        if tensordict is None or "_reset" not in tensordict:
            if not self._fresh or self._seed is not None:
                self._seen, self._seed = self._groups(self._start()), None
        elif self._manual:
            ended = tensordict["_reset"].reshape(-1).nonzero().squeeze(-1)
            self._seen = self._groups(self._simulator.reset(env_ids=ended)[0])
        self._fresh = False
        return self._seen.clone()

    def _start(self) -> Any:
        if self._seed is None or not hasattr(self._simulator, "get_observations"):
            return self._simulator.reset(**({} if self._seed is None else {"seed": self._seed}))[0]
        if hasattr(self._simulator, "seed"):  # RSL-RL's reset takes none
            self._simulator.seed(self._seed)
        return self._simulator.reset()[0]

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        returned = self._simulator.step(tensordict["action"])
        observations, reward, *ends, extras = returned
        if len(ends) == 2:
            terminated, truncated = (self._flags(end) for end in ends)
        else:
            done = self._flags(ends[0])
            truncated = self._flags(extras["time_outs"]) & done if "time_outs" in extras else torch.zeros_like(done)
            terminated = done & ~truncated
        truncated = truncated & ~terminated
        done = terminated | truncated
        before, self._seen = self._seen, self._groups(observations)
        following, self.unknown = self._seen, None
        if not self._manual and bool(done.any()):
            final = extras.get("final_obs")
            following = torch.where(done, before if final is None else self._groups(final), self._seen)
            if final is None and bool(truncated.any()):
                self.unknown = truncated
                self._say_unknown()
        flags = {"done": done, "terminated": terminated, "truncated": truncated}
        columns = {name: flag.unsqueeze(-1) for name, flag in flags.items()}
        return following.copy().update(
            {**columns, "reward": reward.detach().clone().reshape(-1, 1).to(self.device, torch.float32)}
        )

    def _groups(self, observations: Any) -> TensorDict:
        """What all environments observe, copied, for simulators write the next into the same tensors."""
        groups = observations if isinstance(observations, (Mapping, TensorDictBase)) else {"observation": observations}
        try:
            return TensorDict(dict(groups), batch_size=self.batch_size).to(self.device).detach().clone()
        except (RuntimeError, ValueError, TypeError) as error:
            raise EnvironmentFault(
                f"env.id={self._id} returned observations that are not tensors of {self._count} environments: "
                f"{short(error)}."
            ) from error

    def _flags(self, flags: Tensor) -> Tensor:
        return flags.detach().clone().reshape(-1).to(self.device, torch.bool)

    def _say_unknown(self) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "env.id=%s: its simulator resets truncated environments without a final observation: those steps are "
                "counted and not stored. Isaac Lab gives it where compute_final_obs of its cfg is True, MJLab where "
                "auto_reset of its cfg is False.",
                self._id,
            )

    def _set_seed(self, seed: int | None) -> None:
        self._seed = seed

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close the simulator, unless it is the only one that this process can open."""
        if not self._keep_open:
            self._simulator.close()
        super().close(raise_if_closed=raise_if_closed)


def _actions(inner: Any, id: str) -> Box:
    """The space of one environment's actions, which Isaac Lab and MJLab leave without bounds."""
    space: Any = getattr(inner, "single_action_space", None)
    if space is None and hasattr(inner, "num_actions"):  # RSL-RL
        space = Box(-np.inf, np.inf, (int(inner.num_actions),), np.float32)
    if not all(hasattr(space, name) for name in ("low", "high", "shape")):
        raise ConfigError(f"env.id={id}: its actions are {short(space)}, not a Box: give continuous ones.")
    low, high = (np.broadcast_to(np.asarray(bound, np.float32), space.shape) for bound in (space.low, space.high))
    return Box(low, high, dtype=np.float32)
