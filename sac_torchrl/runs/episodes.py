"""Whole episodes of an actor: stepped one environment at a time, or as one batch of tensors."""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase, GymWrapper
from torchrl.envs.utils import ExplorationType, set_exploration_type

from sac_torchrl.agents.policies import aligned
from sac_torchrl.envs.tensors import TensorEnv
from sac_torchrl.errors import EnvironmentFault

LOOK = 50  # steps of tensor environments between two checks whether all episodes ended: each waits for the device
LONGEST = 100_000  # frames in an episode; a longer one is taken to have no end


class Episode(NamedTuple):
    """Undiscounted return, length in frames, and whether the task was done, None where the environment does not say."""

    total: float
    length: int
    success: bool | None = None


def play_episodes(actor: TensorDictModuleBase, env: EnvBase, shares: list[int]) -> list[Episode]:
    """Play as many episodes as `shares` has for each environment, in the order of the environments."""
    finished: list[list[Episode]] = [[] for _ in shares]
    # TorchRL's wrapper has no public name for what it wraps.
    success = getattr(env._env, "success", None) if isinstance(env, GymWrapper) else None
    total = torch.zeros(len(shares), dtype=torch.float64)
    length = torch.zeros(len(shares), dtype=torch.int64)
    for step in steps_of(actor, env):
        total += step["next", "reward"].reshape(len(shares)).to(total)
        length += 1
        done = step["next", "done"].reshape(len(shares)).to(total.device)
        for number in done.nonzero().flatten().tolist():
            if len(finished[number]) < shares[number]:
                known = None if success is None or math.isnan(success[number]) else bool(success[number])
                finished[number].append(Episode(float(total[number]), int(length[number]), known))
        total[done], length[done] = 0.0, 0
        if all(len(played) == share for played, share in zip(finished, shares, strict=True)):
            break
    return [episode for episodes_of_one in finished for episode in episodes_of_one]


def steps_of(actor: TensorDictModuleBase, env: EnvBase) -> Iterator[TensorDictBase]:
    """The steps of the actor in `env`, without end; raises EnvironmentFault where an episode has none."""
    weight = next(actor.parameters(), None)
    device = None if weight is None else weight.device
    root = env.reset()
    length = torch.zeros(env.batch_size.numel(), dtype=torch.int64)
    while True:
        seen = root.select(*actor.in_keys).apply(aligned)
        action = actor(seen if device is None else seen.to(device))["action"]
        root["action"] = action.to(root["done"].device)
        step = env.step(root)
        # Before the reset, so that a frame rendered now shows the final state.
        yield step
        length = (length + 1) * ~step["next", "done"].reshape(length.shape).to(length.device)
        if length.max() >= LONGEST:
            raise _endless()
        root = env.maybe_reset(env.step_mdp(step))


def play_tensors(actor: TensorDictModuleBase, env: EnvBase, shares: list[int]) -> list[Episode]:
    """Play as `play_episodes` does, and wait for the device only every LOOK steps."""
    assert isinstance(env, TensorEnv)
    count, device, most = env.batch_size[0], env.device, max(shares)
    share = torch.tensor(shares, device=device)
    returns = torch.zeros(count, most, dtype=torch.float64, device=device)
    lengths = torch.zeros(count, most, dtype=torch.int64, device=device)
    total, length, played = torch.zeros_like(returns[:, 0]), torch.zeros_like(lengths[:, 0]), torch.zeros_like(share)
    there = next((weight.device for weight in actor.parameters()), device)
    observation = env.reset()["observation"]
    for number in itertools.count(1):
        # A TensorDict that moves would wait for what it moved.
        seen = TensorDict({"observation": observation.to(there)}, batch_size=env.batch_size)
        action = actor(seen)["action"].to(device)
        _, reward, terminated, truncated = env.take(action)
        done = (terminated | truncated).reshape(-1)
        total += reward.reshape(-1)
        length += 1
        new, slot = done & (played < share), played.clamp(max=most - 1).unsqueeze(1)
        for table, value in ((returns, total), (lengths, length)):
            table.scatter_(1, slot, torch.where(new, value, table.gather(1, slot)[:, 0]).unsqueeze(1))
        played += new
        total.masked_fill_(done, 0.0)
        length.masked_fill_(done, 0)
        if number % LOOK == 0 and (played == share).all():
            break
        if number % LONGEST == 0 and length.max() >= LONGEST:
            raise _endless()
        observation = env.restart(done)
    kept = torch.arange(most) < torch.tensor(shares).unsqueeze(1)
    return list(map(Episode, returns.cpu()[kept].tolist(), lengths.cpu()[kept].tolist()))


def _endless() -> EnvironmentFault:
    return EnvironmentFault(
        f"an episode of the evaluation had no end after {LONGEST:,} frames: set env.max_episode_steps."
    )


@contextmanager
def deterministic_mode(actor: TensorDictModuleBase) -> Iterator[None]:
    """Have the actor act deterministically, in evaluation mode and without gradients; its modes are put back."""
    modes = [(module, module.training) for module in actor.modules()]
    actor.eval()
    try:
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            yield
    finally:
        for module, training in modes:
            module.training = training
