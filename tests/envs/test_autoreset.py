"""Batched simulators that reset themselves: a fake of Isaac Lab's and MJLab's interface with known transitions."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from short_runs import digest

import sac_torchrl
from sac_torchrl import SAC, Direct, EnvConfig, NetworkConfig, Policy, ReplayConfig, Storage
from sac_torchrl.envs.handed import register
from sac_torchrl.errors import ConfigError

COUNT = 3
LIMIT = 4


class Lab:
    """Three environments: number 1 terminates after 3 steps, the others time out after 4.

    The group `policy` holds environment, episode and time, `critic` ten times the time. The reward is 100 times the
    time plus the action. As in Isaac Lab every step writes into the same tensors, and the extras are one dictionary.
    """

    device = "cpu"
    opened = 0

    def __init__(self, final: bool = False, auto_reset: bool = True, rsl: bool = False, bounded: bool = False) -> None:
        Lab.opened += 1
        self.num_envs = COUNT
        self.cfg = SimpleNamespace(auto_reset=auto_reset)
        self.single_action_space = Box(-2.0, 6.0, (1,)) if bounded else Box(-np.inf, np.inf, (1,))
        self.final, self.rsl = final, rsl
        if rsl:  # RSL-RL's wrapper has no spaces
            del self.single_action_space
            self.num_actions, self.get_observations = 1, self._observe
        self.episode, self.time, self.ended = (
            torch.zeros(COUNT),
            torch.zeros(COUNT),
            torch.zeros(COUNT, dtype=torch.bool),
        )
        self.buffers = {"policy": torch.zeros(COUNT, 3), "critic": torch.zeros(COUNT, 1)}
        self.terminated, self.truncated = torch.zeros(2, COUNT, dtype=torch.bool)
        self.extras: dict[str, Any] = {}
        self.given: list[torch.Tensor] = []
        self.closed = False

    def _observe(self) -> dict[str, torch.Tensor]:
        self.buffers["policy"].copy_(torch.stack([torch.arange(COUNT), self.episode, self.time], -1))
        self.buffers["critic"].copy_(10 * self.time.unsqueeze(-1))
        return self.buffers

    def reset(self, seed: int | None = None, env_ids: Any = None) -> Any:
        assert not self.closed
        if seed is not None:
            self.episode.zero_()
        self._begin(torch.arange(COUNT) if env_ids is None else env_ids)
        return self._observe(), self.extras

    def _begin(self, ids: Any) -> None:
        self.episode[ids] += 1
        self.time[ids] = 0

    def step(self, action: torch.Tensor) -> Any:
        assert not (self.terminated | self.truncated).any() or self.cfg.auto_reset or not self.time[self.ended].any()
        self.given.append(action.clone())
        self.time += 1
        reward = 100 * self.time + action[:, 0]
        self.terminated.copy_((torch.arange(COUNT) == 1) & (self.time >= 3))
        self.truncated.copy_((self.time >= LIMIT) & ~self.terminated)
        self.ended = self.terminated | self.truncated
        if self.cfg.auto_reset and self.ended.any():
            if self.final:
                self.extras["final_obs"] = {key: value.clone() for key, value in self._observe().items()}
            self._begin(self.ended)
        if self.rsl:
            return self._observe(), reward, self.ended.long(), self.extras | {"time_outs": self.truncated}
        return self._observe(), reward, self.terminated, self.truncated, self.extras

    def close(self) -> None:
        self.closed = True


def check(rows: Any) -> None:
    """Every row begins and ends where the fake says."""
    assert len(rows)
    for row in rows:
        number, episode, time = row["observation", "policy"].tolist()
        assert row["observation", "critic"].item() == 10 * time
        assert row["next", "observation", "policy"].tolist() == [number, episode, time + 1]
        assert row["next", "observation", "critic"].item() == 10 * (time + 1)
        assert row["next", "reward"].item() == pytest.approx(100 * (time + 1) + row["action"].item())
        assert bool(row["next", "terminated"]) == (number == 1 and time == 2)
        assert bool(row["next", "done"]) == (bool(row["next", "terminated"]) or time == LIMIT - 1)


@pytest.mark.parametrize("arguments", [{"final": True}, {"auto_reset": False}, {"final": True, "rsl": True}])
def test_every_transition_of_a_simulator_that_gives_final_observations(arguments: Any) -> None:
    config = EnvConfig(make=partial(Lab, **arguments), count=COUNT, bounds=(-1, 1))
    specs: Any = config.specs()
    assert {name: tuple(leaf.shape) for name, leaf in specs.observation.items()} == {"policy": (3,), "critic": (1,)}
    env: Any = config.build(seed=5)
    rows = env.rollout(12, break_when_any_done=False).reshape(-1)
    check(rows)
    assert len(rows) == 12 * COUNT and env.unknown is None
    assert torch.equal(torch.stack(env._inner._simulator.given, 1).reshape(-1, 1), rows["action"])
    ends = rows["next", "truncated"].reshape(COUNT, 12).nonzero().tolist()
    assert ends == [[number, time] for number in (0, 2) for time in (3, 7, 11)]


@pytest.mark.parametrize("n_steps", [1, 3])
def test_a_truncated_step_without_a_final_observation_is_counted_and_not_stored(
    n_steps: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = EnvConfig(make=Lab, count=COUNT, bounds=(-1, 1))
    specs = replace(config.specs(), n_steps=n_steps, gamma=0.5)
    agent = SAC(network=NetworkConfig([8]), actor_keys=["policy"]).build(specs, device=torch.device("cpu"))
    buffer = ReplayConfig(storage=Storage.ram).build(
        tmp_path, specs, rows=36, batch_size=4, seed=1, device=torch.device("cpu")
    )
    with caplog.at_level(logging.WARNING, "sac_torchrl"):
        experience = Direct().build(config, agent.actor, buffer, specs=specs, total_frames=36, random_frames=18, seed=2)
        assert sum(experience) == 36
    metrics = experience.metrics()
    # Of 12 steps, environment 1 makes 4 episodes of 3, and the others 3 of 4 each.
    assert metrics["train/length"] == pytest.approx((4 * 3 + 6 * 4) / 10)
    assert len([line for line in caplog.messages if "counted and not stored" in line]) == 1
    rows = buffer[:]
    begun = sorted(tuple(row) for row in rows["observation", "policy"].tolist())
    lengths = {0: LIMIT - 1, 1: 3, 2: LIMIT - 1}  # the steps of an episode that are known
    first = min(episode for _, episode, _ in begun)
    assert begun == [
        (float(number), first + episode, float(time))
        for number, length in lengths.items()
        for episode in range(12 // (3 if number == 1 else LIMIT))
        for time in range(length)
    ]
    for row in rows:
        number, episode, time = (int(value) for value in row["observation", "policy"].tolist())
        span = min(n_steps, lengths[number] - time)
        terminated = number == 1 and time + span == 3
        assert bool(row["next", "terminated"]) == terminated
        # Nothing bootstraps from what follows a termination: it repeats what came before.
        assert row["next", "observation", "policy"].tolist() == [number, episode, time + span - terminated]
        # The actions of the frames that follow are in [-1, 1].
        hundreds = sum(0.5**ahead * 100 * (time + ahead + 1) for ahead in range(span))
        assert abs(row["next", "reward"].item() - hundreds) < 2


def test_a_run_with_the_only_simulator_plays_its_evaluations_in_it_and_resumes(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"random_frames": 12, "batch_size": 8, "device": "cpu", "checkpoint": {"every": 12}}
    keys |= {"variant": {"name": "sac", "network": {"hidden": [8]}, "actor_keys": ["policy"]}}
    keys |= {"learner": {"execution": "eager"}, "evaluate": {"every": 1000, "episodes": 4}}
    env = {"make": make_lab, "bounds": [-1, 1], "count": COUNT, "single": True}
    Lab.opened = 0
    for name, lengths in (("whole", [36]), ("parts", [24, 36])):
        for frames in lengths:
            run = {"folder": str(tmp_path / name)}
            result = sac_torchrl.train("continuous", env=dict(env), total_frames=frames, run=run, **keys)
    assert Lab.opened == 1 and result.evaluation is not None
    assert sorted(result.evaluation.lengths) == [3, 4, 4, 4]
    assert digest(tmp_path / "whole", 36) == digest(tmp_path / "parts", 36)
    policy = Policy.load(tmp_path / "whole")
    assert policy.spec.action == Box(-1, 1, (1,)) and policy({"policy": np.zeros(3, np.float32)}).shape == (1,)


def make_lab() -> Lab:
    return Lab(final=True)


@pytest.mark.parametrize(
    ("make", "keys", "words"),
    [
        (Lab, {}, r"without sensible bounds: give env\.bounds=\[LOW, HIGH\]"),
        (partial(Lab, bounded=True), {"bounds": (-1, 1)}, "have bounds of their own: leave it out"),
        (Lab, {"bounds": (-1, 1), "count": 2}, r"makes 3 environments together: give env\.count=3"),
        (Lab, {"bounds": (-1, 1), "wrappers": ["FlattenObservation"]}, "takes none: leave it out"),
        (Lab, {"bounds": (-1, 1), "ignore": ["policy", "critic"]}, "leaves nothing"),
    ],
)
def test_what_a_simulator_cannot_be_given_is_refused(make: Any, keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EnvConfig(make=make, **({"count": COUNT} | keys)).specs()


def test_one_that_is_registered_in_gymnasium_is_refused_with_the_way_that_works() -> None:
    class Registered(gym.Env[Any, Any]):
        num_envs, device = 3, "cpu"

    gym.register("Registered-Lab-v0", lambda: Registered())  # type: ignore[arg-type]  # its own annotation is narrower
    with pytest.raises(ConfigError, match=r"sac_torchrl\.register\(ID, make\)"):
        EnvConfig("Registered-Lab-v0").specs()
    register("mine/lab", partial(Lab, bounded=True))
    env: Any = EnvConfig("mine/lab", count=COUNT).build(seed=0)
    env.step(env.reset().set("action", torch.tensor([[-1.0], [0.0], [1.0]])))
    given = env._inner._simulator.given
    assert given[0].flatten().tolist() == [-2.0, 2.0, 6.0]
