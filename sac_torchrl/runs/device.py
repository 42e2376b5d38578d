"""The device that a run trains on, and its memory."""

import ctypes
import platform

import torch

from sac_torchrl.errors import ConfigError

# M_MMAP_THRESHOLD, of which 32 MiB is glibc's maximum, and M_TRIM_THRESHOLD (mallopt(3)).
_MALLOC = {-3: 32 * 2**20, -1: 2**30}


def resolve_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into a device of this machine; `auto` prefers a GPU.

    Raises ConfigError for anything else and for a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (":" in name and not index.isdecimal()):
        raise ConfigError(f"device={name}: give auto, cpu, cuda or cuda:N.")
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(index or 0) >= available:
        raise ConfigError(f"device={name}: PyTorch finds {available} CUDA devices here; give device=cpu or auto.")
    return torch.device(name)


def keep_freed_memory() -> None:
    """Have glibc keep freed memory of this process, which it would return to the system and fault in again.

    Without it, a step of 4,096 tensor environments with activations of 4 MB has 3,000 to 4,000 page faults and takes
    1.6 times as long. It cannot be undone, and does nothing where the C library is another one.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, size in _MALLOC.items():
            libc.mallopt(parameter, size)
