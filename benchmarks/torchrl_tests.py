"""Run TorchRL's own tests of its losses and of TanhNormal with this package's classes in their place.

python benchmarks/torchrl_tests.py CHECKOUT

CHECKOUT is a working tree of pytorch/rl. Prints how many tests pass with TorchRL's classes and with ours, and the
names of those that pass with TorchRL's alone.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree as ET

SUITES = {
    "SACLoss": ("test/objectives/test_sac.py", "TestSAC and not Discrete"),
    "DiscreteSACLoss": ("test/objectives/test_sac.py", "TestDiscreteSAC"),
    "TQCLoss": ("test/objectives/test_tqc.py", ""),
    "TanhNormal": ("test/test_distributions.py", "TestTanhNormal"),
}
PLUGIN = """
import torchrl.modules
import torchrl.objectives
from sac_torchrl.agents.losses import SACDiscreteLoss, SACv2Loss, Terms
from sac_torchrl.agents.policies import SquashedNormal
from sac_torchrl.agents.tqc import TruncatedLoss


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
"""


def run(checkout: Path, suite: str, *, ours: bool, timeout: float) -> dict[str, bool]:
    """Whether each test that was not skipped passed, by name."""
    file, chosen = SUITES[suite]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "in_place_of_torchrls.py").write_text(PLUGIN)
        report = Path(folder, "report.xml")
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", file]
        words += ["-p", "in_place_of_torchrls"] * ours + ["-k", chosen] * bool(chosen)
        path = os.pathsep.join([folder, str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path}
        done = subprocess.run(words, cwd=checkout, env=environment, timeout=timeout, capture_output=True, text=True)
        if not report.is_file():
            raise SystemExit(f"pytest made no report of {suite}:\n{done.stdout}{done.stderr}")
        cases = ET.parse(report).iter("testcase")  # noqa: S314 - pytest's own file
        return {
            str(case.get("name")): case.find("failure") is None and case.find("error") is None
            for case in cases
            if case.find("skipped") is None
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
        print(f"| {suite} | {len(theirs)} | {sum(theirs.values())} | {sum(ours.values())} |", flush=True)
        lost += [f"{suite}: {name}" for name, passed in theirs.items() if passed and not ours.get(name, False)]
    print("\n".join(["", "Pass with TorchRL's alone:", *lost]))


if __name__ == "__main__":
    main()
