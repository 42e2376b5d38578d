"""A run in small for tests of checkpoints, and ways to damage what it saves."""

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torchrl.data import Bounded, TensorDictReplayBuffer, Unbounded

from sac_torchrl.replay.buffer import ReplayConfig, Storage, generator, rows
from sac_torchrl.runs.checkpoint import CheckpointConfig
from sac_torchrl.specs import Specs
from sac_torchrl.trees import Tree, encode

CPU = torch.device("cpu")
SPECS = Specs(Unbounded(shape=torch.Size([3])), Bounded(-1, 1, shape=torch.Size([2])))


class Fitted:
    """A part with weights, Adam's moments, a counter and a float that JSON must keep to the last bit."""

    def __init__(self, width: int = 2) -> None:
        self.linear = torch.nn.Linear(3, width, dtype=torch.float64)
        self.adam = torch.optim.Adam(self.linear.parameters())
        self.updates = 0
        self.rest = 1 / 3

    def update(self, batch: TensorDict) -> None:
        loss = self.linear(batch["observation"].double() + torch.randn(4, 3)).square().sum()
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        self.updates += 1
        self.rest = (self.rest + 0.1) % 1

    def state_dict(self) -> Tree:
        adam = self.adam.state_dict()
        moments = {str(index): moment for index, moment in adam["state"].items()}
        return {
            "linear": self.linear.state_dict(),
            "adam": adam | {"state": moments},
            "updates": self.updates,
            "rest": self.rest,
        }

    def load_state_dict(self, state: Tree) -> None:
        self.linear.load_state_dict(state["linear"])
        moments = {int(index): moment for index, moment in state["adam"]["state"].items()}
        self.adam.load_state_dict(state["adam"] | {"state": moments})
        self.updates, self.rest = state["updates"], state["rest"]


class Trial:
    """A run in small: rows whose values are their number, a part that learns from samples of them."""

    def __init__(
        self,
        folder: Path,
        *,
        storage: Storage = Storage.ram,
        capacity: int = 10,
        keep: int = 2,
        width: int = 2,
    ) -> None:
        torch.manual_seed(0)
        self.folder = folder / "checkpoints"
        self.buffer: TensorDictReplayBuffer = ReplayConfig(capacity, storage).build(
            folder / "replay", SPECS, rows=10**6, batch_size=4, seed=0, device=CPU
        )
        self.fitted = Fitted(width)
        self.checkpoints = CheckpointConfig(keep=keep).build(self.folder, self.buffer, fitted=self.fitted)

    def collect(self, count: int) -> None:
        first = self.buffer.write_count
        number = torch.arange(first, first + count, dtype=torch.float32)
        batch = TensorDict({"observation": number[:, None].expand(-1, 3)}, batch_size=[count])
        batch["action"] = torch.zeros(count, 2)
        batch["next", "observation"] = batch["observation"] + 1
        batch["next", "reward"] = number[:, None]
        batch["next", "terminated"] = number[:, None] % 2 == 1
        self.buffer.extend(rows(batch, SPECS))

    def advance(self, count: int) -> None:
        self.collect(count)
        for _ in range(3):
            self.fitted.update(self.buffer.sample())

    def save(self) -> Path:
        return self.checkpoints.save(self.buffer.write_count)

    def everything(self) -> list[Any]:
        skeleton, tensors = encode(self.fitted.state_dict())
        stored = self.buffer.storage[:].flatten_keys("/")
        return [
            skeleton,
            {name: value.tolist() for name, value in tensors.items()},
            {name: value.tolist() for name, value in stored.items()},
            self.buffer.writer.state_dict(),
            generator(self.buffer).get_state().tolist(),
            torch.get_rng_state().tolist(),
        ]


def flip_bit(path: Path, place: float) -> None:
    """Flip a bit of the byte at `place`, from 0, the first, to 1, the last."""
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    with path.open("r+b") as file:
        file.write(content)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let this process write no file of more than `size` bytes, as `ulimit -f` does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def kill_at(event: int, *, below: Path) -> None:
    """Have this process kill itself at its event number `event` in the file system, of those below a folder."""
    names = {"fsync", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}
    seen = 0

    def count(name: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if name in names or (name == "open" and str(arguments[0]).startswith(str(below))):
            seen += 1
            if seen == event:
                os.kill(os.getpid(), signal.SIGKILL)

    fsync = os.fsync

    def audited(fd: Any) -> None:  # Python does not announce this one itself
        sys.audit("fsync", fd)
        fsync(fd)

    os.fsync = audited
    sys.addaudithook(count)
