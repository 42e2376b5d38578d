"""Evaluation: whole deterministic episodes in separate environments, with returns, lengths and a video."""

import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import imageio.v2 as imageio
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase, GymWrapper
from torchrl.envs.utils import ExplorationType, set_exploration_type

from sac_torchrl.agents.policies import aligned
from sac_torchrl.envs import generators
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.quiet import rendering
from sac_torchrl.envs.state import unshared
from sac_torchrl.envs.tensors import TensorEnv
from sac_torchrl.envs.vector import seeds
from sac_torchrl.errors import ConfigError, EnvironmentFault, SacError, short
from sac_torchrl.extras import PACKAGES, require
from sac_torchrl.fields import check, field
from sac_torchrl.files import replacing, write_whole
from sac_torchrl.signals import time_limit

LATE = "an evaluation took longer than {:g} s (evaluate.timeout)."
LOOK = 50  # steps of tensor environments between two checks whether all episodes ended: each waits for the device
LONGEST = 100_000  # frames in an episode; a longer one is taken to have no end


@dataclass(frozen=True)
class Evaluation:
    """The undiscounted return and the length in frames of each episode, and whether its task was done at its end.

    `successes` is empty if the info of an episode's last step has no `is_success` or `success`. Where every environment
    played one episode, `seeds` are the seeds of their resets.
    """

    returns: list[float]
    lengths: list[int]
    successes: list[bool] = dataclasses.field(default_factory=list)
    seeds: list[int] = dataclasses.field(default_factory=list, compare=False)

    @property
    def mean(self) -> float:
        """The mean return."""
        return statistics.fmean(self.returns)

    @property
    def std(self) -> float:
        """The population standard deviation of the returns."""
        return statistics.pstdev(self.returns)

    @property
    def success(self) -> tuple[float, float, float] | None:
        """The share of episodes that ended with the task done, and the bounds of its 95 % interval (Wilson 1927)."""
        return wilson(sum(self.successes), len(self.successes)) if self.successes else None

    def metrics(self) -> dict[str, float]:
        """Mean and deviation of the returns, the mean length and the share of successes, named for a log."""
        metrics = {
            "eval/return_mean": self.mean,
            "eval/return_std": self.std,
            "eval/length_mean": statistics.fmean(self.lengths),
        }
        if self.success is not None:
            names = ("eval/success", "eval/success_low", "eval/success_high")
            metrics |= dict(zip(names, self.success, strict=True))
        return metrics

    def as_json(self) -> dict[str, Any]:
        """Mean and deviation of the returns, and the return and length of every episode, as in evaluation.json."""
        return {
            "return_mean": self.mean,
            "return_std": self.std,
            "returns": self.returns,
            "lengths": self.lengths,
            "seeds": self.seeds,
            **({} if self.success is None else {"success": self.success[0], "successes": self.successes}),
        }


def wilson(count: int, of: int, *, z: float = 1.959963984540054) -> tuple[float, float, float]:
    """A share `count / of` and its interval at `z` standard deviations, 95 % (Wilson 1927, equation 4)."""
    share = count / of
    middle = (share + z**2 / (2 * of)) / (1 + z**2 / of)
    reach = z / (1 + z**2 / of) * math.sqrt(share * (1 - share) / of + z**2 / (4 * of**2))
    # The share itself lies within, up to rounding.
    return share, max(0.0, min(share, middle - reach)), min(1.0, max(share, middle + reach))


@dataclass
class EvaluationConfig:
    """How often and on how many episodes the actor is evaluated."""

    every: int = field(1000, "frames between evaluations", least=1)
    episodes: int = field(10, "whole episodes in an evaluation", least=1)
    video: bool = field(False, "film an episode at the end of the run (extra video)")
    timeout: float = field(3600.0, "seconds after which an evaluation ends the run", above=0)

    def __post_init__(self) -> None:
        check(self, "evaluate")

    def run(self, actor: TensorDictModuleBase, env: EnvBase, *, seed: int) -> Evaluation:
        """Evaluate the actor as configured, in the environments of `env`."""
        return evaluate(actor, env, episodes=self.episodes, seed=seed, timeout=self.timeout)


def evaluate(
    actor: TensorDictModuleBase,
    env: EnvBase,
    *,
    episodes: int,
    seed: int,
    timeout: float = math.inf,
    deterministic: bool = True,
) -> Evaluation:
    """Plays exactly `episodes` whole episodes with the actor's deterministic actions, or with ones drawn from `seed`.

    `env` has batch size `(count,)` or `()`, and `count` may differ from `episodes`: each environment plays a number of
    episodes fixed beforehand, because taking whichever end first would prefer short ones. `env` is reseeded with
    `seed`, and so are the global generators that it may draw from. Their state, the actor's mode, and the state of the
    environment's classes and modules are restored afterward. Raises EnvironmentFault if the evaluation takes longer
    than `timeout` seconds or a return is not finite.
    """
    if episodes < 1:
        raise ValueError(f"episodes={episodes}: evaluate on 1 or more.")
    refuse_other_actions(actor, env)
    count = env.batch_size.numel()
    shares = [episodes // count + (number < episodes % count) for number in range(count)]
    play = _play_tensors if isinstance(env, TensorEnv) else _play_episodes
    limit = time_limit(timeout, LATE.format(timeout))
    with generators.preserve(), unshared(env), _deterministic(actor), limit, _drawing(not deterministic):
        generators.seed_all(seed)
        env.set_seed(seed)
        played = play(actor, env, shares)
    returns = [episode.total for episode in played]
    if not all(map(math.isfinite, returns)):
        raise EnvironmentFault(f"the returns of an evaluation are {returns}: not all are finite.")
    successes = [episode.success for episode in played if episode.success is not None]
    return Evaluation(
        returns,
        [episode.length for episode in played],
        successes if len(successes) == len(played) else [],
        seeds(seed, count) if episodes == count else [],
    )


class _Episode(NamedTuple):
    total: float
    length: int
    success: bool | None = None


def _play_episodes(actor: TensorDictModuleBase, env: EnvBase, shares: list[int]) -> list[_Episode]:
    """Play as many episodes as `shares` has for each environment, in the order of the environments."""
    finished: list[list[_Episode]] = [[] for _ in shares]
    # TorchRL's wrapper has no public name for what it wraps.
    success = getattr(env._env, "success", None) if isinstance(env, GymWrapper) else None
    total = torch.zeros(len(shares), dtype=torch.float64)
    length = torch.zeros(len(shares), dtype=torch.int64)
    for step in _play(actor, env):
        total += step["next", "reward"].reshape(len(shares)).to(total)
        length += 1
        done = step["next", "done"].reshape(len(shares)).to(total.device)
        for number in done.nonzero().flatten().tolist():
            if len(finished[number]) < shares[number]:
                known = None if success is None or math.isnan(success[number]) else bool(success[number])
                finished[number].append(_Episode(float(total[number]), int(length[number]), known))
        total[done], length[done] = 0.0, 0
        if all(len(played) == share for played, share in zip(finished, shares, strict=True)):
            break
    return [episode for episodes_of_one in finished for episode in episodes_of_one]


def refuse_other_actions(actor: TensorDictModuleBase, env: EnvBase) -> None:
    """Raise ConfigError where the actor's actions have other bounds than those of `env`."""
    chosen: Any = getattr(actor, "spec", None)
    taken = env.action_spec_unbatched
    chosen = cast(Any, chosen).get("action", None) if isinstance(chosen, Composite) else chosen
    if not isinstance(chosen, Bounded) or not isinstance(taken, (Bounded, Unbounded)):
        return
    own, other = _bounds(chosen), _bounds(taken)
    if own != other:
        raise ConfigError(
            f"the actor's actions are in {own} and those of the environment in {other}: open it with EnvConfig, which "
            "rescales them, or append torchrl.envs.transforms.ActionScaling() to it."
        )


def _bounds(spec: Any) -> list[list[float]]:
    return [spec.space.low.flatten().tolist(), spec.space.high.flatten().tolist()]


def record_video(actor: TensorDictModuleBase, plan: EnvConfig, path: Path, *, seed: int) -> Path:
    """Films one deterministic episode, in real time, into the mp4 file `path`.

    At most about 30 pictures a second are drawn. Raises SacError where nothing can be drawn.
    """
    require("imageio_ffmpeg", "evaluate.video")
    path.parent.mkdir(parents=True, exist_ok=True)
    env: Any = plan.build(seed=seed, count=1, render_mode="rgb_array")
    rate: float = env.metadata.get("render_fps", 30)
    stride = max(1, round(rate / 30))
    try:
        with replacing(path) as draft:
            video: Any = imageio.get_writer(draft, fps=rate / stride, macro_block_size=2)
            with _deterministic(actor), video:
                for number, step in enumerate(_play(actor, env), start=1):
                    done = bool(step["next", "done"].any())
                    if done or number % stride == 0:
                        video.append_data(_picture(env, plan.id))
                    if done:
                        break
    finally:
        env.close()
    return path


def write_evaluation(evaluation: Evaluation, path: Path, *, env: str, frames: int, seed: int) -> None:
    """Writes the evaluation of environment id `env` after `frames` frames as JSON, whole or not at all."""
    content = {"env": env, "frames": frames, "seed": seed, **evaluation.as_json()}
    write_whole(path, json.dumps(content, indent=2) + "\n")


def _play(actor: TensorDictModuleBase, env: EnvBase) -> Iterator[TensorDictBase]:
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


def _play_tensors(actor: TensorDictModuleBase, env: EnvBase, shares: list[int]) -> list[_Episode]:
    """Play as `_play_episodes` does, and wait for the device only every LOOK steps."""
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
    return list(map(_Episode, returns.cpu()[kept].tolist(), lengths.cpu()[kept].tolist()))


def _endless() -> EnvironmentFault:
    return EnvironmentFault(
        f"an episode of the evaluation had no end after {LONGEST:,} frames: set env.max_episode_steps."
    )


def _picture(env: Any, id: str) -> Any:
    try:
        with rendering():
            return env.render()[0]
    except Exception as error:  # every graphics library fails in its own way
        raise SacError(
            f"env.id={id} cannot be rendered here ({short(repr(error))}): {PACKAGES['pygame'].advice}, "
            "for MuJoCo also a driver for EGL, or leave evaluate.video=false."
        ) from error


@contextmanager
def _deterministic(actor: TensorDictModuleBase) -> Iterator[None]:
    modes = [(module, module.training) for module in actor.modules()]
    actor.eval()
    try:
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            yield
    finally:
        for module, training in modes:
            module.training = training


def _drawing(drawing: bool) -> AbstractContextManager[Any]:
    return set_exploration_type(ExplorationType.RANDOM) if drawing else nullcontext()
