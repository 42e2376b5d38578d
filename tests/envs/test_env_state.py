from collections import deque
from pathlib import Path
from typing import Any, cast

import faulty  # noqa: F401 - registers
import gymnasium as gym
import numpy as np
import pytest
import torch
from bits import play, through_json
from gymnasium.spaces import Box
from tensordict import TensorDictBase
from torchrl.envs import EnvBase, StepCounter, TransformedEnv
from torchrl.envs.custom.pendulum import PendulumEnv

from sac_torchrl import EnvConfig
from sac_torchrl.envs.state import capture, restore


@pytest.mark.parametrize(
    "id",
    [
        "Pendulum-v1",
        "Acrobot-v1",
        "MountainCar-v0",
        "FrozenLake-v1",
        "CliffWalking-v1",
        "HalfCheetah-v5",
        "Ant-v5",
        "Humanoid-v5",
        "Pusher-v5",
        "dmc/reacher-easy",  # moves its target in the model
        "dmc/walker-walk",
        "Own-v0",
    ],
)
def test_an_environment_continues_bit_for_bit_from_the_middle_of_an_episode(id: str) -> None:
    plan = EnvConfig(id, 2)
    env = plan.build(seed=3)
    root = env.reset()
    torch.manual_seed(0)
    actions = [env.rand_action(root.clone())["action"].clone() for _ in range(300)]
    _, root = play(env, root, actions[:37])
    state, running = through_json(capture(env)), root.clone()
    expected, _ = play(env, root, actions[37:])
    other = plan.build(seed=9)
    play(other, other.reset(), actions[:11])
    restore(other, state)
    found, _ = play(other, running, actions[37:])
    assert found[0] == expected[0], "the first transition"
    assert found == expected


def test_contacts_and_options_of_a_simulation_are_there_before_the_next_step() -> None:
    env, other = (EnvConfig("HalfCheetah-v5").build(seed=seed) for seed in (3, 9))
    one, two = (cast(Any, each)._env.envs[0].unwrapped for each in (env, other))
    root = env.reset()
    while one.data.ncon == 0:
        _, root = play(env, root, [torch.zeros(1, 6)])
    one.model.opt.gravity[2] = -3.0
    other.reset()
    two.set_state(two.init_qpos + 5 * np.eye(9)[1], two.init_qvel)
    assert two.data.ncon == 0, "it flies"
    restore(other, through_json(capture(env)))
    assert two.data.ncon > 0
    assert two.model.opt.gravity.tolist() == [0, 0, -3]


def test_a_tensor_environment_continues_with_its_own_generator() -> None:
    def build() -> EnvBase:
        return TransformedEnv(PendulumEnv(seed=1), StepCounter(max_steps=7))  # type: ignore[no-untyped-call]

    env = build()
    root = env.reset()
    actions = [torch.tensor([0.1 * number]) for number in range(20)]

    def roll(env: EnvBase, root: TensorDictBase) -> list[float]:
        angles = []
        for action in actions:
            root["action"] = action
            step, root = env.step_and_maybe_reset(root)
            angles.append(float(step["next", "th"]))
        return angles

    for action in actions[:3]:
        root["action"] = action
        _, root = env.step_and_maybe_reset(root)
    state, running = through_json(capture(env)), root.clone()
    expected = roll(env, root)
    other = build()
    other.reset()
    restore(other, state)
    assert roll(other, running) == expected


class Cupboard(gym.Env[Any, Any]):
    """Holds a value of every kind that is kept."""

    def __init__(self) -> None:
        self.observation_space = self.action_space = Box(-1.0, 1.0, (1,), np.float32)
        self.kinds: dict[Any, Any] = {}
        self.array = np.zeros(3)
        self.view = self.array[:2]


def test_every_kind_of_value_keeps_its_type_and_arrays_their_views() -> None:
    plan = EnvConfig("Cupboard-v0")
    gym.register("Cupboard-v0", cast(Any, Cupboard))
    try:
        env, other = (plan.build() for _ in range(2))
    finally:
        del gym.registry["Cupboard-v0"]
    one, two = (cast(Any, each)._env.envs[0].unwrapped for each in (env, other))
    one.kinds = {
        (1, "a"): [None, True, 2**70, float("inf"), "text", b"raw"],
        3: {np.float32(0.1), 2},
        "queue": deque([np.int8(3), (1.5, [])], maxlen=4),
        "words": np.array(["left", "right"]),
    }
    one.array[:] = 1, 2, 3
    restore(other, through_json(capture(env)))
    assert repr(two.kinds) == repr(one.kinds)
    assert two.kinds["words"].dtype == one.kinds["words"].dtype
    two.array[0] = 9
    assert two.view.tolist() == [9, 2]


def test_what_cannot_be_read_is_named() -> None:
    assert capture(EnvConfig("Opaque-v0").build())["missing"] == ["Opaque._socket is a faulty.Handle"]


def test_the_state_of_another_environment_is_refused(tmp_path: Path) -> None:
    state = capture(EnvConfig("Pendulum-v1", 2).build(seed=0))
    with pytest.raises(ValueError, match="2 environments were saved and there are 1"):
        restore(EnvConfig("Pendulum-v1", 1).build(seed=0), state)
    with pytest.raises(ValueError, match=r"PendulumEnv.*Sound"):
        restore(EnvConfig("Sound-v0", 2).build(seed=0), state)


@pytest.mark.parametrize("id", ["Pendulum-v1", "CartPole-v1"])
def test_the_edge_of_an_environment_keeps_what_it_saves(id: str) -> None:
    """Another attribute changes the digest of every run."""
    [layers] = capture(EnvConfig(id).build(seed=0))["envs"]
    [saved] = [layer["attributes"] for layer in layers if layer["class"] == "SpaceAdapter"]
    assert saved.keys() == {"_cached_spec", "_id", "_steps"}
