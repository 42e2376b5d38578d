"""The private names of other packages that this one relies on: each with its reason, and a test that says which one moved."""

import ast
import importlib
from pathlib import Path

import pytest

import sac_torchrl

PACKAGE = Path(sac_torchrl.__file__).parent
