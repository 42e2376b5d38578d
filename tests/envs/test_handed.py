"""Environments that users make themselves: Gymnasium's, vector environments and TorchRL's."""

from pathlib import Path
from typing import Any

import counting
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from runs import digest
from tensordict import TensorDict
from torchrl.data import Bounded, Categorical, Composite, OneHot, Unbounded
from torchrl.envs import EnvBase, GymEnv, SerialEnv, StepCounter, TransformedEnv

import sac_torchrl
from sac_torchrl import EnvConfig
from sac_torchrl.cli.main import main
from sac_torchrl.deploy.spaces import environment_spaces
from sac_torchrl.envs.handed import register
from sac_torchrl.errors import ConfigError, EnvironmentFault


class Doubles(EnvBase):
    """float64, actions in [-3, 1], an index beside a matrix; observes the step, and the action is the reward."""

    def __init__(self, count: int | None = None) -> None:
        size = torch.Size([] if count is None else [count])
        super().__init__(batch_size=size)
        self.observation_spec = Composite(
            matrix=Unbounded(torch.Size([*size, 2, 2]), dtype=torch.float64),
            phase=OneHot(3, shape=torch.Size([*size, 3]), dtype=torch.bool),
            shape=size,
        )
        self.action_spec = Bounded(-3.0, 1.0, shape=torch.Size([*size, 1]), dtype=torch.float64)
        self.reward_spec = Unbounded(torch.Size([*size, 1]), dtype=torch.float64)
        self.time = torch.zeros(size, dtype=torch.int64)
        self.given: list[torch.Tensor] = []

    def _seen(self) -> dict[str, Any]:
        matrix = self.time.double()[..., None, None].expand(*self.time.shape, 2, 2).clone()
        phase = torch.nn.functional.one_hot(self.time % 3, 3).bool()
        return {"matrix": matrix, "phase": phase}

    def _reset(self, tensordict: Any = None, **options: Any) -> TensorDict:
        again = torch.ones_like(self.time, dtype=torch.bool)
        if tensordict is not None and "_reset" in tensordict:
            again = tensordict["_reset"].reshape(self.time.shape)
        self.time = torch.where(again, 0, self.time)
        return TensorDict(self._seen(), batch_size=self.batch_size)

    def _step(self, tensordict: Any) -> TensorDict:
        self.given.append(tensordict["action"].clone())
        self.time = self.time + 1
        terminated = (self.time >= 4).unsqueeze(-1)
        return TensorDict(
            {**self._seen(), "reward": tensordict["action"], "done": terminated, "terminated": terminated},
            batch_size=self.batch_size,
        )

    def _set_seed(self, seed: int | None) -> None:
        pass


def single() -> EnvBase:
    return TransformedEnv(Doubles(), StepCounter(9))


def batched() -> EnvBase:
    return TransformedEnv(Doubles(2), StepCounter(3))


def serial() -> EnvBase:
    return SerialEnv(2, single)


def cartpole() -> EnvBase:
    return TransformedEnv(GymEnv("CartPole-v1"), StepCounter(5))  # type: ignore[no-untyped-call]


def pendulum(max_episode_steps: int = 7) -> gym.Env[Any, Any]:
    return gym.make("Pendulum-v1", max_episode_steps=max_episode_steps)


def pendulums(autoreset: AutoresetMode = AutoresetMode.DISABLED) -> VectorEnv[Any, Any, Any]:
    return gym.make_vec("Pendulum-v1", 2, "sync", vector_kwargs={"autoreset_mode": autoreset}, max_episode_steps=5)


@pytest.mark.parametrize("make", [single, batched, serial])
def test_torchrls_environments_are_adapted_at_the_edge(make: Any) -> None:
    config = EnvConfig(make=make, count=2)
    specs: Any = config.specs()
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in specs.observation.items()} == {
        "matrix": (torch.Size([4]), torch.float32),
        "phase": (torch.Size([]), torch.int64),
    }
    observed, taken = environment_spaces(specs, config)  # those of a deployed policy
    assert observed == Dict(matrix=Box(-np.inf, np.inf, (4,)), phase=Discrete(3))
    assert taken == Box(-3.0, 1.0, (1,), np.float64) and taken.dtype == np.float64
    env = config.build(seed=0)
    limit = 3 if make is batched else 4
    root = env.reset()
    for time in range(7):
        at = time % limit
        assert root["observation", "matrix"].tolist() == [[float(at)] * 4] * 2
        assert root["observation", "phase"].tolist() == [at % 3] * 2
        step, root = env.step_and_maybe_reset(root.set("action", torch.tensor([[-1.0], [0.5]])))
        assert step["next", "observation", "matrix"].tolist() == [[at + 1.0] * 4] * 2  # the true final one
        assert step["next", "reward"].tolist() == [[-3.0], [0.0]] and step["next", "reward"].dtype == torch.float32
        assert step["next", "done"].flatten().tolist() == [at + 1 == limit] * 2
        assert step["next", "terminated"].flatten().tolist() == [at + 1 == 4] * 2
    env.close()


def test_one_leaf_is_the_observation_and_one_hot_actions_are_indices() -> None:
    specs: Any = EnvConfig(make=cartpole).specs()
    assert specs.observation.shape == (4,) and type(specs.action) is Categorical and specs.action.space.n == 2
    env = EnvConfig(make=cartpole).build(seed=0, count=3)
    rows = env.rollout(12, break_when_any_done=False)
    assert rows["action"].dtype == torch.int64 and rows["next", "done"].sum() >= 6


def test_gymnasiums_environments_are_those_of_the_same_id() -> None:
    made = EnvConfig(make=pendulum, kwargs={"max_episode_steps": 4}).build(seed=0, count=2).rollout(4)
    named = EnvConfig("Pendulum-v1", max_episode_steps=4).build(seed=0, count=2)
    twin = named.reset()
    assert torch.equal(made["observation"][:, 0], twin["observation"])
    for time in range(4):
        twin = named.step(twin.set("action", made["action"][:, time]))
        assert torch.equal(twin["next", "observation"], made["next", "observation"][:, time])
        twin = twin["next"]
    assert twin["truncated"].all()


def test_a_vector_environment_is_reset_by_mask_and_its_actions_rescaled() -> None:
    config = EnvConfig(make=pendulums, count=2)
    env = config.build(seed=0)
    inner: Any = env._env
    given, step = list[Any](), inner._envs.step

    def watched(actions: Any) -> Any:
        given.append(np.copy(actions))
        return step(actions)

    inner._envs.step = watched
    rows = env.rollout(11, break_when_any_done=False)
    np.testing.assert_allclose(np.stack(given, 1), 2 * rows["action"].numpy(), rtol=1e-6)
    assert rows["next", "done"].squeeze(-1).nonzero()[:, 1].tolist() == [4, 9] * 2
    with pytest.raises(ConfigError, match=r"give env\.count=2"):
        EnvConfig(make=pendulums, count=3).specs()


@pytest.mark.parametrize(
    ("which", "given", "words"),
    [
        (1, [0.0, np.inf], r"returned the rewards \[0.0, inf\], not 2 finite numbers"),
        (1, np.zeros((2, 1)), r"returned the rewards .*, not 2 finite numbers"),
        (2, [True], r"returned terminated=\[True\], not 2 of True and False"),
        (3, np.zeros(2), r"returned truncated=.*, not 2 of True and False"),
    ],
)
def test_rewards_and_ends_of_a_vector_environment_are_one_for_each(which: int, given: Any, words: str) -> None:
    env = EnvConfig(make=pendulums, count=2).build(seed=0)
    inner: Any = env._env
    step = inner._envs.step

    def other(actions: Any) -> Any:
        result = list(step(actions))
        result[which] = given
        return result

    inner._envs.step = other
    with pytest.raises(EnvironmentFault, match=words):
        env.rollout(1)


def countings() -> VectorEnv[Any, Any, Any]:
    return SyncVectorEnv([counting.Counting] * 5, autoreset_mode=AutoresetMode.DISABLED)


def test_a_vector_environment_of_uneven_episodes_loses_none_of_them() -> None:
    rollout = EnvConfig(make=countings, count=5).build(seed=4).rollout(30, break_when_any_done=False)
    assert (rollout["next", "done"].any(0) != rollout["next", "done"].all(0)).any()
    counting.check(rollout.transpose(0, 1).reshape(-1), environments=5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: pendulums(AutoresetMode.SAME_STEP), "autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED"),
        (lambda: 3, "returned 3: return an environment"),
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: type("Several", (), {"possible_agents": ["a"]})(), "several agents"),
    ],
)
def test_what_is_no_environment_of_one_agent_is_refused(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EnvConfig(make=make).specs()


def test_a_registered_id_is_made_by_its_function() -> None:
    register("mine/pendulum", pendulum)
    config = EnvConfig("mine/pendulum", kwargs={"max_episode_steps": 3})
    assert config.build(seed=0).rollout(10)["next", "truncated"].sum() == 1


def test_a_run_resumes_with_its_function_and_not_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys: dict[str, Any] = {"random_frames": 20, "batch_size": 8, "checkpoint": {"every": 20}, "device": "cpu"}
    keys |= {"variant": {"name": "sac", "network": {"hidden": [8]}}, "learner": {"execution": "eager"}}
    keys |= {"evaluate": {"every": 1000, "episodes": 1}}
    for name, lengths in (("whole", [60]), ("parts", [40, 60])):
        for frames in lengths:
            folder = {"folder": str(tmp_path / name)}
            sac_torchrl.train("continuous", env=pendulum, total_frames=frames, run=folder, **keys)
    assert digest(tmp_path / "whole") == digest(tmp_path / "parts")
    assert "test_handed.pendulum" in (tmp_path / "whole" / "config.yaml").read_text()
    with pytest.raises(SystemExit) as ended:
        main(["resume", str(tmp_path / "whole"), "total_frames=80"])
    assert ended.value.code == 64 and "give it again, as in sac.train(..., env=make)" in capsys.readouterr().err
