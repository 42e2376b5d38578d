import importlib.util
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from torchrl.data import Bounded
from torchrl.envs.utils import check_env_specs

from sac_torchrl import (
    SAC,
    Async,
    Direct,
    Env,
    Learning,
    Network,
    Processes,
    Replay,
    ReplayRatio,
    SacError,
    Storage,
    evaluate,
    tanh_normal_actor,
)
from sac_torchrl.collectors import Collecting
from sac_torchrl.simulators import CartPole, Pendulum, Simulator

CPU = torch.device("cpu")
BRAX = pytest.mark.skipif(importlib.util.find_spec("brax") is None, reason="needs brax")


@pytest.mark.parametrize("id", ["torch/pendulum", "torch/cartpole"])
def test_specs_are_what_the_simulator_gives(id: str) -> None:
    env = Env(id, 5).build(seed=1)
    assert env.batch_size == (5,)
    check_env_specs(env)


@pytest.mark.parametrize(("simulator", "id"), [(Pendulum, "Pendulum-v1"), (CartPole, "CartPole-v1")])
def test_dynamics_are_gymnasiums(simulator: type[Simulator], id: str) -> None:
    count, steps = 3, 30
    ours = simulator(count, CPU)  # type: ignore[call-arg]  # those of the tasks take no more
    ours.set_seed(4)
    observation = ours.reset()["observation"]
    theirs = [gym.make(id).unwrapped for _ in range(count)]
    for env, state in zip(theirs, ours._state, strict=True):  # type: ignore[arg-type]
        env.reset()
        env.state = state.double().numpy()  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    running, compared = np.ones(count, bool), 0
    for _ in range(steps):
        actions = rng.integers(2, size=count) if id == "CartPole-v1" else rng.uniform(-1, 1, (count, 1))
        given = torch.as_tensor(actions, dtype=torch.int64 if id == "CartPole-v1" else torch.float32)
        observation, reward, terminated = ours.advance(given)
        for number in np.flatnonzero(running):
            action = actions[number] if id == "CartPole-v1" else 2 * actions[number]
            seen, gained, fell, _, _ = theirs[number].step(action)
            assert observation[number].numpy() == pytest.approx(seen, abs=2e-4)
            assert reward[number].item() == pytest.approx(gained, abs=2e-4)
            assert terminated[number].item() == fell
            running[number] = not fell
            compared += 1
    assert compared > 20


class Clock(Simulator):
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
        return self.state, step, step == 1 + (3 * number + 5 * episode) % 9


@pytest.mark.parametrize("count", [1, 3, 16])
def test_every_transition_of_a_simulator_is_there_once(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Env("torch/pendulum", count)
    specs = plan.specs()
    monkeypatch.setattr(Env, "build", lambda self, **_: Clock(count))
    buffer = Replay(storage=Storage.device).build(Path(), specs, rows=30 * count, batch_size=1, seed=0, device=CPU)
    actor = tanh_normal_actor(torch.nn.Linear(3, 2), specs)
    experience = Direct().build(
        plan, actor, buffer, specs=specs, total_frames=30 * count, random_frames=15 * count, seed=0
    )
    assert list(experience) == [count] * 30
    at = dict.fromkeys(range(count), (1, 0))
    lengths = []
    for row in buffer.storage[:]:
        number, episode, step = row["observation"].int().tolist()
        assert (episode, step) == at[number]
        assert row["next", "observation"].int().tolist() == [number, episode, step + 1]
        terminated = step + 1 == 1 + (3 * number + 5 * episode) % 9
        assert row["next", "terminated"].item() == terminated
        done = terminated or step + 1 == 7
        lengths += [step + 1] if done else []
        at[number] = (episode + 1, 0) if done else (episode, step + 1)
    assert experience.metrics()["train/length"] == pytest.approx(np.mean(lengths))


def train(env: Env, *, steps: int, updates_per_step: float, lr: float = 3e-3) -> float:
    torch.manual_seed(0)
    specs, frames = env.specs(), steps * env.count
    agent = SAC(network=Network([64, 64]), gamma=0.97, alpha=0.1, tau=0.02).build(specs, device=CPU)
    learner = Learning(lr=lr).build(agent)
    buffer = Replay(storage=Storage.device).build(Path(), specs, rows=frames, batch_size=256, seed=1, device=CPU)
    experience = Direct().build(
        env, agent.actor, buffer, specs=specs, total_frames=frames, random_frames=2 * env.count, seed=2
    )
    replay_ratio = ReplayRatio(updates_per_step / env.count, after=2 * env.count)
    for new_frames in experience:
        for _ in range(replay_ratio.due(new_frames)):
            learner.update(buffer.sample())
    return evaluate(agent.actor, env.build(count=64), episodes=64, seed=3).mean


def test_thousands_of_pendulums_train_in_seconds() -> None:
    assert train(Env("torch/pendulum", 4096), steps=200, updates_per_step=8) > -300


@BRAX
def test_a_brax_task_trains() -> None:
    env = Env("brax/inverted_pendulum", 64)
    check_env_specs(env.build(seed=1))
    # A pole that is left alone, or pushed at random, falls within ten steps or so.
    assert train(env, steps=200, updates_per_step=4) > 30


@pytest.mark.parametrize("collector", [Processes(), Async()])
def test_workers_refuse_a_batch_of_tensors(collector: Collecting) -> None:
    with pytest.raises(SacError, match="use collector=direct"):
        collector.build(
            Env("torch/pendulum", 2),
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            specs=Env("torch/pendulum").specs(),
            total_frames=1,
            random_frames=0,
            seed=0,
        )


@pytest.mark.parametrize(("id", "advice"), [("torch/pendulums", "torch/pendulum"), ("torch/nothing", "not a tensor")])
def test_a_wrong_name_is_answered(id: str, advice: str) -> None:
    with pytest.raises(SacError, match=advice):
        Env(id).specs()
