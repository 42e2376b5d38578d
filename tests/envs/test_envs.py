import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import counting
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDictBase
from torchrl.data import Bounded, Categorical, Unbounded
from torchrl.envs import EnvBase
from torchrl.envs.utils import check_env_specs

from sac_torchrl.envs.adapter import SpaceAdapter
from sac_torchrl.envs.config import EnvConfig
from sac_torchrl.envs.vector import seeds
from sac_torchrl.errors import ConfigError, EnvironmentFault, LearnerFault

Register = Callable[..., str]
BOX = spaces.Box(-1, 1, (2,))
CHOICE = spaces.Discrete(2)


class Toy(gym.Env[Any, Any]):
    """Given spaces; remembers its actions and ends after three steps."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self.actions: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        assert options is None
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        return self.observation_space.sample(), 0.0, len(self.actions) % 3 == 0, False, {}


@pytest.fixture
def register() -> Iterator[Register]:
    ids: list[str] = []

    def register_toy(observation: spaces.Space[Any] = BOX, action: spaces.Space[Any] = CHOICE) -> str:
        ids.append(f"Toy{len(ids)}-v0")
        gym.register(ids[-1], lambda **_: Toy(observation, action))
        return ids[-1]

    yield register_toy
    for id in ids:
        gym.registry.pop(id)


def play(env: EnvBase, frames: int, *, seed: int = 0) -> list[TensorDictBase]:
    """Steps with random actions, resetting as a collector does."""
    generator = torch.Generator().manual_seed(seed)
    root, steps = env.reset(), []
    for _ in range(frames):
        shape = env.action_spec.shape
        if isinstance(env.action_spec_unbatched, Categorical):
            root["action"] = torch.randint(env.action_spec_unbatched.n, shape, generator=generator)
        else:
            root["action"] = torch.rand(shape, generator=generator) * 2 - 1
        step, root = env.step_and_maybe_reset(root)
        steps.append(step)
    return steps


def inner(env: EnvBase) -> list[Any]:
    """The environments themselves, without wrappers."""
    wrapped: Any = env
    return [one.unwrapped for one in wrapped.envs]


class Bare:
    """The same environment stepped without Gymnasium's vectors, TorchRL and the package."""

    def __init__(self, id: str, seed: int) -> None:
        self.gym: Any = None
        if id.startswith("dmc/"):
            # Not above: Triton, which TensorDict imports, crashes where Mesa's EGL was loaded before it.
            suite = importlib.import_module("dm_control.suite")
            self.task = suite.load(*id.removeprefix("dmc/").split("-"), task_kwargs={"random": 0})
            self.task.task.random.seed(seed)
            self.task.reset()
        else:
            self.gym = gym.make(id)
            self.gym.reset(seed=seed)

    def reset(self) -> Any:
        return self.gym.reset()[0] if self.gym else self._flat(self.task.reset())

    def step(self, action: Any) -> tuple[Any, float, bool, bool]:
        if self.gym is None:
            step = self.task.step(action)
            return self._flat(step), step.reward, step.discount == 0, step.last() and step.discount == 1
        space = self.gym.action_space
        if isinstance(space, spaces.Box):
            middle, half = (space.high + space.low) / 2.0, (space.high - space.low) / 2.0
            action = (middle + half * action).astype(np.float32)
        else:
            action = action.item()
        observation, reward, terminated, truncated, _ = self.gym.step(action)
        return observation, reward, terminated, truncated

    @staticmethod
    def _flat(step: Any) -> Any:
        return np.concatenate([np.ravel(value) for value in step.observation.values()])


@pytest.mark.parametrize(
    ("id", "frames", "end"),
    [
        ("CartPole-v1", 60, "terminated"),
        ("Pendulum-v1", 210, "truncated"),
        ("InvertedPendulum-v5", 60, "terminated"),
        ("HalfCheetah-v5", 1005, "truncated"),
        ("dmc/cartpole-balance", 1005, "truncated"),
        ("FrozenLake-v1", 60, "terminated"),
    ],
)
def test_every_transition_is_that_of_the_bare_environment(
    id: str, frames: int, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # bare MuJoCo writes a log file where it is
    env = EnvConfig(id).build(seed=7, count=2)
    steps = play(env, frames)
    env.close()
    for number, seed in enumerate(seeds(7, 2)):
        bare = Bare(id, seed)
        seen = bare.reset()
        ends = []
        for step in steps:
            one = step[number]
            assert one["observation"].tolist() == np.float32(seen).tolist()
            seen, reward, terminated, truncated = bare.step(one["action"].numpy())
            assert one["next", "observation"].tolist() == np.float32(seen).tolist()
            assert one["next", "reward"].item() == np.float32(reward)
            assert one["next", "terminated"].item() == terminated
            assert one["next", "truncated"].item() == truncated
            assert one["next", "done"].item() == (terminated or truncated)
            if terminated or truncated:
                ends.append("terminated" if terminated else "truncated")
                seen = bare.reset()
        assert end in ends


def test_a_task_that_stops_with_discount_zero_is_terminated() -> None:
    env = EnvConfig("dmc/cartpole-balance").build(seed=0)
    root = env.rand_action(env.reset())
    inner(env)[0]._env.task.get_termination = lambda physics: 0.0
    step = env.step(root)
    assert step["next", "terminated"].item() and not step["next", "truncated"].item()


@pytest.mark.parametrize("count", [1, 7])
def test_no_transition_is_lost_doubled_or_torn(count: int) -> None:
    env = EnvConfig("Counting-v0", count, plugins=["counting"]).build(seed=3)
    steps: Any = torch.stack(play(env, 100), 1).double()
    numbers = steps["observation"][:, 0, 0].tolist()
    assert len(set(numbers)) == count
    for number, rows in zip(numbers, steps, strict=True):
        episode, step = 1, 0
        for row in rows:
            assert row["observation"].tolist() == [number, episode, step]
            step += 1
            assert row["next", "observation"].tolist() == [number, episode, step]
            assert row["next", "reward"].item() == step
            done = step == counting.length(int(number), episode)
            truncated = done and counting.truncates(int(number), episode)
            assert row["next", "done"].item() == done
            assert row["next", "truncated"].item() == truncated
            assert row["next", "terminated"].item() == (done and not truncated)
            if done:
                episode, step = episode + 1, 0


def test_an_observation_is_not_overwritten_by_the_next() -> None:
    env = EnvConfig("Counting-v0", plugins=["counting"]).open()  # it reuses its array
    first = env.reset(seed=3)[0]
    second = env.step(np.zeros(1))[0]
    assert (first[2], second[2]) == (0, 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_both_ends_of_asymmetric_bounds_are_reached(register: Register, dtype: type[np.floating[Any]]) -> None:
    low, high = np.array([-3.0, 0.1, -1e6], dtype), np.array([1.0, 1000.0, 0.3], dtype)
    env = EnvConfig(register(action=spaces.Box(low, high, dtype=dtype))).build(seed=0)
    root = env.reset()
    for value in (-1.0, 1.0, 0.0, 1.0 + 1e-6):
        root["action"] = torch.full((1, 3), value)
        env.step(root)
        root = env.reset()
    lowest, highest, middle, beyond = inner(env)[0].actions
    assert lowest.dtype == dtype
    assert lowest.tolist() == low.tolist()
    assert highest.tolist() == beyond.tolist() == high.tolist()
    np.testing.assert_allclose(middle, (low.astype(np.float64) + high) / 2, rtol=1e-6)


def test_discrete_spaces_that_start_elsewhere_are_shifted(register: Register) -> None:
    env = EnvConfig(register(spaces.Discrete(3, start=-5), spaces.Discrete(4, start=2))).build(seed=0, count=2)
    steps = play(env, 60)
    seen = torch.stack([step["observation"] for step in steps])
    assert seen.dtype == torch.int64 and seen.shape == (60, 2) and set(seen.flatten().tolist()) == {0, 1, 2}
    for number in range(2):
        taken = inner(env)[number].actions
        assert taken == [int(step["action"][number]) + 2 for step in steps] and set(taken) == {2, 3, 4, 5}


def test_integer_observations_become_float32(register: Register) -> None:
    env = EnvConfig(register(spaces.Box(0, 255, (4,), np.uint8))).build(seed=0)
    seen = env.reset()["observation"]
    assert seen.dtype == torch.float32 and seen.max() > 1


def test_specs_have_no_batch_dimension(register: Register) -> None:
    vector = EnvConfig("InvertedPendulum-v5", count=5).specs()
    assert vector.observation == Unbounded(torch.Size([4]), dtype=torch.float32)
    assert vector.action == Bounded(-1, 1, torch.Size([1]), dtype=torch.float32)
    assert EnvConfig(register(BOX)).specs().observation == Unbounded(torch.Size([2]), dtype=torch.float32), "many lie"
    index = EnvConfig(register(spaces.Discrete(6), spaces.Discrete(3, start=1)), count=5).specs()
    assert index.observation == Categorical(6, dtype=torch.int64)
    assert index.action == Categorical(3, dtype=torch.int64)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "id", ["CartPole-v1", "Pendulum-v1", "InvertedPendulum-v5", "FrozenLake-v1", "dmc/cheetah-run"]
)
def test_data_agrees_with_the_specs(id: str, count: int) -> None:
    env = EnvConfig(id).build(seed=0, count=count)
    assert env.batch_size == (count,)
    check_env_specs(env)
    env.close()


@pytest.mark.parametrize(
    ("observation", "named", "advice"),
    [
        (spaces.Box(0, 255, (64, 48, 3), np.uint8), "(64, 48, 3)", "env.wrappers=[{ResizeObservation:"),
        (spaces.Box(0, 255, (4, 84, 84), np.uint8), "(4, 84, 84)", "env.wrappers=[FlattenObservation]"),
        (spaces.Box(-1, 1, (0,)), "neither numbers nor indices", "env.wrappers"),
        (spaces.Text(3), "neither numbers nor indices", "env.wrappers"),
        (spaces.Graph(BOX, BOX), "neither numbers nor indices", "env.wrappers"),
        (spaces.Sequence(BOX), "neither numbers nor indices", "env.wrappers"),
        (spaces.Dict(a=BOX, eye=spaces.Box(0, 255, (64, 64, 3), np.uint8)), "`eye`", "env.ignore=[eye]"),
        (spaces.Tuple([BOX, spaces.Text(3)]), "`1`", "env.ignore=[1]"),
        (spaces.Dict({"a/b": BOX, "a.b": BOX}), "a.b", "same name"),
    ],
)
def test_other_observation_spaces_are_refused(
    register: Register, observation: spaces.Space[Any], named: str, advice: str
) -> None:
    id = register(observation)
    with pytest.raises(ConfigError) as refusal:
        EnvConfig(id).specs()
    message = str(refusal.value)
    assert message.startswith(f"env.id={id}: ") and "\n" not in message
    assert named in message and advice in message


def test_leaves_are_seen_by_key_as_float32_and_indices_from_0(register: Register) -> None:
    nested = spaces.Dict({"b": spaces.MultiBinary(3), "c/d": spaces.MultiDiscrete([2, 4], start=[5, 6])})
    space = spaces.Dict(
        m=spaces.Box(-1, 1, (2, 3), np.float64),
        state=spaces.Discrete(3, start=-7),
        pair=spaces.Tuple([spaces.Box(0, 9, (), np.int32), nested, spaces.Text(4)]),
    )
    config = EnvConfig(register(space), ignore=["pair.2"])
    env = config.build(seed=0, count=3)
    assert config.specs().observation == env.observation_spec_unbatched["observation"]
    check_env_specs(env)
    seen = env.reset()["observation"]
    assert {name: (leaf.dtype, tuple(leaf.shape)) for name, leaf in seen.items()} == {
        "m": (torch.float32, (3, 6)),
        "state": (torch.int64, (3,)),
        "pair.0": (torch.float32, (3, 1)),
        "pair.1.b": (torch.float32, (3, 3)),
        "pair.1.c.d": (torch.int64, (3, 2)),
    }
    vector: Any = env._env
    raw = [toy.observation_space.sample() for toy in inner(env)]
    for adapter, came in zip(vector.envs, raw, strict=True):
        leaves = adapter._observed(came)
        assert leaves["m"].tolist() == came["m"].astype(np.float32).reshape(-1).tolist()
        assert leaves["state"] == came["state"] + 7
        assert leaves["pair.0"].tolist() == [float(came["pair"][0])]
        assert leaves["pair.1.b"].tolist() == came["pair"][1]["b"].tolist()
        assert leaves["pair.1.c.d"].tolist() == (came["pair"][1]["c/d"] - [5, 6]).tolist()
    env.close()


def test_a_leaf_that_cannot_be_learned_from_is_named(register: Register) -> None:
    env = EnvConfig(register(spaces.Dict(a=BOX, goal=BOX))).open()
    toy: Any = env.unwrapped
    toy.observation_space.sample = lambda: {"a": np.zeros(2, np.float32), "goal": np.array([0.0, np.nan], np.float32)}
    with pytest.raises(EnvironmentFault, match=r"with goal array\(\[ 0., nan\].*not finite at index 1"):
        env.reset()
    toy.observation_space.sample = lambda: {"a": np.zeros(2, np.float32)}
    with pytest.raises(EnvironmentFault, match="which has no goal"):
        env.reset()


@pytest.mark.parametrize(
    ("action", "problem"),
    [
        (spaces.Box(-1, 1, (2, 0)), "not empty, a Discrete, or a Dict or Tuple of these"),
        (spaces.Box(0, 9, (2,), np.int64), "floating point"),
        (spaces.Box(-np.inf, np.inf, (2,)), "env.bounds=[LOW, HIGH]"),
        (spaces.Box(np.array([0, -1], "f"), np.array([np.inf, 1], "f")), "env.bounds=[LOW, HIGH]"),
        (spaces.Box(-1e10, 1e10, (1,)), "env.bounds=[LOW, HIGH]"),
        (spaces.Box(np.array([0, 1], "f"), np.array([2, 1], "f")), "not below"),
        (spaces.Text(3), "not empty, a Discrete, or a Dict or Tuple of these"),
        (spaces.Sequence(BOX), "not empty, a Discrete, or a Dict or Tuple of these"),
    ],
)
def test_other_action_spaces_are_refused(register: Register, action: spaces.Space[Any], problem: str) -> None:
    id = register(action=action)
    with pytest.raises(ConfigError) as refusal:
        EnvConfig(id).specs()
    message = str(refusal.value)
    assert message.startswith(f"env.id={id}: the action space is {' '.join(str(action).split())}, ")
    assert problem in message and "\n" not in message


def test_integers_are_chosen_from_as_their_refusal_says(register: Register) -> None:
    id = register(action=spaces.Box(np.array([0, 2]), np.array([100, 12]), dtype=np.int16))
    with pytest.raises(ConfigError, match=r"env\.wrappers=\[\{DiscretizeAction: \{bins: 11, multidiscrete: true\}\}\]"):
        EnvConfig(id).specs()
    wrapper = {"DiscretizeAction": {"bins": 11, "multidiscrete": True}}
    assert cast(Any, EnvConfig(id, wrappers=[wrapper]).specs().action).nvec.tolist() == [11, 11]


@pytest.mark.parametrize(
    ("id", "limit"),
    [
        ("CliffWalking-v1", 7),
        ("CartPole-v1", 3),
        ("Pendulum-v1", 250),  # it is registered with 200
        ("dmc/cartpole-balance", 7),
    ],
)
def test_an_episode_is_truncated_after_as_many_steps_as_are_given(id: str, limit: int) -> None:
    steps = play(EnvConfig(id, 2, max_episode_steps=limit).build(seed=0), 2 * limit + 1)
    ends = [number for number, step in enumerate(steps, 1) if step["next", "truncated"].all()]
    assert ends == [limit, 2 * limit]
    assert not any(step["next", "terminated"].any() for step in steps)


def test_all_environments_are_closed_with_the_one_they_make(
    register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Toy] = []
    monkeypatch.setattr(Toy, "close", lambda self: closed.append(self))
    EnvConfig(register(), 3).build(seed=0).close()
    assert len(set(closed)) == 3


def test_an_environment_that_cannot_be_used_is_closed(register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Toy] = []
    monkeypatch.setattr(Toy, "close", lambda self: closed.append(self))
    with pytest.raises(ConfigError):
        EnvConfig(register(spaces.Text(3))).specs()
    assert len(closed) == 1


ONE_TO_THREE = spaces.Discrete(3, start=1)


@pytest.mark.parametrize(
    ("space", "result", "said"),
    [
        (BOX, (np.zeros(2), 0.0, False, "no", {}), "truncated='no', which is neither True nor False"),
        (ONE_TO_THREE, (0, 0.0, False, False, {}), "observation 0, which is not one of 1 to 3"),
        (ONE_TO_THREE, (4, 0.0, False, False, {}), "observation 4, which is not one of 1 to 3"),
        (ONE_TO_THREE, (1.5, 0.0, False, False, {}), "observation 1.5, which is no index"),
        (ONE_TO_THREE, (np.ones(1, int), 0.0, False, False, {}), "which is no index"),
    ],
)
def test_a_step_that_cannot_be_learned_from_is_named(space: spaces.Space[Any], result: Any, said: str) -> None:
    toy: Any = Toy(space, CHOICE)
    toy.step = lambda action: result
    with pytest.raises(EnvironmentFault, match=rf"env.id=Toy-v0 returned .*{said}, at step 1 "):
        SpaceAdapter(toy, "Toy-v0").step(0)


def test_a_reward_may_be_an_array_without_dimensions_and_infos_stay_behind() -> None:
    toy: Any = Toy(BOX, CHOICE)
    toy.reset = lambda **_: (np.zeros(2), {"info": 1})
    assert SpaceAdapter(toy, "Toy-v0").reset()[1] == {}
    toy.step = lambda action: (np.zeros(2), np.array(1.5), False, False, {"info": 1})
    assert SpaceAdapter(toy, "Toy-v0").step(0)[1:] == (1.5, False, False, {})


def test_a_wrong_reset_is_named() -> None:
    toy: Any = Toy(BOX, CHOICE)
    toy.reset = lambda **_: np.zeros(2)
    with pytest.raises(EnvironmentFault, match=r"returned array.* when it was reset, not \(observation, info\)"):
        SpaceAdapter(toy, "Toy-v0").reset()
    toy.reset = lambda **_: 1 / 0
    with pytest.raises(EnvironmentFault, match=r"ZeroDivisionError: .* \(test_envs.py:\d+\) when it was reset"):
        SpaceAdapter(toy, "Toy-v0").reset()


def test_an_index_that_is_no_action_never_reaches_the_environment() -> None:
    toy = Toy(BOX, spaces.Discrete(3, start=1))
    for wrong in (-1, 3):
        with pytest.raises(LearnerFault, match=f"the action {wrong} .* is not one of 0 to 2"):
            SpaceAdapter(toy, "Toy-v0").step(wrong)
    assert toy.actions == []


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (EnvConfig("Pendulum"), ["env.id=Pendulum ", "Pendulum-v1", "env.plugins"]),
        (EnvConfig("halfcheetah-v5"), ["HalfCheetah-v5"]),
        (EnvConfig("HalfCheetah-v3"), ["gymnasium-robotics"]),
        (EnvConfig("nothing like it"), ["env.plugins"]),
        (EnvConfig("no_such_module:Thing-v0"), ["no_such_module", "PYTHONPATH"]),
        (EnvConfig("dmc/chetah-run"), ["dmc/cheetah-run"]),
        (EnvConfig("dmc/cheetah"), ["dmc/cheetah-run"]),
        (EnvConfig(plugins=["no_such_module"]), ["no_such_module", "PYTHONPATH"]),
        (EnvConfig(count=0), ["env.count=0"]),
    ],
)
def test_a_wrong_config_is_refused_in_one_line(plan: EnvConfig, words: list[str]) -> None:
    with pytest.raises(ConfigError) as refusal:
        plan.specs()
    message = str(refusal.value)
    assert all(word in message for word in words) and "\n" not in message


def test_a_missing_package_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dm_control", None)
    with pytest.raises(ConfigError, match=r"pip install 'sac_torchrl\[dmc\]'"):
        EnvConfig("dmc/cheetah-run").specs()
    monkeypatch.setitem(sys.modules, "Box2D", None)
    monkeypatch.delitem(sys.modules, "gymnasium.envs.box2d", raising=False)
    monkeypatch.delitem(sys.modules, "gymnasium.envs.box2d.lunar_lander", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'sac_torchrl\[box2d\]'"):
        EnvConfig("LunarLander-v3").specs()
    gym.register("Wanting-v0", "absent_simulator.envs:Wanting")
    with pytest.raises(ConfigError, match=r"No module named 'absent_simulator'.*: pip install 'absent_simulator', or"):
        EnvConfig("Wanting-v0").specs()


@pytest.mark.parametrize("id", ["Pendulum-v1", "CartPole-v1", "dmc/cartpole-swingup"])
def test_seeds_are_reproducible_and_not_shared(id: str) -> None:
    first, again = (play(EnvConfig(id).build(seed=0, count=3), 30) for _ in range(2))
    assert all((one == same).all() for one, same in zip(first, again, strict=True))
    other = play(EnvConfig(id).build(seed=1, count=3), 30)
    starts = [tuple(start) for steps in (first, other) for start in steps[0]["observation"].tolist()]
    assert len(set(starts)) == 6


def test_resets_continue_the_environments_own_generator() -> None:
    env = EnvConfig("Pendulum-v1").build(seed=0)
    starts = [env.reset()["observation"].tolist() for _ in range(3)]
    assert starts[0] != starts[1] != starts[2]
    env.set_seed(0)
    assert [env.reset()["observation"].tolist() for _ in range(3)] == starts


def test_opening_leaves_no_words_and_no_files(tmp_path: Path) -> None:
    program = (
        "from sac_torchrl.envs.config import EnvConfig\n"
        "for id in ('HalfCheetah-v5', 'HalfCheetah-v4', 'dmc/cheetah-run'): EnvConfig(id).specs()\n"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (run.stdout, run.stderr) == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [3, 1000, 1004])
def test_a_limit_takes_the_place_of_that_of_a_deepmind_control_task(limit: int) -> None:
    """Also a longer one: these have 1,000 steps."""
    env = EnvConfig("dmc/cartpole-balance", max_episode_steps=limit).open()
    env.reset(seed=0)
    ends = [env.step(np.zeros(1, np.float32))[2:4] for _ in range(limit)]
    assert ends == [(False, False)] * (limit - 1) + [(False, True)]
    env.close()
