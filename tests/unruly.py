"""Importing this registers environments that reach into the process that steps them."""

import inspect
import logging
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from faulty import Sound


class _InStep(Sound):
    """Does something in every step, or in every reset where `WHERE` says so."""

    WHERE = "step"

    def mischief(self) -> None:
        raise NotImplementedError

    def reset(self, **options: Any) -> Any:
        if self.WHERE == "reset":
            self.mischief()
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        if self.WHERE == "step":
            self.mischief()
        return super().step(action)


class Grad(_InStep):
    def mischief(self) -> None:
        torch.set_grad_enabled(not torch.is_grad_enabled())


class Dtype(_InStep):
    def mischief(self) -> None:
        torch.set_default_dtype(torch.float64)


class Threads(_InStep):
    def mischief(self) -> None:
        torch.set_num_threads(3)


class Silence(_InStep):
    WHERE = "reset"

    def mischief(self) -> None:
        logging.disable(logging.CRITICAL)


class Warnings(_InStep):
    WHERE = "reset"

    def mischief(self) -> None:
        warnings.filterwarnings("error", category=UserWarning)


class Handlers(_InStep):
    WHERE = "reset"

    def mischief(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, lambda *_: None)


class Reseeds(_InStep):
    def mischief(self) -> None:
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)


class ReseedsAtReset(Reseeds):
    WHERE = "reset"


class SeedsItself(Sound):
    """Seeds torch's generator where it is seeded, and draws from it, as many do."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            torch.manual_seed(seed)
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        self.point += 0.1 * torch.randn(2).numpy()
        return super().step(action)


class Wanders(_InStep):
    WHERE = "reset"

    def mischief(self) -> None:
        os.chdir("/")


class Closes(Sound):
    """Raises when it is closed, after it was used."""

    def close(self) -> None:
        if self.time:
            raise ConnectionError("the arm does not answer")


class HangsAtClose(Sound):
    def close(self) -> None:
        if self.time:
            time.sleep(600)


class ExitsAtClose(Sound):
    def close(self) -> None:
        if self.time:
            sys.exit(0)


class _Ends(Sound):
    """Ends in its 30th step."""

    taken = 0

    def step(self, action: Any) -> Any:
        _Ends.taken += 1
        if _Ends.taken == 30:
            self.end()
        return super().step(action)

    def end(self) -> None:
        raise NotImplementedError


class Exits(_Ends):
    def end(self) -> None:
        sys.exit(0)


class ExitsWithWords(_Ends):
    def end(self) -> None:
        sys.exit("license expired")


class Generates(_Ends):
    def end(self) -> None:
        raise GeneratorExit


class Iterates(_Ends):
    def end(self) -> None:
        raise StopIteration


class Denied(_Ends):
    def end(self) -> None:
        raise PermissionError(13, "Permission denied", "/dev/arm")


class Waits(Sound):
    """Steps for ever in an evaluation."""

    def step(self, action: Any) -> Any:
        if any(frame.function == "evaluate" for frame in inspect.stack()):
            time.sleep(600)
        return super().step(action)


class Starts(Sound):
    """Starts a process that leaves the session."""

    def __init__(self) -> None:
        super().__init__()
        self._own = subprocess.Popen(["sleep", "311"], start_new_session=True)


class Wants(Sound):
    def __init__(self, track: str) -> None:
        super().__init__()


class Missing(Sound):
    def __init__(self) -> None:
        raise FileNotFoundError(2, "No such file or directory", "robot.urdf")


class Expired(Sound):
    def __init__(self) -> None:
        sys.exit(0)


class Typed(Sound):
    """Takes an action as action_space.sample() gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = gym.spaces.Discrete(2, start=3)

    def step(self, action: Any) -> Any:
        assert action.dtype == np.int64 and self.action_space.contains(action)
        return super().step(np.float32(action.item() - 3.5))


class Signed(Sound):
    """Keeps its seed in 32 bits with a sign, as simulators do."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            np.int32(seed)
        return super().reset(seed=seed)


class Steep(Sound):
    """Its third reward is `reward`."""

    def __init__(self, reward: Any) -> None:
        super().__init__()
        self._reward = reward

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, self._reward if self.time == 3 else reward, *rest


class Clock(Sound):
    """Observes the seconds since 1970, or a count, of which float32 keeps no single ones."""

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Box(0, 2**40, (1,), cast(Any, np.dtype(dtype).type))

    def reset(self, **options: Any) -> Any:
        return self._now(super().reset(**options)[0]), {}

    def step(self, action: Any) -> Any:
        return self._now(super().step(action)[0]), *super().step(action)[1:]

    def _now(self, observation: Any) -> Any:
        return np.array([1_764_353_000 + self.time], self.observation_space.dtype)


for _name, _class in list(vars().items()):
    if isinstance(_class, type) and issubclass(_class, Sound) and _class is not Sound:
        gym.register(f"{_name}-v0", cast(Any, _class), max_episode_steps=10)
