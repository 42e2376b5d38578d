"""The config.yaml of a run as plain data, whoever made the folder."""

from pathlib import Path
from typing import Any

import yaml

from sac_torchrl.errors import ConfigError, short


def read_settings(path: Path) -> Any:
    """Read the config.yaml of a run; raises ConfigError where it cannot be read or has aliases."""
    try:
        text = path.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise ConfigError(f"{path} holds YAML aliases, and that of a run has none.")  # they multiply
        return yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {short(error)}") from error
