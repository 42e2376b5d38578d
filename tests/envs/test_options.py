"""What `env.` keys change about an environment: arguments, wrappers, plugins, weights of rewards, bounds, ends."""

import sys
import types
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torchrl.data import Categorical

from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.errors import ConfigError, EnvironmentFault
from sac_torchrl.runs.evaluation import Evaluation, evaluate, wilson
from sac_torchrl.specs import Specs


class Shaped(gym.Env[Any, Any]):
    """A reward of two numbers, three frames an episode, done well where the action was above 0."""

    def __init__(self, ends: bool = True, declares: bool = True, high: float = np.inf) -> None:
        self.observation_space = Box(-1, 1, (2,), np.float32)
        self.action_space = Box(np.array([-high, -1], np.float32), np.array([high, 1], np.float32))
        if declares:
            self.reward_space = Box(-10, 10, (2,), np.float32)
        self.ends = ends
        self.time = 0
        self.action: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.time += 1
        self.action = action
        over = self.ends and self.time == 3
        return np.zeros(2, np.float32), np.array([2.0, 3.0]), over, False, {"is_success": bool(action[1] > 0)}


class Halved(gym.RewardWrapper[Any, Any]):
    def reward(self, reward: Any) -> Any:
        return reward / 2


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A module that registers by a call, with a wrapper."""
    module: Any = types.ModuleType("shaped_plugin")
    module.Halved = Halved
    module.register_all = lambda: gym.register("Shaped-v0", lambda **kwargs: Shaped(**kwargs))
    monkeypatch.setitem(sys.modules, "shaped_plugin", module)
    yield module
    gym.registry.pop("Shaped-v0", None)


SHAPED = ["shaped_plugin:register_all"]


def first(config: EnvConfig) -> Any:
    env: Any = config.open()
    return env


def test_arguments_reach_the_constructor() -> None:
    specs = EnvConfig("FrozenLake-v1", kwargs={"is_slippery": False, "desc": ["SF", "FG"]}).specs()
    assert isinstance(specs.observation, Categorical) and specs.observation.n == 4
    assert first(EnvConfig("dmc/cartpole-swingup", kwargs={"random": 3})).unwrapped._env.task.random is not None


def test_an_id_with_a_module_is_the_id_and_a_plugin() -> None:
    config = EnvConfig("shaped_plugin:Shaped-v0", plugins=["shaped_plugin:register_all"])
    assert (config.id, config.plugins) == ("Shaped-v0", ["shaped_plugin:register_all"])
    assert EnvConfig("module:Thing-v0").plugins == ["module"]


@pytest.mark.usefixtures("plugin")
def test_wrappers_are_gymnasiums_and_the_plugins_the_first_innermost() -> None:
    config = EnvConfig(
        "Shaped-v0",
        wrappers=[{"FrameStackObservation": {"stack_size": 4}}, "Halved"],
        reward_weights=[1.0, 10.0],
        bounds=(-5.0, 5.0),
        plugins=SHAPED,
    )
    env = first(config)
    assert config.specs().observation.shape == (8,)
    assert type(env.env) is Halved and type(env.env.env) is gym.wrappers.FrameStackObservation
    env.reset(seed=0)
    assert env.step(np.array([1.0, -1.0], np.float32))[1] == (2 + 30) / 2
    assert env.unwrapped.action.tolist() == [5.0, -1.0]


def test_a_list_is_a_tuple_to_a_wrapper_as_a_shape_is() -> None:
    env = first(EnvConfig("CartPole-v1", wrappers=[{"ReshapeObservation": {"shape": [2, 2]}}]))
    assert env.env.observation_space.shape == (2, 2)


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("config", "words"),
    [
        (EnvConfig("FrozenLake-v1", kwargs={"is_slipery": True}), ["TypeError", "env.kwargs.is_slipery"]),
        (EnvConfig("FrozenLake-v1", kwargs={"map_name": "5x5"}), ["cannot be made", "KeyError"]),
        (EnvConfig("FrozenLake-v1", kwargs={"max_episode_steps": 4}), ["give env.max_episode_steps"]),
        (EnvConfig("dmc/cartpole-swingup", kwargs={"speed": 4}), ["dmc/cartpole-swingup", "speed"]),
        (EnvConfig("torch/pendulum", kwargs={"g": 4}), ["env.kwargs", "torch/pendulum"]),
        (EnvConfig("walker-walk"), ["did you mean dmc/walker-walk?"]),
        (EnvConfig("Pendulum-v1", wrappers=["FlattenObservations"]), ["did you mean FlattenObservation"]),
        (EnvConfig("Pendulum-v1", wrappers=[{"TimeLimit": {"steps": 4}}]), ["env.wrappers: TimeLimit", "TypeError"]),
        (EnvConfig("Pendulum-v1", wrappers=[{"A": {}, "B": {}}]), ["NAME or {NAME: {ARGUMENT: VALUE}}"]),
        (EnvConfig("Pendulum-v1", plugins=["shaped_plugin:registr"]), ["shaped_plugin has no function registr"]),
        (EnvConfig("Pendulum-v1", ignore=["a"]), ["env.ignore=['a']", "no leaves"]),
        (EnvConfig("Pendulum-v1", bounds=(-1.0, 1.0)), ["env.bounds=[-1.0, 1.0]", "leave it out"]),
        (EnvConfig("Pendulum-v1", bounds=(1.0, 1.0)), ["env.bounds", "LOW below HIGH"]),
        (EnvConfig("Blackjack-v1", ignore=["0", "1", "2"]), ["leaves nothing"]),
        (EnvConfig("Blackjack-v1", ignore=["7"]), ["observes no 7"]),
        (EnvConfig("Shaped-v0", bounds=(-5.0, 5.0), plugins=SHAPED), ["env.reward_weights=[1,1]"]),
        (EnvConfig("Shaped-v0", bounds=(-5.0, 5.0), reward_weights=[1.0], plugins=SHAPED), ["give as many"]),
        (EnvConfig("Shaped-v0", reward_weights=[1.0, 1.0], plugins=SHAPED), ["env.bounds=[LOW, HIGH]"]),
        (
            EnvConfig("Shaped-v0", bounds=(-5, 5), reward_weights=[1, 1], kwargs={"ends": False}, plugins=SHAPED),
            ["no episode ended", "set env.max_episode_steps"],
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(config: EnvConfig, words: list[str]) -> None:
    with pytest.raises(ConfigError) as refusal:
        config.specs()
    message = str(refusal.value)
    assert all(word in message for word in words) and "\n" not in message


@pytest.mark.usefixtures("plugin")
def test_rewards_of_another_shape_than_the_weights_are_a_fault() -> None:
    config = EnvConfig(
        "Shaped-v0", bounds=(-5, 5), reward_weights=[1, 1, 1], kwargs={"declares": False}, plugins=SHAPED
    )
    env = config.open()
    env.reset(seed=0)
    with pytest.raises(EnvironmentFault, match=r"of shape \(2,\), not \(3,\), that of env.reward_weights"):
        env.step(env.action_space.sample())


class Always(torch.nn.Module):
    in_keys = ("observation",)

    def forward(self, tensordict: Any) -> Any:
        count = len(tensordict)
        return tensordict.set("action", torch.tensor([[0.0, 1.0], [0.0, -1.0], [0.0, 1.0]])[:count])


@pytest.mark.usefixtures("plugin")
def test_success_is_counted_at_the_end_of_each_episode() -> None:
    env = EnvConfig("Shaped-v0", bounds=(-5, 5), reward_weights=[1, 0], plugins=SHAPED).build(count=3)
    played = evaluate(Always(), env, episodes=5, seed=0)
    assert (played.returns, played.successes) == ([6.0] * 5, [True, True, False, False, True])
    assert played.metrics()["eval/success"] == 0.6
    assert "eval/success" not in Evaluation([1.0], [1]).metrics()


@pytest.mark.parametrize(("count", "of"), [(0, 10), (3, 10), (10, 10)])
def test_wilsons_bounds_are_where_the_score_test_is_on_the_edge(count: int, of: int) -> None:
    share, low, high = wilson(count, of)
    for bound in (low, high):
        if 1e-9 < bound < 1 - 1e-9:
            deviation = abs(share - bound) / (bound * (1 - bound) / of) ** 0.5
            assert deviation == pytest.approx(1.959963984540054, rel=1e-9)
    assert low <= share <= high and (low > 0 or count == 0) and (high < 1 or count == of)


def test_an_environment_that_ends_by_itself_needs_no_limit() -> None:
    assert isinstance(EnvConfig("Blackjack-v1").specs(), Specs)
    assert isinstance(EnvConfig("Blackjack-v1").open().action_space, Discrete)
