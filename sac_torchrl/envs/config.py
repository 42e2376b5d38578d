"""Environments as the agent sees them: observations are float32 vectors or indices, actions in [-1, 1] or indices."""

import dataclasses
import shlex
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import torch
from torchrl.envs import EnvBase

from sac_torchrl.envs import dmc
from sac_torchrl.envs.adapter import SpaceAdapter, TolerateFaults, say_where
from sac_torchrl.envs.contained import Contained
from sac_torchrl.envs.ends import refuse_endless
from sac_torchrl.envs.gymnasium import open_gymnasium
from sac_torchrl.envs.handed import Kind, Make, find_make, kind_of, made_id, open_made, open_together
from sac_torchrl.envs.hybrid_actions import hybrid_action
from sac_torchrl.envs.masks import MaskSource
from sac_torchrl.envs.plugins import load_plugins, wrap
from sac_torchrl.envs.simulators import SIMULATORS, open_simulator
from sac_torchrl.envs.vector import SequentialVectorEnv, wrapped
from sac_torchrl.errors import ConfigError
from sac_torchrl.fields import check, field
from sac_torchrl.specs import Specs


@dataclass
class EnvConfig:
    """An environment and the way to open it.

    `id` is Gymnasium's, MODULE:ID with the plugin MODULE, or `dmc/DOMAIN-TASK` for DeepMind Control. `torch/pendulum`,
    `torch/cartpole`, `torch/acrobot`, `torch/mountain_car`, `torch/mountain_car_continuous`, `torch/quadrotor`,
    `brax/TASK` and `playground/TASK` are simulators of tensors, for thousands of environments, and `envpool/TASK` is
    stepped by EnvPool's threads. A step that raises, or returns what cannot be trained on, is not stored and cuts
    its episode, for up to `faults` steps of an environment; the next one ends the run.

    In Python `make` is called for the environments instead, with `kwargs`: it returns a Gymnasium environment, a vector
    environment, an environment of TorchRL, batched or not, or a simulator with the interface of Isaac Lab and MJLab. It
    is not saved; config.yaml says what it was called.
    """

    id: str = field("Pendulum-v1", "Gymnasium's id, or dmc/, torch/, brax/, playground/ or envpool/ and a task")
    count: int = field(1, "environments that are stepped together", least=1)
    plugins: list[str] = field([], "modules imported first, which register environments; MODULE:FUNCTION is called")
    kwargs: dict[str, Any] = field({}, "arguments of the environment's constructor, as in env.kwargs.NAME=VALUE")
    wrappers: list[Any] = field(
        [], "wrappers, the first innermost, of Gymnasium or a plugin: NAME or {NAME: {ARGUMENT: VALUE}}"
    )
    ignore: list[str] = field([], "leaves of a Dict or Tuple observation that the agent does not see")
    reward_weights: list[float] | None = field(None, "weights of the sum that makes one reward of a vector of them")
    bounds: tuple[float, float] | None = field(
        None, "[LOW, HIGH] of actions without sensible bounds: infinite, or beyond a million"
    )
    single: bool = field(
        False, "only one can be open (a robot, a port): evaluations play in the one that is trained in"
    )
    faults: int = field(0, "faulty steps of an environment that are tolerated", least=0)
    max_episode_steps: int | None = field(None, "steps that truncate an episode; null: as registered", least=1)
    bins: int | None = field(
        None, "values, evenly spaced, to choose from for each continuous action; null: continuous", least=2
    )
    parameters: list[list[int]] | None = field(
        None, "continuous numbers, from 0, of each discrete value; null: a rule, see actions.hybrid_action"
    )
    mask: MaskSource = field(MaskSource.auto, "where the mask of legal discrete actions is: see masks.MaskSource")
    # A callable, so Any: OmegaConf would read its type, and it is no key.
    make: Any = dataclasses.field(default=None, kw_only=True, repr=False, metadata={"omegaconf_ignore": True})

    def __post_init__(self) -> None:
        if self.make is not None:
            self.id = made_id(self.make)
            return
        module, colon, name = self.id.rpartition(":")
        if colon and module:
            self.id = name
            if not any(plugin.partition(":")[0] == module for plugin in self.plugins):
                self.plugins = [module, *self.plugins]

    def specs(self) -> Specs:
        """Opens the environment once and reads its spaces; raises ConfigError for one that SAC cannot use.

        One without a time limit is also played with random actions, and refused where no episode ends.
        """
        self._check(self.count)
        env = self.build(count=self.count if self._kind() is not Kind.one else 1)
        try:
            if torch.get_default_dtype() != torch.float32:  # a plugin may have set it
                raise ConfigError(
                    f"torch's default dtype is {str(torch.get_default_dtype()).removeprefix('torch.')}, in which "
                    "networks would be made, and observations are float32: leave torch.set_default_dtype out of this "
                    "program and of what env.plugins import."
                )
            if not self.in_one:
                refuse_endless(env, self.id)
            elif (together := env.batch_size[0]) != self.count:
                raise ConfigError(
                    f"env.count={self.count}: env.id={self.id} makes {together} environments together: give "
                    f"env.count={together}."
                )
            # A simulator of tensors has none but the agent's.
            observed, taken = getattr(env, "native_spaces", (None, None))
            return Specs(
                env.observation_spec_unbatched["observation"],
                env.action_spec_unbatched,
                observation_space=observed,
                action_space=taken,
                hybrid=hybrid_action(taken, self.id, self.parameters),
            )
        finally:
            env.close()

    def build(
        self,
        *,
        seed: int | None = None,
        count: int | None = None,
        render_mode: str | None = None,
        device: torch.device | None = None,
        tolerate_faults: bool = False,
    ) -> EnvBase:
        """Builds `count` environments in this process, batch size `(count,)`, each with a seed of its own.

        Observations are float32 `(count, n)` or int64 `(count,)`, or a TensorDict of such leaves, with the leaf
        `action_mask` where there are masks. Actions are float32 `(count, n)` in [-1, 1], int64 `(count,)` or, where
        there are several discrete ones, int64 `(count, n)`; rewards are float32 `(count, 1)`. `next` always holds the
        true final observation. A simulator made of tensors lives on `device`; Gymnasium's are on the CPU.
        `tolerate_faults` is that of `open`.
        """
        count = self.count if count is None else count
        self._check(count)
        if self.id.startswith(SIMULATORS):
            load_plugins(self.plugins)
            env = open_simulator(self.id, count, device or torch.device("cpu"), render_mode=render_mode)
        elif (make := self._make()) is not None and self._kind() is not Kind.one:
            env = open_together(make, self.id, self.kwargs, count, self.single, self.bounds, self.ignore, self.mask)
        else:
            env = wrapped(
                SequentialVectorEnv([self.open(render_mode, tolerate_faults=tolerate_faults) for _ in range(count)])
            )
        if seed is not None:
            env.set_seed(seed)
        return env

    @property
    def in_one(self) -> bool:
        """Whether the environments are one batch of tensors or one pool, which no worker can hold a part of."""
        return self._kind() is not Kind.one

    def _kind(self) -> Kind:
        if self.id.startswith(SIMULATORS):
            return Kind.together
        make = self._make()
        return Kind.one if make is None else kind_of(make, self.id, self.kwargs, single=self.single)

    def open(self, render_mode: str | None = None, *, tolerate_faults: bool = False) -> gym.Env[Any, Any]:
        """Open one Gymnasium environment with its adapter, after importing the plugins.

        Where `tolerate_faults`, up to `faults` faulty steps end their episode and are marked by the reward NaN, so that
        the collector drops them.
        """
        modules = load_plugins(self.plugins)
        try:
            with Contained(self.id):
                if (make := self._make()) is not None:
                    made = open_made(make, self.id, self.kwargs)
                    if self.max_episode_steps is not None:
                        made = gym.wrappers.TimeLimit(made, self.max_episode_steps)
                else:
                    known = dmc.open_task if self.id.startswith(dmc.PREFIX) else open_gymnasium
                    made = known(self.id, self.kwargs, render_mode=render_mode, limit=self.max_episode_steps)
                made = wrap(made, self.wrappers, modules, self.id)
        except (SystemExit, GeneratorExit) as error:
            raise ConfigError(f"env.id={self.id} cannot be made: its constructor raised {say_where(error)}") from error
        try:
            env = SpaceAdapter(
                made,
                self.id,
                ignore=self.ignore,
                reward_weights=self.reward_weights,
                bounds=self.bounds,
                bins=self.bins,
                mask=self.mask,
                command=self._check_command(),
            )
        except ConfigError:
            made.close()
            raise
        return TolerateFaults(env, self.faults) if tolerate_faults and self.faults else env

    def _check(self, count: int) -> None:
        kind = self._kind()
        unused = {"kwargs", "wrappers", "ignore", "reward_weights", "bounds", "single"} if self.in_one else set[str]()
        if self._make() is not None:
            unused -= {"kwargs", "ignore"}
        if kind is Kind.autoreset:
            unused -= {"bounds", "single"}
        check(
            replace(self, count=count),
            "env",
            *(
                (not getattr(self, key), f"env.{key}={getattr(self, key)}: env.id={self.id} takes none: leave it out.")
                for key in sorted(unused)
            ),
            (
                not self.single or count == 1 or kind is Kind.autoreset,
                f"env.single=true: only one can be open, and {count} are needed: give env.count=1.",
            ),
            (
                not (self.faults and self.single),
                f"env.faults={self.faults}: with env.single=true a fault may be of an evaluation, and ends the run: "
                "give 0.",
            ),
            (
                not (self.faults and self.in_one),
                f"env.faults={self.faults}: the environments of env.id={self.id} are stepped at once, and a fault of "
                "one ends the run: give 0.",
            ),
            (
                self.bounds is None or -1e6 <= self.bounds[0] < self.bounds[1] <= 1e6,
                f"env.bounds={self.bounds and list(self.bounds)}: give [LOW, HIGH] within a million, LOW below HIGH.",
            ),
            (
                self.bins is None or not self.in_one,
                f"env.bins={self.bins}: env.id={self.id} takes its own actions only: give null.",
            ),
            (
                self.mask in (MaskSource.auto, MaskSource.none) or not self.id.startswith(SIMULATORS),
                f"env.mask={self.mask.value}: masks of env.id={self.id} are not read: give auto.",
            ),
            (
                self.max_episode_steps is None or not self.in_one,
                f"env.max_episode_steps={self.max_episode_steps}: the episodes of env.id={self.id} are as long as its "
                "simulator makes them: give null.",
            ),
        )

    def _check_command(self) -> str:
        plugins = "".join(f" --plugin {shlex.quote(one)}" for one in self.plugins)
        command = f"`sac-torchrl check-env {shlex.quote(self.id)}{plugins}`"
        others = (self.kwargs, self.wrappers, self.ignore, self.reward_weights, self.bounds, self.max_episode_steps)
        if self.make is not None:
            return "sac_torchrl.envs.check.check_env(EnvConfig(make=...))"
        return f"{command} with the run's other env.* keys" if any((*others, self.bins, self.parameters)) else command

    def _make(self) -> Make | None:
        """What makes the environments where it is a user's function; imports the plugins before."""
        load_plugins(self.plugins)
        return find_make(self.id, self.make)
