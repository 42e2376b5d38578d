"""The seeds of a run: one for each consumer of random numbers."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Seeds:
    """One seed for each consumer of random numbers, so that one more draw in one changes no other."""

    environments: int
    exploration: int
    sampling: int
    evaluation: int
    initialization: int

    @classmethod
    def derive(cls, seed: int) -> "Seeds":
        """Derive them from the seed of the run: independent, the same on every machine, below 2^31."""
        # 31 bits: every simulator takes them, and an index of an environment can be added.
        return cls(*(int(child.generate_state(1)[0]) >> 1 for child in np.random.SeedSequence(seed).spawn(5)))
