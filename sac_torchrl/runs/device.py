"""The device that a run trains on."""

import torch

from sac_torchrl.errors import ConfigError


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
