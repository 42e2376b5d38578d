"""Configuration: the dataclasses, their files and the command line; the only place that knows Hydra."""

from sac_torchrl.config.files import load, open_run
from sac_torchrl.config.launch import SHIPPED, assignment, launch
from sac_torchrl.config.schema import RECIPES, Continuous, Discrete, Training, plan, recipe_of

__all__ = [
    "RECIPES",
    "SHIPPED",
    "Continuous",
    "Discrete",
    "Training",
    "assignment",
    "launch",
    "load",
    "open_run",
    "plan",
    "recipe_of",
]
