"""The adapter of TorchRL's environments: observations are float32 vectors or indices, actions in [-1, 1] or indices."""

from typing import Any

import torch
from gymnasium.spaces import Box
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import (
    Binary,
    Bounded,
    Categorical,
    Composite,
    MultiCategorical,
    MultiOneHot,
    OneHot,
    TensorSpec,
    Unbounded,
)
from torchrl.envs import EnvBase
from torchrl.envs.utils import step_mdp

from sac_torchrl.envs.actions import SENSIBLE
from sac_torchrl.envs.autoreset import AutoresetEnv
from sac_torchrl.envs.masks import MaskSource
from sac_torchrl.envs.observations import PICTURE_SIDE
from sac_torchrl.envs.vector import draw_legal
from sac_torchrl.errors import ConfigError, short
from sac_torchrl.specs import MASK

# Counters of transforms, which are no observations.
_COUNTED = {"step_count", "is_init", "episode_reward", "traj_ids"}


class TorchRLEnv(EnvBase):
    """`env`, of batch size `(count,)`, with the agent's observations, actions and rewards.

    A leaf of numbers, of any dtype and shape, is a float32 vector, a discrete one stays as it is and a one-hot becomes
    its index. Of one leaf the key is `observation`; several are leaves below it by their names, joined by dots, without
    those that `ignore` names and those that TorchRL's transforms count in. Of discrete actions the key `action_mask`,
    as TorchRL's ActionMask has it, is the mask of legal ones. Raises ConfigError for other spaces.
    """

    def __init__(self, env: EnvBase, id: str, *, ignore: list[str], mask: MaskSource = MaskSource.auto) -> None:
        super().__init__(device=env.device, batch_size=env.batch_size)
        self._inner, self._id = env, id
        self._held: TensorDictBase | None = None
        if len(env.batch_size) != 1:
            raise ConfigError(f"env.id={id}: its batch size is {tuple(env.batch_size)}: give one of (count,).")
        keys = [*env.action_keys, *env.reward_keys]
        if len(keys) != 2 or not all(isinstance(key, str) for key in keys):
            raise ConfigError(f"env.id={id}: its actions and rewards are {keys}, of several agents: give one of each.")
        self._leaves = self._find(ignore)
        specs = {name: _observed(spec, id, name) for name, spec in self._leaves.values()}
        self._choices = self._mask_sizes(mask, id)
        if self._choices:
            specs[MASK] = Binary(sum(self._choices), dtype=torch.bool)
        observation = next(iter(specs.values())) if list(specs) == ["observation"] else Composite(specs)
        count = env.batch_size[0]
        self.observation_spec = Composite(observation=observation).expand((count,)).to(env.device)
        self._taken: TensorSpec = env.action_spec_unbatched
        self.native_spaces = None, _native(env, self._taken)
        action: Any = _chosen(self._taken, id)
        self.action_spec = action.expand(count, *action.shape).to(env.device)
        self.reward_spec = Unbounded(shape=torch.Size([count, 1]), device=env.device)
        flag = Binary(1, shape=torch.Size([count, 1]), dtype=torch.bool, device=env.device)
        self.done_spec = Composite(  # type: ignore[misc]  # TorchRL's metaclass hides its setter
            done=flag, terminated=flag.clone(), truncated=flag.clone(), shape=torch.Size([count]), device=env.device
        )

    @property
    def unknown(self) -> Tensor | None:
        """Bool `(count,)`: the environments truncated by the last step without a final observation; None: none."""
        return self._inner.unknown if isinstance(self._inner, AutoresetEnv) else None

    def _mask_sizes(self, source: MaskSource, id: str) -> list[int]:
        """How many values each of the masked actions has; none where there is no mask to use."""
        spec: Any = self._inner.action_spec_unbatched
        one = isinstance(spec, OneHot) or (isinstance(spec, Categorical) and not spec.shape)
        sizes = [int(spec.space.n)] if one else [int(n) for n in getattr(spec, "nvec", ())]
        place = next((leaf for name, leaf in self._leaves.values() if name == MASK), None)
        if place is None or not sizes or source is MaskSource.none:
            if source in (MaskSource.auto, MaskSource.none):
                return []
            raise ConfigError(
                f"env.mask={source.value}: env.id={id} observes no {MASK} of discrete actions: give auto."
            )
        if source not in (MaskSource.auto, MaskSource.observation) or place.shape != (sum(sizes),):
            raise ConfigError(
                f"env.mask={source.value}: the masks of env.id={id} are its observation {tuple(place.shape)}, and its "
                f"actions have {sum(sizes)} values: give env.mask=auto and a mask of as many, or env.mask=none."
            )
        return sizes

    def rand_action(self, tensordict: Any = None) -> Any:
        """Draw actions uniformly, from those that the mask in `tensordict` allows where there are masks."""
        if tensordict is None or not self._choices:
            return super().rand_action(tensordict)
        return draw_legal(tensordict, self._choices, self.action_spec.shape)

    def _find(self, ignore: list[str]) -> dict[Any, tuple[str, TensorSpec]]:
        found: dict[Any, tuple[str, TensorSpec]] = {}
        for key, spec in self._inner.observation_spec_unbatched.items(True, True):
            name = key if isinstance(key, str) else ".".join(key)
            if name.rpartition(".")[2] not in _COUNTED and name not in ignore:
                found[key] = (name, spec)
        names = [name for name, _ in found.values()]
        if not names:
            raise ConfigError(f"env.id={self._id} observes nothing, or env.ignore={ignore} leaves nothing.")
        return {key: ("observation", spec) for key, (_, spec) in found.items()} if len(names) == 1 else found

    def _reset(self, tensordict: TensorDictBase | None = None, **options: Any) -> TensorDictBase:
        if tensordict is not None and "_reset" in tensordict and self._held is not None:
            asked = self._held.copy().set("_reset", tensordict["_reset"].reshape(-1, 1))
            self._held = self._inner.reset(asked).exclude("_reset")
        else:
            self._held = self._inner.reset()
        return TensorDict(self._seen(self._held), batch_size=self.batch_size, device=self.device)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        assert self._held is not None
        stepped = self._inner.step(self._held.copy().set(self._inner.action_key, self._act(tensordict["action"])))
        following = stepped["next"]
        self._held = step_mdp(stepped)
        done = following["done"].reshape(-1, 1)
        terminated = following.get("terminated", done).reshape(-1, 1)
        reward = following[self._inner.reward_key]
        if reward.numel() != len(done):
            raise ConfigError(
                f"env.id={self._id}: its reward is of shape {tuple(reward.shape)}: weigh it in a transform."
            )
        ends = {"done": done, "terminated": terminated, "truncated": done & ~terminated}
        made = {**self._seen(following), "reward": reward.reshape(-1, 1).float(), **ends}
        return TensorDict(made, batch_size=self.batch_size, device=self.device)

    def _seen(self, tensordict: TensorDictBase) -> dict[str, Any]:
        leaves = {name: _observe(tensordict[key], spec) for key, (name, spec) in self._leaves.items()}
        if self._choices:
            leaves[MASK] = leaves[MASK].bool()
        return leaves if list(leaves) == ["observation"] else {"observation": leaves}

    def _act(self, action: Tensor) -> Tensor:
        spec = self._taken
        if isinstance(spec, OneHot):
            return torch.nn.functional.one_hot(action, spec.space.n).to(spec.dtype)
        if isinstance(spec, (Categorical, MultiCategorical)):
            return action.to(spec.dtype)
        bounds: Any = spec.space
        low, high = bounds.low.double().reshape(-1), bounds.high.double().reshape(-1)
        share = (action.double() + 1) / 2
        taken = (low * (1 - share) + high * share).reshape(-1, *spec.shape).to(spec.dtype)
        return torch.maximum(torch.minimum(taken, bounds.high), bounds.low)

    def _set_seed(self, seed: int | None) -> None:
        self._held = None
        if seed is not None:
            self._inner.set_seed(seed)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close the environment."""
        if not self._inner.is_closed:
            self._inner.close()
        super().close(raise_if_closed=raise_if_closed)


def _native(env: EnvBase, spec: TensorSpec) -> Box | None:
    """The space of the actions that the environment takes, as one vector; None for those of the agent."""
    if isinstance(env, AutoresetEnv):
        return env.action_space
    if not isinstance(spec, Bounded) or not spec.dtype.is_floating_point:
        return None
    bounds: Any = spec.space
    low, high = (bound.cpu().reshape(-1).numpy() for bound in (bounds.low, bounds.high))
    return Box(low, high, dtype=low.dtype.type)


def _observed(spec: TensorSpec, id: str, name: str) -> TensorSpec:
    if isinstance(spec, OneHot):
        return Categorical(spec.space.n, shape=spec.shape[:-1], dtype=torch.int64)
    if isinstance(spec, Categorical) and not spec.shape:
        return Categorical(spec.space.n, shape=spec.shape, dtype=torch.int64)
    if isinstance(spec, MultiCategorical):
        return MultiCategorical(spec.nvec, dtype=torch.int64)
    if spec.dtype in (torch.complex64, torch.complex128) or not isinstance(
        spec, (Bounded, Unbounded, Binary, Categorical)
    ):
        raise ConfigError(
            f"env.id={id}: `{name}` is {short(type(spec).__name__)}, neither numbers nor indices: "
            f"env.ignore=[{name}] leaves it out."
        )
    if spec.dtype == torch.uint8 and spec.ndim > 1 and sorted(spec.shape)[-2] >= PICTURE_SIDE:
        raise ConfigError(
            f"env.id={id}: `{name}` is an image of shape {tuple(spec.shape)}: env.ignore=[{name}] leaves it out."
        )
    return Unbounded(torch.Size([max(1, spec.shape.numel())]), dtype=torch.float32)


def _observe(value: Tensor, spec: TensorSpec) -> Tensor:
    if isinstance(spec, OneHot):
        return value.to(torch.uint8).argmax(-1)
    if isinstance(spec, MultiCategorical) or (isinstance(spec, Categorical) and not spec.shape):
        return value.to(torch.int64)
    return value.reshape(len(value), -1).float()


def _chosen(spec: TensorSpec, id: str) -> TensorSpec:
    if isinstance(spec, OneHot):
        return Categorical(spec.space.n, shape=torch.Size([]), dtype=torch.int64)
    if isinstance(spec, Categorical) and not spec.shape:
        return Categorical(spec.space.n, shape=torch.Size([]), dtype=torch.int64)
    if isinstance(spec, MultiCategorical):
        return MultiCategorical(spec.nvec, dtype=torch.int64)
    bounded = isinstance(spec, Bounded) and spec.dtype.is_floating_point and spec.shape.numel() > 0
    if not bounded or isinstance(spec, MultiOneHot):
        raise ConfigError(f"env.id={id}: its actions are {type(spec).__name__} {tuple(spec.shape)}: give bounded ones.")
    bounds: Any = spec.space
    if not (bounds.low.abs().amax() <= SENSIBLE and bounds.high.abs().amax() <= SENSIBLE):
        raise ConfigError(f"env.id={id}: its actions have bounds beyond a million: bound them in its action spec.")
    return Bounded(-1.0, 1.0, shape=torch.Size([spec.shape.numel()]), dtype=torch.float32)
