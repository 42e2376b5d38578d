"""Run TorchRL's own tests of its losses, TanhNormal and replay buffers with this package's classes in their place.

python benchmarks/torchrl_tests.py CHECKOUT

CHECKOUT is a working tree of pytorch/rl. Prints how many of the tests that make an object of the class pass with
TorchRL's and with ours, and the names of those that pass with TorchRL's alone. A replay buffer of ours needs the
columns of its rows when it is built: here a TensorDictReplayBuffer on a lazy storage of one dimension takes them from
its first rows.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree as ET

BUFFERS = "test/rb"
SUITES = {
    "SACLoss": ("test/objectives/test_sac.py", "TestSAC and not Discrete"),
    "DiscreteSACLoss": ("test/objectives/test_sac.py", "TestDiscreteSAC"),
    "TQCLoss": ("test/objectives/test_tqc.py", ""),
    "TanhNormal": ("test/test_distributions.py", "TestTanhNormal"),
    "TensorDictReplayBuffer": (BUFFERS, "not ray"),
    "PrioritizedSampler": (BUFFERS, "rioritized and not ray"),
}
PLUGIN = """
import os

import pytest
import torch
import torchrl.data.replay_buffers
import torchrl.data.replay_buffers.samplers
import torchrl.modules
import torchrl.objectives
from sac_torchrl.agents.losses import SACDiscreteLoss, SACv2Loss, Terms
from sac_torchrl.agents.policies import SquashedNormal
from sac_torchrl.agents.tqc import TruncatedLoss
from sac_torchrl.replay.packing import PackedMemmapStorage, PackedReplayBuffer, PackedTensorStorage
from sac_torchrl.replay.prioritized import PackedPrioritizedSampler
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, RoundRobinWriter, TensorDictReplayBuffer
from torchrl.data import TensorDictRoundRobinWriter


class Continuous(SACv2Loss):
    def __init__(self, *networks, **options):
        super().__init__(*networks, terms=Terms(), **options)


class Discrete(SACDiscreteLoss):
    def __init__(self, *networks, **options):
        super().__init__(*networks, terms=Terms(), **options)


torchrl.objectives.SACLoss = Continuous
torchrl.objectives.DiscreteSACLoss = Discrete
torchrl.objectives.TQCLoss = TruncatedLoss
torchrl.modules.TanhNormal = SquashedNormal

made = []


def counted(base):
    class Counted(base):
        def __init__(self, *arguments, **options):
            made.append(self)
            super().__init__(*arguments, **options)

    Counted.__name__, Counted.__qualname__ = base.__name__, base.__qualname__
    return Counted


class Buffer(PackedReplayBuffer):
    def __init__(self, *arguments, **options):
        storage, writer = options.get("storage"), options.get("writer")
        self._lazy = None
        if type(storage) in PACKED and storage.ndim == 1 and type(writer) in (type(None), TensorDictRoundRobinWriter):
            self._lazy = storage
            options["writer"] = RoundRobinWriter()
        super().__init__(*arguments, **options)

    def extend(self, rows, **options):
        self._begin(rows)
        if self._lazy is None:
            return TensorDictReplayBuffer.extend(self, rows, **options)
        return super().extend(rows, **options)

    def add(self, row):
        self._begin(row.unsqueeze(0))
        return TensorDictReplayBuffer.add(self, row) if self._lazy is None else super().add(row)

    def sample(self, *arguments, **options):
        packed = isinstance(self._storage, tuple(PACKED.values()))
        return (super() if packed else super(PackedReplayBuffer, self)).sample(*arguments, **options)

    def _begin(self, rows):
        if self._lazy is None or isinstance(self._storage, tuple(PACKED.values())):
            return
        flat = rows.reshape(-1)
        keys = [key if isinstance(key, tuple) else (key,) for key in flat.keys(True, True)]
        columns = {key: (flat[key].dtype, flat[key].shape[1:]) for key in keys}
        place = torch.device(self._lazy.device)
        options = {"scratch_dir": self._lazy.scratch_dir} if hasattr(self._lazy, "scratch_dir") else {"device": place}
        packed = PACKED[type(self._lazy)](self._lazy.max_size, columns, destination=place, **options)
        for entity in self._lazy._attached_entities:
            packed.attach(entity)
        self._storage = packed
        self._writer.register_storage(packed)
        made.append(self)


Buffer.__name__ = Buffer.__qualname__ = "TensorDictReplayBuffer"  # tests are named after it
PACKED = {LazyTensorStorage: PackedTensorStorage, LazyMemmapStorage: PackedMemmapStorage}
INSTEAD = {"TensorDictReplayBuffer": Buffer, "PrioritizedSampler": counted(PackedPrioritizedSampler)}
buffers = torchrl.data.replay_buffers
for place in (torchrl.data, buffers, buffers.replay_buffers, buffers.samplers):
    if hasattr(place, os.environ["SUITE"]):
        setattr(place, os.environ["SUITE"], INSTEAD[os.environ["SUITE"]])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    made.clear()
    try:
        return (yield)
    finally:
        if made:
            item.user_properties.append(("made", "yes"))
"""


def run(checkout: Path, suite: str, *, ours: bool, timeout: float) -> dict[str, bool]:
    """Whether each test that was not skipped passed, by name; of buffers, with ours, those that made one."""
    file, chosen = SUITES[suite]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "in_place_of_torchrls.py").write_text(PLUGIN)
        report = Path(folder, "report.xml")
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", file]
        words += ["-p", "in_place_of_torchrls"] * ours + ["-k", chosen] * bool(chosen)
        path = os.pathsep.join([folder, str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path, "SUITE": suite}
        done = subprocess.run(words, cwd=checkout, env=environment, timeout=timeout, capture_output=True, text=True)
        if not report.is_file():
            raise SystemExit(f"pytest made no report of {suite}:\n{done.stdout}{done.stderr}")
        cases = ET.parse(report).iter("testcase")  # noqa: S314 - pytest's own file
        marked = ours and file == BUFFERS
        return {
            f"{case.get('classname')}::{case.get('name')}": case.find("failure") is None and case.find("error") is None
            for case in cases
            if case.find("skipped") is None and (not marked or case.find(".//property[@name='made']") is not None)
        }


def main() -> None:
    """Print a row for each class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--suite", choices=SUITES, nargs="*", default=list(SUITES))
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds of each run")
    given = parser.parse_args()
    print("| class | tests | pass with TorchRL's | pass with ours |\n|---|---|---|---|")
    lost: list[str] = []
    for suite in given.suite:
        theirs, ours = (run(given.checkout, suite, ours=own, timeout=given.timeout) for own in (False, True))
        if SUITES[suite][0] == BUFFERS:
            theirs = {name: passed for name, passed in theirs.items() if name in ours}
        print(f"| {suite} | {len(theirs)} | {sum(theirs.values())} | {sum(ours.values())} |", flush=True)
        lost += [f"{suite}: {name}" for name, passed in theirs.items() if passed and not ours.get(name, False)]
    print("\n".join(["", "Pass with TorchRL's alone:", *lost]))


if __name__ == "__main__":
    main()
