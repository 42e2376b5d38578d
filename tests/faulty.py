"""Importing this registers environments with something wrong about them, for tests of what is done about it."""

import contextlib
import ctypes
import io
import os
import random
import time
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box


class Sound(gym.Env[Any, Any]):
    """A sound one: a point that drifts, for ten frames an episode."""

    def __init__(self) -> None:
        self.observation_space = Box(-10.0, 10.0, (2,), np.float32)
        self.action_space = Box(-1.0, 1.0, (1,), np.float32)
        self.point = np.zeros(2, np.float32)
        self.time = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.point = self.np_random.normal(size=2).astype(np.float32)
        self.time = 0
        return self.point, {}

    def step(self, action: Any) -> tuple[Any, Any, Any, bool, dict[str, Any]]:
        self.point = np.clip(self.point + 0.1 * action + 0.1 * self.np_random.normal(size=2), -10, 10)
        self.time += 1
        return self.point.astype(np.float32), -float(np.abs(self.point).sum()), False, self.time >= 10, {}


class Handle(io.StringIO):
    """What Python cannot look into, as a socket or a window."""


class _Nowhere(type):
    @property
    def __module__(cls) -> str:  # type: ignore[override]  # it can be written there
        raise AttributeError("__module__")


class Pointer(bytes, metaclass=_Nowhere):
    """The same, of a type without a module, as the objects of Box2D are."""


class Opaque(Sound):
    """Holds something that cannot be written down."""

    def __init__(self) -> None:
        super().__init__()
        self._socket = Handle()


class Own(Opaque):
    """Holds it too, and says itself what its state is."""

    def state_dict(self) -> dict[str, Any]:
        return {"point": self.point.tolist(), "time": self.time, "draws": self.np_random.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.point, self.time = np.array(state["point"]), state["time"]
        self.np_random.bit_generator.state = state["draws"]


class Slow(Sound):
    """Takes half a minute a step, and says when it begins one by a file in the working directory.

    The first step of all, which a run tries before it begins, takes no time.
    """

    def step(self, action: Any) -> tuple[Any, Any, Any, bool, dict[str, Any]]:
        if not Path("tried").exists():
            Path("tried").touch()
            return super().step(action)
        Path("stepping").touch()
        end = time.monotonic() + 30
        while time.monotonic() < end:
            time.sleep(0.1)
        return super().step(action)


class Stuck(Sound):
    """The first to take its 30th step never comes back from it, deaf to everything; a file `stuck` tells of it."""

    taken = 0

    def step(self, action: Any) -> Any:
        self.taken += 1
        if self.taken == 30:
            with contextlib.suppress(FileExistsError):
                Path("stuck").touch(exist_ok=False)
                while True:
                    ctypes.PyDLL(None).sleep(1000)  # as a simulator does it: no thread of Python runs meanwhile
        return super().step(action)


# What a faulty one does from its WHEN-th step on, or from another where its id says so.
WHEN = 25
MOMENTS = (1, WHEN, 10_000)
OBSERVATIONS = {
    "nan": np.array([np.nan, 0.0], np.float32),
    "inf": np.array([0.0, np.inf], np.float32),
    "long": np.zeros(3, np.float32),
    "empty": np.zeros(0, np.float32),
    "none": None,
    "words": np.array(["a", "b"]),
    "objects": np.array([1.0, None], object),
    "complex": np.array([1.0, 1j]),
}
REWARDS = {
    "nan": np.nan,
    "inf": -np.inf,
    "none": None,
    "array": np.zeros(1),
    "complex": 1j,
    "text": "1.0",
}
RESULTS: dict[str, Any] = {"none": None, "four": (np.zeros(2, np.float32), 0.0, False, {})}


class Faulty(Sound):
    """Sound for a while, then not: `observation`, `reward` or `result` is what it returns from then on."""

    def __init__(self, when: int = WHEN, **fault: Any) -> None:
        super().__init__()
        self._when = when
        self._fault = fault
        self._taken = 0

    def step(self, action: Any) -> Any:
        result = list(super().step(action))
        self._taken += 1
        if self._taken < self._when:
            return tuple(result)
        match self._fault:
            case {"observation": name}:
                result[0] = OBSERVATIONS[name]
            case {"reward": name}:
                result[1] = REWARDS[name]
            case {"terminated": value}:
                result[2] = value
            case {"result": name}:
                return RESULTS[name]
            case {"raises": text}:
                raise ArithmeticError(text)
        return tuple(result)


def _register(name: str, **fault: Any) -> None:
    for when in MOMENTS:
        id = f"Faulty-{name}-v0" if when == WHEN else f"Faulty-{name}-at-{when}-v0"
        gym.register(id, Faulty, kwargs=fault | {"when": when})  # no wrapper that would see the fault first


for _name in OBSERVATIONS:
    _register(f"observation-{_name}", observation=_name)
for _name in REWARDS:
    _register(f"reward-{_name}", reward=_name)
for _name in RESULTS:
    _register(f"result-{_name}", result=_name)
_register("terminated-none", terminated=None)
_register("raises", raises="the arm is stuck")


class Glitch(Sound):
    """Each 13th step raises or has a reward that is not finite, in turns; the others are sound."""

    taken = 0

    def step(self, action: Any) -> Any:
        self.taken += 1
        result = super().step(action)
        if self.taken % 26 == 13:
            raise ArithmeticError("a glitch")
        return result if self.taken % 13 else (result[0], np.nan, *result[2:])


class Double(Sound):
    """Observes in another precision than its space says."""

    def step(self, action: Any) -> Any:
        return self.point.astype(np.float64), *super().step(action)[1:]


class Unseeded(Sound):
    """Draws from a generator that no seed reaches."""

    def step(self, action: Any) -> Any:
        self.point = self.point + np.random.default_rng().normal(size=2).astype(np.float32)
        return super().step(action)


class Borrowing(Sound):
    """Draws from the generators that everybody uses."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        random.gauss(), np.random.normal(), torch.randn(())
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        drawn = [random.gauss(), *np.random.normal(size=1), float(torch.randn(()))]
        self.point = self.point + 0.1 * np.float32(sum(drawn))
        return super().step(action)


class Closed(Borrowing):
    """Draws from them, and shows what it holds that cannot be written down."""

    def __init__(self) -> None:
        super().__init__()
        self._socket = Handle()

    def reset(self, **options: Any) -> Any:
        self._socket = Handle()
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        self._socket.write("x")
        return observation + np.float32(0.1 * self._socket.tell()), *rest


class Worn(Sound):
    """Wears off, and no reset mends it."""

    wear = 0.0

    def step(self, action: Any) -> Any:
        self.wear += 0.01
        return super().step(action * (1 - self.wear))


class Pale(Sound):
    """Is paid the same whatever it does, and sees itself in millimetres."""

    def step(self, action: Any) -> Any:
        observation, _, *rest = super().step(action)
        return 1000 * observation, 1.0, *rest


class Endless(Sound):
    """Never ends an episode."""

    def step(self, action: Any) -> Any:
        return *super().step(action)[:3], False, {}


class Beyond(Sound):
    """Observes what its space does not hold."""

    def step(self, action: Any) -> Any:
        return np.full(2, 11.0, np.float32), *super().step(action)[1:]


class Filling(Sound):
    """Fills the disk that FILLING names when 600 steps were taken, unless a file `enough` is there."""

    taken = 0

    def step(self, action: Any) -> Any:
        Filling.taken += 1
        disk = Path(os.environ["FILLING"])
        if Filling.taken == 600 and not (disk / "enough").exists():
            with contextlib.suppress(OSError), (disk / "filling").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        return super().step(action)


_CLASSES: tuple[Any, ...] = (
    Double,
    Glitch,
    Unseeded,
    Borrowing,
    Closed,
    Worn,
    Pale,
    Beyond,
    Filling,
    Sound,
    Opaque,
    Own,
    Slow,
    Stuck,
)
for _class in _CLASSES:
    gym.register(f"{_class.__name__}-v0", _class, max_episode_steps=10)
gym.register("Endless-v0", cast(Any, Endless))
