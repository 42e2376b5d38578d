"""The command line of a recipe: flags, help, one run or a sweep."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from sac_torchrl.cli.help import text
from sac_torchrl.config.compose import compose
from sac_torchrl.config.files import as_yaml
from sac_torchrl.config.layers import SHIPPED
from sac_torchrl.config.schema import T
from sac_torchrl.errors import ConfigError, exit_codes, nearest
from sac_torchrl.imports import without_collection
from sac_torchrl.orphans import marked


def launch(recipe: T, task: Callable[[T], Any] | None = None) -> None:
    """Train with `recipe` as the command line changes it: the last line of a recipe. `task` is `train` or your own.

    Values come from the recipe, then from the run that `run.folder` holds, then from `preset=NAME` (a file in the
    folder presets/ beside the recipe) or `preset=[NAME,NAME]`, of which later ones win, then from the command line.
    Mistakes end the process with one line and exit code 64 before `task` is called; what `task` raises ends it as
    `errors` says. With -m there is one run for every combination of values, see `sweep`.
    """
    with exit_codes(), marked():
        words = sys.argv[1:]
        flags = _flags(words)
        folder = Path(sys.argv[0]).absolute().parent
        if flags.help:
            print(text(recipe, command(recipe), folder))
            return
        # Not for --help, which has no time for Hydra and the loop.
        with without_collection():
            from sac_torchrl.cli.sweep import sweep
            from sac_torchrl.config.command_line import CommandLine, under_hydra

        line = CommandLine.read(flags.settings)
        run = _train if task is None else task
        if line.for_hydra:
            under_hydra(recipe, line, _scored(run), folder=folder, sweep=flags.multirun)
        elif flags.multirun:
            sweep(recipe, line, run, folder=folder, command=[command(recipe), *words])
        else:
            config = compose(recipe, line.settings(), folder=folder)
            if flags.cfg:
                print(as_yaml(config), end="")
            else:
                run(config)


def command(recipe: T) -> str:
    """The command that launched this recipe, as a user types it."""
    shipped = Path(sys.argv[0]) == SHIPPED / f"{recipe.head}.py"
    return f"sac-torchrl train {recipe.head}" if shipped else f"python {sys.argv[0]}"


def _train(config: T) -> Any:
    with without_collection():
        from sac_torchrl.train import train

    return train(config)


def _scored(task: Callable[[T], Any]) -> Callable[[T], Any]:
    """`task` with exit codes, for Hydra: returns the mean return of the last evaluation, a sweeper's objective."""

    def scored(config: T) -> Any:
        with exit_codes():
            result = task(config)
            return result.evaluation.mean if hasattr(result, "evaluation") else result

    return scored


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        flag = message.rpartition(": ")[2].split(" ")[0]
        known = [word for action in self._actions for word in action.option_strings]
        raise ConfigError(f"{message}{nearest(flag, known)} --help shows what to give.")


def _flags(words: list[str]) -> argparse.Namespace:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-c", "--cfg", choices=["job"])
    parser.add_argument("settings", nargs="*")
    return parser.parse_intermixed_args(words)
