"""Importing this registers environments of which one can be open, and others that cannot be drawn or learned from."""

import fcntl
import os
import socket
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from faulty import Sound
from gymnasium.spaces import Box


class Only(Sound):
    """Counts how many are open, and refuses a second one, as the driver of a robot does."""

    opened = 0

    def __init__(self) -> None:
        super().__init__()
        if Only.opened:
            raise RuntimeError("the robot is in use")
        Only.opened += 1

    def close(self) -> None:
        Only.opened -= 1


class Counted(Sound):
    """Counts how many were made and closed."""

    made = closed = 0

    def __init__(self) -> None:
        super().__init__()
        Counted.made += 1
        self._open = True

    def close(self) -> None:
        Counted.closed += self._open
        self._open = False


class Port(Sound):
    """Holds a socket of one name."""

    def __init__(self) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.bind(f"\0sac-torchrl-test-{os.getpid()}")
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()


class LockFile(Sound):
    """Holds the lock of a file, by its descriptor."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = os.open(Path(os.environ["TMPDIR"]) / "device", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise

    def close(self) -> None:
        os.close(self._lock)


class Drawn(Sound):
    """Draws what PICTURE says, or raises it."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012 - as its base declares it
    PICTURE: Any = np.zeros((16, 16, 3), np.uint8)

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.render_mode = render_mode

    def render(self) -> Any:
        if isinstance(self.PICTURE, Exception):
            raise self.PICTURE
        return self.PICTURE


class Nothing(Drawn):
    PICTURE = None


class Text(Drawn):
    PICTURE = "|--x--|"


class NoDisplay(Drawn):
    PICTURE = OSError("no display")


class OnlyDrawn(Only, Drawn):
    """One can be open, to be drawn or not."""

    def __init__(self, render_mode: str | None = None) -> None:
        Only.__init__(self)
        self.render_mode = render_mode


class Vector(Sound):
    """Rewards are vectors, and nothing declares that."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, np.array([reward, 0.0]), terminated, truncated, info


class Declared(Vector):
    reward_space = Box(-100.0, 0.0, (2,))


class Unbounded(Sound):
    """Takes any number as its action."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = Box(-np.inf, np.inf, (1,), np.float32)


class Picture(Sound):
    """Observes a small picture."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = Box(0, 255, (16, 16, 2), np.uint8)

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        return np.zeros((16, 16, 2), np.uint8), super().reset(**options)[1]

    def step(self, action: Any) -> Any:
        return np.zeros((16, 16, 2), np.uint8), *super().step(action)[1:]


class Unending(Sound):
    """Has no end of its own, nor a time limit."""

    def step(self, action: Any) -> Any:
        observation, reward, *_, info = super().step(action)
        return observation, reward, False, False, info


KINDS = (Only, Counted, Port, LockFile, Drawn, OnlyDrawn, Nothing, Text, NoDisplay)
for _class in (*KINDS, Vector, Declared, Unbounded, Picture):
    gym.register(f"{_class.__name__}-v0", f"{__name__}:{_class.__name__}", max_episode_steps=10)
gym.register("Unending-v0", f"{__name__}:Unending")
