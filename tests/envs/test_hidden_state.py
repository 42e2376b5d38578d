"""State that an environment keeps in unusual places goes through a checkpoint too."""

import enum
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
import pytest
import torch
from bits import play, through_json
from faulty import Pointer
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.wrappers import NormalizeObservation, NormalizeReward

from sac_torchrl import EnvConfig
from sac_torchrl.envs.findings import Kind
from sac_torchrl.envs.resume_check import resume_finding
from sac_torchrl.envs.state import capture, restore

episodes_of_all = 0


class Base(gym.Env[Any, Any]):
    """Observes `seen()`, which grows with everything that happened before."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, render_mode: str | None = None) -> None:
        self.time = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return self._observed(), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        return self._observed(), 1.0, False, self.time >= 5, {}

    def _observed(self) -> Any:
        return np.array([self.time, self.seen()], np.float32)

    def seen(self) -> float:
        raise NotImplementedError


class Inside(Base):
    """Another environment under a name of its own, which draws and counts."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.simulator = gym.make("Pendulum-v1")
        self.simulator.reset(seed=1)

    def seen(self) -> float:
        if self.time == 0:
            self.simulator.reset()
        return float(self.simulator.step(np.zeros(1, np.float32))[0].sum())


class Module(Base):
    """A global variable of its module."""

    def seen(self) -> float:
        global episodes_of_all
        episodes_of_all += self.time == 0
        return episodes_of_all


class ClassHistory(Base):
    """A list in the class, which grows in place."""

    history: list[int] = []  # noqa: RUF012 - on purpose

    def seen(self) -> float:
        self.history.append(self.time)
        return float(sum(self.history))


class Slots:
    """Nothing in `__dict__`."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Slotted(Base):
    """An object with slots, under a name that looks like a description."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.metadata = {"slots": cast(Any, Slots())}

    def seen(self) -> float:
        self.metadata["slots"].count += 1
        return float(self.metadata["slots"].count)


def counting() -> Callable[[], int]:
    """A function that counts its calls in a variable it closes over."""
    calls = 0

    def call() -> int:
        nonlocal calls
        calls += 1
        return calls

    return call


class Closing(Base):
    """A closure."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.count = counting()

    def seen(self) -> float:
        return self.count()


class PartSpace(Base):
    """Draws from a part of a space of its own, which its first reset seeds."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.goals = Dict(goal=Discrete(10**6), size=Box(0.0, 1.0, (1,), np.float64))
        self.goals.seed(4)

    def seen(self) -> float:
        return float(self.goals["goal"].sample() + self.goals["size"].sample()[0])


class Mood(enum.Enum):
    calm = 1
    wild = 2


class Place(NamedTuple):
    row: int
    column: int


@dataclass(frozen=True)
class Direction:
    step: int


LEFT, RIGHT = Direction(-1), Direction(1)


class Enemy:
    """One of a number that grows."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.mood = Mood.calm
        self.direction = LEFT


class Enemies(Base):
    """Objects in a list, one of them under a second name; a method that changes; counters of several kinds."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.enemies: list[Enemy] = []
        self.chosen: Enemy | None = None
        self.seen_at: defaultdict[int, int] = defaultdict(int)
        self.moods: Counter[Mood] = Counter()
        self.move: Callable[[], int] = self.slow

    def slow(self) -> int:
        return 1

    def fast(self) -> int:
        return 100

    def seen(self) -> float:
        if self.time % 2:
            self.enemies.append(Enemy(Place(self.time, len(self.enemies))))
            self.chosen = self.enemies[len(self.enemies) // 2]
            self.move = self.fast if len(self.enemies) % 3 else self.slow
        if self.chosen is not None:
            self.chosen.mood, self.chosen.direction = Mood.wild, RIGHT
        self.seen_at[self.time] += self.move()
        self.moods.update(one.mood for one in self.enemies)
        places = sum(one.place.column * one.direction.step for one in self.enemies)
        return float(places + sum(self.seen_at.values()) + self.moods[Mood.wild])


MAPS = [np.zeros(3), np.ones(3)]


class Maps(Base):
    """One of two constant arrays, and a copy which was the same array when the episode began."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.rounds = 0

    def seen(self) -> float:
        if self.time == 0:
            self.rounds += 1
            self.map = MAPS[self.rounds % 2]
            self.place = self.before = np.zeros(2)
        self.before, self.place = self.place, self.place + self.time
        return float(self.map.sum() + 10 * self.before.sum() + 1000 * self.place.sum() + 7 * MAPS[0].sum())


class Partly(Base):
    """Counts episodes beside something that cannot be read."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.handle, self.rounds = Pointer(), 0

    def seen(self) -> float:
        self.rounds += self.time == 0
        return self.rounds


def _counted(self: Any) -> float:
    self.count += 1
    return float(self.count)


class Bound(Base):
    """Holds a method that its class does not have, as distributions of SciPy do."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.count, self.counted = 0, MethodType(_counted, self)

    def seen(self) -> float:
        return float(self.counted())


class Locked(Partly):
    """A lock in the class, which nothing assigns, is no state."""

    lock = threading.Lock()

    def __init__(self, render_mode: str | None = None) -> None:
        Base.__init__(self)
        self.rounds = 0


HIDING = [Inside, Module, ClassHistory, Slotted, Closing, PartSpace, Enemies, Maps, Partly, Bound, Locked]
for _class in HIDING:
    gym.register(f"{_class.__name__}-v0", cast(Any, _class))
for _name, _wrapper in (("Observed", NormalizeObservation), ("Rewarded", NormalizeReward)):
    gym.register(f"{_name}-v0", cast(Any, lambda wrapper=_wrapper: wrapper(gym.make("Pendulum-v1", 7))))
NAMES = [*(one.__name__ for one in HIDING), "Observed", "Rewarded"]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "Partly"])
def test_state_in_unusual_places_is_put_back(name: str) -> None:
    plan = EnvConfig(f"{name}-v0")
    env, other = plan.build(seed=3), plan.build(seed=9)
    torch.manual_seed(0)
    root = env.reset()
    actions = [env.rand_action(root.clone())["action"].clone() for _ in range(40)]
    _, root = play(env, root, actions[:18])
    play(other, other.reset(), actions[:7])
    state, running = through_json(capture(env)), root.clone()
    assert "missing" not in state
    expected, _ = play(env, root, actions[18:])
    restore(other, state)
    assert play(other, running, actions[18:])[0] == expected
    assert [array.tolist() for array in MAPS] == [[0, 0, 0], [1, 1, 1]], "constants stay"


def test_what_can_be_read_is_kept_where_something_cannot() -> None:
    plan = EnvConfig("Partly-v0")
    env, other = plan.build(), plan.build()
    for _ in range(4):
        env.reset()
    state = through_json(capture(env))
    assert state["missing"] == ["Partly.handle is a Pointer"]
    restore(other, state)
    assert float(other.reset()["observation"][0, 1]) == float(env.reset()["observation"][0, 1])


@pytest.mark.parametrize("name", NAMES)
def test_the_resume_test_finds_that_all_of_it_is_put_back(name: str) -> None:
    finding, restorable = resume_finding(EnvConfig(f"{name}-v0"))
    cut = "episodes are cut at every checkpoint, because Partly.handle is a Pointer"
    assert restorable and finding.kind is Kind.note
    assert finding.text.startswith(cut if name == "Partly" else "a resumed run continues in the middle")


@pytest.mark.parametrize("name", ["Inside", "ClassHistory", "PartSpace"])
def test_the_resume_test_notices_state_that_is_left_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    leave = {"simulator", "goals", "_action_space", "_cached_spec", "spec"}
    monkeypatch.setattr("sac_torchrl.envs.encoding._constant", lambda holder, name, value: name in leave)
    monkeypatch.setattr("sac_torchrl.envs.encoding.Encoder.shared", lambda self, classes=(): {})
    finding, _ = resume_finding(EnvConfig(f"{name}-v0"))
    assert finding.kind is Kind.warning and "continues differently" in finding.text


def test_a_saved_state_makes_no_object_of_foreign_code() -> None:
    env = EnvConfig("Enemies-v0").build()
    for _ in range(3):
        env.rollout(4)
    state = through_json(capture(env))
    enemies = state["envs"][0][-1]["attributes"]["enemies"]["items"]
    enemies[0]["class"] = "subprocess:Popen"
    with pytest.raises(ValueError, match="subprocess:Popen is not there"):
        restore(EnvConfig("Enemies-v0").build(), state)
    state["envs"][0][-1]["attributes"]["move"]["name"] = "__class__"
    enemies[0] |= {"class": "test_hidden_state:Enemy"}
    with pytest.raises(ValueError, match="has no method __class__"):
        restore(EnvConfig("Enemies-v0").build(), state)


class Brief(Base):
    """Episodes of two steps, and an error beyond their end."""

    def step(self, action: Any) -> Any:
        observed, reward, _, _, info = super().step(action)
        assert self.time <= 2, "stepped beyond its end"
        return observed, reward, self.time == 2, False, info

    def seen(self) -> float:
        return float(self.np_random.random())


def test_no_episode_is_played_beyond_its_end() -> None:
    finding, restorable = resume_finding(EnvConfig(make=Brief))
    assert finding.kind is Kind.note and restorable
