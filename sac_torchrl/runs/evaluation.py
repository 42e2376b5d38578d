"""Evaluation: whole deterministic episodes in separate environments, with returns and lengths."""

import dataclasses
import json
import math
import statistics
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tensordict.nn import TensorDictModuleBase
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from sac_torchrl.envs import generators
from sac_torchrl.envs.state import unshared
from sac_torchrl.envs.tensors import TensorEnv
from sac_torchrl.envs.vector import seeds
from sac_torchrl.errors import ConfigError, EnvironmentFault
from sac_torchrl.fields import check, field
from sac_torchrl.files import write_whole
from sac_torchrl.runs.episodes import deterministic_mode, play_episodes, play_tensors
from sac_torchrl.signals import time_limit

LATE = "an evaluation took longer than {:g} s (evaluate.timeout)."


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
    play = play_tensors if isinstance(env, TensorEnv) else play_episodes
    limit = time_limit(timeout, LATE.format(timeout))
    with generators.preserve(), unshared(env), deterministic_mode(actor), limit, _drawing(not deterministic):
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


def write_evaluation(evaluation: Evaluation, path: Path, *, env: str, frames: int, seed: int) -> None:
    """Writes the evaluation of environment id `env` after `frames` frames as JSON, whole or not at all."""
    content = {"env": env, "frames": frames, "seed": seed, **evaluation.as_json()}
    write_whole(path, json.dumps(content, indent=2) + "\n")


def _drawing(drawing: bool) -> AbstractContextManager[Any]:
    return set_exploration_type(ExplorationType.RANDOM) if drawing else nullcontext()
