import importlib
import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import counting
import gymnasium as gym
import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded
from torchrl.envs.utils import check_env_specs

from sac_torchrl import (
    SAC,
    Async,
    Direct,
    EnvConfig,
    LearnerConfig,
    NetworkConfig,
    Processes,
    Ray,
    ReplayConfig,
    ReplayRatio,
    SacError,
    Storage,
    evaluate,
    tanh_normal_actor,
)
from sac_torchrl.collectors.config import CollectorConfig
from sac_torchrl.envs.classic import TORCH
from sac_torchrl.envs.state import capture, restore
from sac_torchrl.envs.tensors import TensorEnv
from sac_torchrl.trees import decode, encode

CPU = torch.device("cpu")
BRAX = pytest.mark.skipif(importlib.util.find_spec("brax") is None, reason="needs brax")
PLAYGROUND = pytest.mark.skipif(importlib.util.find_spec("mujoco_playground") is None, reason="needs playground")


@pytest.mark.parametrize("id", [f"torch/{name}" for name in TORCH])
def test_specs_are_what_the_simulator_gives(id: str) -> None:
    env = EnvConfig(id, 5).build(seed=1)
    assert env.batch_size == (5,)
    check_env_specs(env)


@pytest.mark.parametrize(
    ("name", "id", "goal"),  # what a state shortly before the end of an episode is, where chance does not lead there
    [
        ("pendulum", "Pendulum-v1", None),
        ("cartpole", "CartPole-v1", None),
        ("acrobot", "Acrobot-v1", [2.0, 0.0, 2.5, 1.0]),
        ("mountain_car", "MountainCar-v0", [0.3, 0.065]),
        ("mountain_car_continuous", "MountainCarContinuous-v0", [0.3, 0.065]),
    ],
)
def test_dynamics_are_gymnasiums(name: str, id: str, goal: list[float] | None) -> None:
    count, steps = 3, 30
    ours: Any = TORCH[name](count, CPU)
    ours.set_seed(4)
    ours.reset()
    if goal is not None:
        ours._state[0] = torch.tensor(goal)
    theirs: list[Any] = [gym.make(id).unwrapped for _ in range(count)]
    for env, state in zip(theirs, ours._state, strict=True):
        env.reset()
        env.state = state.double().numpy()
    rng = np.random.default_rng(0)
    running, compared = np.ones(count, bool), 0
    discrete = isinstance(theirs[0].action_space, gym.spaces.Discrete)
    for _ in range(steps):
        actions = rng.integers(theirs[0].action_space.n, size=count) if discrete else rng.uniform(-1, 1, (count, 1))
        given = torch.as_tensor(actions, dtype=torch.int64 if discrete else torch.float32)
        observation, reward, terminated = ours.advance(given)
        for number in np.flatnonzero(running):
            action = actions[number] if discrete else theirs[number].action_space.high * actions[number]
            seen, gained, ended, _, _ = theirs[number].step(action)
            assert observation[number].numpy() == pytest.approx(seen, abs=5e-4)
            assert reward[number].item() == pytest.approx(gained, abs=2e-4)
            assert terminated[number].item() == ended
            running[number] = not ended
            compared += 1
    assert compared > 20
    assert goal is None or not running[0]


def test_a_quadrotor_flies_as_its_equations_say() -> None:
    """Against a thousandth of the step in float64, with thrust and gravity as complex numbers."""
    count, substeps = 8, 1000
    env: Any = TORCH["quadrotor"](count, CPU)
    env.set_seed(4)
    env.reset()
    x, y, angle, *speeds = env._state.double().numpy().T
    place, speed, turning = x + 1j * y, speeds[0] + 1j * speeds[1], speeds[2]
    rng = np.random.default_rng(0)
    for _ in range(10):
        action = rng.uniform(-1, 1, (count, 2)).astype(np.float32)
        seen, reward, terminated = env.advance(torch.as_tensor(action))
        thrusts, small = 0.486 * 9.81 / 2 * (1 + action.astype(np.float64)), 0.02 / substeps
        torque = 0.25 * (thrusts[:, 0] - thrusts[:, 1]) / 0.00383
        for _ in range(substeps):
            faster = thrusts.sum(1) / 0.486 * 1j * np.exp(1j * (angle + small / 2 * turning)) - 9.81j
            place, angle = place + small * (speed + small / 2 * faster), angle + small * (turning + small / 2 * torque)
            speed, turning = speed + small * faster, turning + small * torque
        expected = [place.real, place.imag, np.cos(angle), np.sin(angle), speed.real, speed.imag, turning]
        assert seen.numpy() == pytest.approx(np.stack(expected, -1), abs=2e-3)
        assert reward.numpy() == pytest.approx(np.exp(-(abs(place) ** 2)) * np.cos(angle / 2) ** 2, abs=2e-3)
        assert not terminated.any()
    env._state[0, :2], env._state[1, :2] = torch.tensor([3.5, 0.0]), torch.tensor([0.0, -3.5])
    assert env.advance(torch.zeros(count, 2))[2].tolist() == [True, True] + [False] * (count - 2)


class Clock(TensorEnv):
    """Observes (environment, episode, step); ends as the other counting environment does, if within 7 steps."""

    def __init__(self, count: int) -> None:
        super().__init__(count, CPU, observed=3, action_spec=Bounded(-1.0, 1.0, torch.Size([1])), limit=7)
        self.state = torch.stack([torch.arange(count), torch.zeros(count), torch.zeros(count)], -1)

    def begin(self, mask: torch.Tensor) -> torch.Tensor:
        fresh = self.state + torch.tensor([0, 1, 0])
        fresh[:, 2] = 0
        self.state = torch.where(mask.unsqueeze(-1), fresh, self.state)
        return self.state

    def advance(self, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        self.state = self.state + torch.tensor([0, 0, 1])
        number, episode, step = self.state.unbind(-1)
        return self.state, step, step == 1 + (4 * number + 5 * episode) % 9


@pytest.mark.parametrize("count", [1, 3, 16])
def test_every_transition_of_a_simulator_is_there_once(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = EnvConfig("torch/pendulum", count)
    specs = plan.specs()
    monkeypatch.setattr(EnvConfig, "build", lambda self, **_: Clock(count))
    buffer = ReplayConfig(storage=Storage.device).build(
        Path(), specs, rows=30 * count, batch_size=1, seed=0, device=CPU
    )
    actor = tanh_normal_actor(torch.nn.Linear(3, 2), specs)
    experience = Direct().build(
        plan, actor, buffer, specs=specs, total_frames=30 * count, random_frames=15 * count, seed=0
    )
    assert list(experience) == [count] * 30
    rows = buffer.storage[:]
    assert counting.check(rows, environments=count, limit=7) == set(range(count))
    steps = rows["next", "observation"][:, 2]
    lengths = steps[rows["next", "terminated"][:, 0] | (steps == 7)]
    assert experience.metrics()["train/length"] == pytest.approx(lengths.double().mean().item())


def train(env: EnvConfig, *, steps: int, updates_per_step: float, lr: float = 3e-3) -> float:
    torch.manual_seed(0)
    specs, frames = env.specs(), steps * env.count
    agent = SAC(network=NetworkConfig([64, 64]), gamma=0.97, alpha=0.1, tau=0.02).build(specs, device=CPU)
    learner = LearnerConfig(lr=lr).build(agent)
    buffer = ReplayConfig(storage=Storage.device).build(Path(), specs, rows=frames, batch_size=256, seed=1, device=CPU)
    experience = Direct().build(
        env, agent.actor, buffer, specs=specs, total_frames=frames, random_frames=2 * env.count, seed=2
    )
    replay_ratio = ReplayRatio(updates_per_step / env.count, after=2 * env.count)
    for new_frames in experience:
        for _ in range(replay_ratio.due(new_frames)):
            learner.update(buffer.sample())
    return evaluate(agent.actor, env.build(count=64), episodes=64, seed=3).mean


def test_thousands_of_pendulums_train_in_seconds() -> None:
    assert train(EnvConfig("torch/pendulum", 4096), steps=200, updates_per_step=8) > -300


@BRAX
def test_a_brax_task_trains() -> None:
    env = EnvConfig("brax/inverted_pendulum", 64)
    check_env_specs(env.build(seed=1))
    # A pole that is left alone, or pushed at random, falls within ten steps or so.
    assert train(env, steps=200, updates_per_step=4) > 30


def module(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on import: what Playground stands on deprecates itself
        return importlib.import_module(name)


class State(NamedTuple):
    obs: Any
    reward: Any
    done: Any
    episode: Any
    step: Any

    def replace(self, **parts: Any) -> "State":
        return self._replace(**parts)


class JaxClock:
    """Observes (start drawn at random, step), and more for critics; ends after 1 to 9 steps by itself."""

    action_size = 2

    def __init__(self, config: Any, config_overrides: Any = None) -> None:
        self._dictionary = config.get("dictionary", "state")

    def _at(self, start: Any, step: Any, *, reward: Any, done: Any) -> State:
        numpy = module("jax.numpy")
        seen = {self._dictionary: numpy.stack([start, step]), "privileged_state": numpy.zeros(7)}
        return State(seen, reward, done, start, step)

    def reset(self, key: Any) -> State:
        start, zero = module("jax.random").uniform(key), module("jax.numpy").zeros(())
        return self._at(start, zero, reward=zero, done=zero)

    def step(self, state: State, action: Any) -> State:
        step = state.step + 1
        done = module("jax.numpy").where(step >= 1 + (state.episode * 9).astype(int), 1.0, 0.0)  # of JAX's weak type
        return self._at(state.episode, step, reward=step + action.sum(), done=done)


@pytest.fixture
def clocks() -> None:
    suite: Any = module("mujoco_playground").dm_control_suite
    configuration: Any = module("ml_collections").config_dict
    usual: dict[str, Any] = {"episode_length": 7, "action_repeat": 1, "impl": "warp"}
    settings: dict[str, dict[str, Any]] = {
        "Clock": {},
        "Twice": {"action_repeat": 2},
        "Pixels": {"dictionary": "pixels/view_0"},
    }
    for name, other in settings.items():
        config = configuration.create(**(usual | other))
        suite.register_environment(name, JaxClock, lambda config=config: config)


@PLAYGROUND
@pytest.mark.usefixtures("clocks")
def test_every_transition_of_jax_is_there_once() -> None:
    count, steps = 5, 40
    env: Any = EnvConfig("playground/Clock", count).build(seed=1)
    now = env.reset()["observation"]
    assert now.shape == (count, 2) and len(now[:, 0].unique()) == count and not now[:, 1].any()
    lengths = set()
    for _ in range(steps):
        action = env.action_spec.rand()
        step = env._step(TensorDict({"action": 3 * action}, [count]))
        starts, at = now.unbind(-1)
        torch.testing.assert_close(step["observation"], torch.stack([starts, at + 1], -1))
        torch.testing.assert_close(step["reward"][:, 0], at + 1 + (3 * action).clamp(-1, 1).sum(-1))
        assert (step["terminated"][:, 0] == (at + 1 >= 1 + (9 * starts).int())).all()
        assert (step["truncated"][:, 0] == (at + 1 == 7)).all()
        ended = step["done"][:, 0]
        lengths |= set(at[ended].int().tolist())
        now = env._reset(TensorDict({"_reset": step["done"]}, [count]))["observation"]
        assert (now[~ended] == step["observation"][~ended]).all()
        assert not now[ended][:, 1].any() and (now[ended][:, 0] != starts[ended]).all()
    assert lengths > {1, 6}
    assert env._start._cache_size() == env._advance._cache_size() == 1  # what took long was compiled once


@PLAYGROUND
@pytest.mark.usefixtures("clocks")
def test_an_action_lasts_as_long_as_the_task_says() -> None:
    env: Any = EnvConfig("playground/Twice", 1).build(seed=1)
    env.reset()
    step = env._step(TensorDict({"action": torch.zeros(1, 2)}, [1]))
    assert step["reward"].item() == 1 + 2 and step["observation"][0, 1] == 2
    assert env.limit == 4


@PLAYGROUND
@pytest.mark.usefixtures("clocks")
def test_an_observation_without_a_vector_is_refused() -> None:
    with pytest.raises(SacError, match=r"playground/Pixels has observations \['pixels/view_0', 'privileged_state'\]"):
        EnvConfig("playground/Pixels").specs()


@PLAYGROUND
def test_robots_are_not_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inner = module("mujoco_playground._src.mjx_env")
    monkeypatch.setattr(inner, "MENAGERIE_PATH", tmp_path / "nothing")
    monkeypatch.setattr(inner, "ensure_menagerie_exists", lambda: pytest.fail("it would download"))
    with pytest.raises(SacError, match=r"needs robots.*ensure_menagerie_exists"):
        EnvConfig("playground/Go1JoystickFlatTerrain").specs()


@PLAYGROUND
def test_playgrounds_physics_is_mujocos() -> None:
    count, steps = 3, 100
    mujoco = module("mujoco")
    env: Any = EnvConfig("playground/PendulumSwingup", count).build(seed=2)
    seen = env.reset()["observation"]
    assert len(seen[:, 0].unique()) == count
    suite = module("mujoco_playground").dm_control_suite
    task = suite.load("PendulumSwingup", config_overrides={"impl": "jax"})
    model = task.mj_model
    theirs = [mujoco.MjData(model) for _ in range(count)]
    for data, (sine, cosine, speed) in zip(theirs, seen.tolist(), strict=True):
        data.qpos, data.qvel = np.arctan2(sine, cosine), speed
    torch.manual_seed(0)
    for _ in range(steps):
        action = env.action_spec.rand()
        seen = env._step(TensorDict({"action": action}, [count]))["observation"]
        for number, data in enumerate(theirs):
            data.ctrl = action[number].numpy()
            mujoco.mj_step(model, data, task.n_substeps)
            turned = data.body("pole").xmat.reshape(3, 3)
            expected = [turned[0, 2], turned[2, 2], data.qvel[0]]
            assert seen[number].tolist() == pytest.approx(expected, abs=1e-3)
    assert env.limit == 1000
    first, again, other = (
        EnvConfig("playground/PendulumSwingup", count).build(seed=seed).reset() for seed in (2, 2, 3)
    )
    assert torch.equal(first["observation"], again["observation"])
    assert not torch.equal(first["observation"], other["observation"])


@pytest.mark.parametrize(
    ("id", "count"),  # those of the other tests: compiled once
    [
        ("torch/pendulum", 3),
        ("torch/cartpole", 3),
        ("torch/acrobot", 3),
        ("torch/mountain_car", 3),
        ("torch/quadrotor", 3),
        pytest.param("brax/inverted_pendulum", 64, marks=BRAX),
        pytest.param("playground/PendulumSwingup", 3, marks=PLAYGROUND),
    ],
)
def test_a_simulation_continues_bit_for_bit_from_the_middle_of_its_episodes(id: str, count: int) -> None:
    def play(env: Any, steps: int) -> list[bytes]:
        seen = []
        for _ in range(steps):
            step = env._step(TensorDict({"action": env.action_spec.rand()}, env.batch_size))
            following = env._reset(TensorDict({"_reset": step["done"]}, env.batch_size))["observation"]
            tensors = (step["observation"], step["reward"], step["done"], following)
            seen.append(b"".join(tensor.numpy().tobytes() for tensor in tensors))
        return seen

    env, other = (EnvConfig(id, count).build(seed=seed) for seed in (1, 2))
    for one in (env, other):
        one.reset()
        play(one, 17)
    skeleton, tensors = encode(capture(env))
    state = decode(json.loads(json.dumps(skeleton)), {name: tensor.clone() for name, tensor in tensors.items()})
    torch.manual_seed(0)
    expected = play(env, 60)
    restore(other, state)
    torch.manual_seed(0)
    assert play(other, 60) == expected
    if not id.startswith("torch/"):
        with pytest.raises((ValueError, RuntimeError), match="bytes of physics"):
            restore(EnvConfig(id, 2).build(), state)


@pytest.mark.parametrize("collector", [Processes(), Async(), Ray()])
def test_workers_refuse_a_batch_of_tensors(collector: CollectorConfig) -> None:
    with pytest.raises(SacError, match="use collector=direct"):
        collector.build(
            EnvConfig("torch/pendulum", 2),
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            specs=EnvConfig("torch/pendulum").specs(),
            total_frames=1,
            random_frames=0,
            seed=0,
        )


@pytest.mark.parametrize(
    ("id", "advice"),
    [
        ("torch/pendulums", "torch/pendulum"),
        ("torch/nothing", "not a tensor"),
        pytest.param("brax/inverted_pendulm", "did you mean brax/inverted_pendulum", marks=BRAX),
        pytest.param("playground/CheetaRun", "did you mean playground/CheetahRun", marks=PLAYGROUND),
    ],
)
def test_a_wrong_name_is_answered(id: str, advice: str) -> None:
    with pytest.raises(SacError, match=advice):
        EnvConfig(id).specs()
