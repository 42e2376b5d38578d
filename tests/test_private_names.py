"""The private names of other packages that this one relies on: each with its reason, and a test that says which one moved."""

from pathlib import Path

import sac_torchrl

PACKAGE = Path(sac_torchrl.__file__).parent
