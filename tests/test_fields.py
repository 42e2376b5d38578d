"""Fields of configs: explanations, ranges, and the page that shows them."""

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sac_torchrl
from sac_torchrl.cli.help import text
from sac_torchrl.config.layers import SHIPPED
from sac_torchrl.config.recipes import recipe_in
from sac_torchrl.config.schema import TrainConfig, choices
from sac_torchrl.errors import ConfigError
from sac_torchrl.fields import Doc, check, doc, field, keys

ROOT = Path(sac_torchrl.__file__).parents[1]


@dataclasses.dataclass
class Sample:
    rate: float = field(0.5, "a rate", above=0, most=1)
    part: float | None = field(None, "a part", least=0, below=1)
    sizes: list[int] = field([1, 2], "sizes", least=1)
    form: str = field("a", "a form", choices=("a", "b"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rate": 0.0}, "x.rate=0.0: give a number above 0, at most 1."),
        ({"rate": math.nan}, "x.rate=nan: give"),
        ({"rate": math.inf}, "x.rate=inf: give"),
        ({"part": 1.0}, "x.part=1.0: give 0 or more, below 1 or null."),
        ({"sizes": [3, 0]}, "x.sizes=[3, 0]: give 1 or more."),
        ({"form": "c"}, "x.form=c: give one of a, b."),
        ({"rate": 2.0, "form": "c"}, "x.rate=2.0: give a number above 0, at most 1. x.form=c: give one of a, b."),
    ],
)
def test_a_value_out_of_its_range_is_refused_in_a_sentence(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check(Sample(**wrong), "x")
    assert str(refused.value).startswith(said)


def test_values_within_their_range_and_rules_that_hold_pass() -> None:
    check(Sample(rate=1.0, part=0.0, sizes=[1], form="b"), "x", (True, "never shown"))
    check(Sample(part=None, sizes=[]), "")
    with pytest.raises(ConfigError, match=r"^a rule\.$"):
        check(Sample(), "", (False, "a rule."))


def test_a_mutable_default_is_copied() -> None:
    first = Sample()
    first.sizes.append(3)
    assert Sample().sizes == [1, 2]
    assert TrainConfig().env is not TrainConfig().env


def leaves(config: Any, path: str = "") -> dict[str, Doc]:
    found: dict[str, Doc] = {}
    for part in keys(config):
        value = getattr(config, part.name)
        if dataclasses.is_dataclass(value):
            found |= leaves(value, f"{path}{part.name}.")
        else:
            found[f"{path}{part.name}"] = doc(part)
    return found


@pytest.mark.parametrize("name", ["continuous", "discrete"])
def test_help_shows_the_line_range_and_default_of_every_key(name: str) -> None:
    recipe = recipe_in(SHIPPED / f"{name}.py")
    page = text(recipe, "sac-torchrl train", SHIPPED)
    documented_keys = leaves(recipe)
    for key, options in choices(recipe).items():
        for option in options.values():
            documented_keys |= leaves(option(), f"{key}.")
    for key, documented in documented_keys.items():
        assert documented.text, f"{key} has no explanation"
        lines = [line for line in page.splitlines() if line.startswith(f"  {key}=")]
        assert any(documented.text in line and documented.range in line for line in lines), key
    assert f"  env.id={recipe.env.id} " in page
    assert "  total_frames=10000 " in page or "  total_frames=24000 " in page
    assert "collector=ray:" in page and "collector.slack=null" in page


def run(*words: str) -> None:
    """Run Python, and fail where it does."""
    subprocess.run(
        [sys.executable, *words], check=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_the_command_explains_itself_without_pytorch(flag: str) -> None:
    program = f"""
import sys
from sac_torchrl.cli.main import main
try:
    main(["{flag}"])
except SystemExit as end:
    assert end.code == 0
assert not {{"torch", "torchrl", "hydra", "numpy"}} & sys.modules.keys()
"""
    run("-c", program)
