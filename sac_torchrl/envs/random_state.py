"""The state of a random generator that an environment holds: read, and put back."""

import random
from contextlib import suppress
from typing import Any, cast

import numpy as np
import torch

_BIT_GENERATORS = {cls.__name__: cls for cls in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937)}


def read_state(value: Any) -> Any:
    """The state of a generator of Python, NumPy or PyTorch; None for any other value."""
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, np.random.RandomState):
        return value.get_state(legacy=False)
    if isinstance(value, random.Random):
        with suppress(NotImplementedError):  # SystemRandom has none
            return value.getstate()
    return value.get_state() if isinstance(value, torch.Generator) else None


def write_state(generator: Any, state: Any) -> Any:
    """Put a state back into a generator and return it; another one is made where `generator` is None."""
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, (torch.Generator, np.random.RandomState)):
        generator.set_state(cast(Any, state))
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:  # Gymnasium makes a generator when it is first asked for
        return write_state(_new(state), state)
    return generator


def _new(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return torch.Generator()
    if isinstance(state, tuple):
        return random.Random()  # noqa: S311 - an environment's own
    if "has_gauss" in state:
        return np.random.RandomState()
    return np.random.Generator(_BIT_GENERATORS[state["bit_generator"]]())
