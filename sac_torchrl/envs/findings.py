"""Findings about an environment."""

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """Whether a finding is a note, a warning, or means that the environment cannot be trained on."""

    note = "note"
    warning = "warning"
    fault = "fault"


@dataclass(frozen=True)
class Finding:
    """One line about an environment."""

    kind: Kind
    text: str
