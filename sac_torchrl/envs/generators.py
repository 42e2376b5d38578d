"""The global random number generators of the process: torch's, and those that environments may draw from."""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from sac_torchrl.envs import contained
from sac_torchrl.trees import Tree

log = logging.getLogger(__name__)


def get_states() -> Tree:
    """The states of torch's generators on all devices in use, NumPy's global one and Python's."""
    numpy = np.random.get_state(legacy=False)
    key = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    version, words, gauss = random.getstate()
    # Asking for the states would start CUDA in a run that does not use it.
    own = contained.stream()
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if started else [],
        "numpy": {**numpy, "state": {"key": key, "pos": int(numpy["state"]["pos"])}},
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
    } | ({} if own is None else {"environments": own})


def set_states(saved: Tree) -> None:
    """Restore saved states; those for another number of GPUs are skipped with a warning."""
    torch.set_rng_state(saved["torch"])
    contained.set_stream(saved.get("environments"))
    numpy = saved["numpy"]
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": numpy["state"]["key"].numpy().astype(np.uint32)}})
    python = saved["python"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    if len(saved["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["cuda"])
    elif saved["cuda"]:
        log.warning("resuming is not exact: it was saved with %s GPUs", len(saved["cuda"]))


def seed_all(seed: int) -> None:
    """Seed the generators on the CPU, from which an environment may draw."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    contained.set_stream(None)
    torch.default_generator.manual_seed(seed)


@contextmanager
def preserve() -> Iterator[None]:
    """Restore the state of all generators after the block."""
    before = get_states()
    try:
        yield
    finally:
        set_states(before)
