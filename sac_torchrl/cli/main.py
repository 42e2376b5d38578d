"""The command `sac-torchrl`: train, resume, evaluate, verify and plot runs; check environments and the machine."""

import argparse
import importlib.metadata
import json
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from sac_torchrl.cli import compare, dataset, evaluate, export, play
from sac_torchrl.errors import CheckpointError, ConfigError, exit_codes, nearest
from sac_torchrl.orphans import marked

# What a command needs is imported where it runs: --help and --version do without PyTorch.


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. `{self.prog} --help` shows what to give.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; ends the process with the exit codes of `errors` where it fails."""
    with exit_codes(), marked():
        words = list(sys.argv[1:] if arguments is None else arguments)
        parser, commands = _parser()
        if words and not words[0].startswith("-") and words[0] not in commands:
            raise ConfigError(
                f"unknown command {words[0]}{nearest(words[0], commands)} There are {', '.join(commands)}."
            )
        given, rest = parser.parse_known_args(words)
        # argparse takes no settings behind an option.
        if rest and not (hasattr(given, "settings") and all("=" in word and word[0] != "-" for word in rest)):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        given.settings = [*getattr(given, "settings", []), *rest]
        given.run(given)


def _parser() -> tuple[argparse.ArgumentParser, list[str]]:
    parser = _Parser(prog="sac-torchrl", description="Soft Actor-Critic from TorchRL parts.")
    parser.add_argument("--version", action="version", version=importlib.metadata.version("sac_torchrl"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    names: list[str] = []

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        names.append(name)
        one = commands.add_parser(name, help=text, description=text)
        one.set_defaults(run=run)
        return one

    train = command("train", _train, "train with a recipe: continuous, discrete, or a file of your own")
    train.add_argument("recipe", metavar="RECIPE")
    resume = command("resume", _resume, "resume a run from its newest checkpoint")
    resume.add_argument("folder", metavar="FOLDER", type=Path)
    for one in (train, resume):
        one.add_argument(
            "settings", metavar="KEY=VALUE", nargs=argparse.REMAINDER, help="settings and flags of the recipe"
        )
    evaluate.add_arguments(command("evaluate", evaluate.run, "play episodes with a policy and print their returns"))
    play.add_arguments(command("play", play.run, "watch a policy on screen, or as an mp4 or gif file"))
    export.add_arguments(
        command("export", export.run, "write a policy as NAME.onnx, NAME.pt2 or a folder, with a proof of its parity")
    )
    dataset.add_arguments(command("dataset", dataset.run, "record episodes of a policy as a Minari dataset"))
    compare.add_arguments(command("compare", compare.run, "compare groups of runs of one task"))
    sound = command("verify", _verify, "check every byte of a run's checkpoints")
    sound.add_argument("folder", metavar="FOLDER", type=Path)
    sound.add_argument(
        "--digest", action="store_true", help="show what each holds as one SHA-256: the same for the same run"
    )
    check = command("check-env", _check_env, "play with an environment and tell what is wrong with it")
    check.add_argument("id", metavar="ID", help="as in env.id=ID")
    check.add_argument(
        "--plugin", metavar="MODULE", action="append", default=[], help="import a module with environments"
    )
    check.add_argument("settings", metavar="KEY=VALUE", nargs="*", help="keys of the environment, env.KEY=VALUE")
    doctor = command("doctor", _doctor, "show what works on this machine, and what to install for the rest")
    for one in (sound, check, doctor):
        one.add_argument("--json", action="store_true", help="print JSON")
    plot = command("plot", _plot, "draw the learning curve of a run, or the mean curve of several")
    plot.add_argument("folders", metavar="FOLDER", nargs="+", help="run folders, or patterns of them in quotes")
    plot.add_argument("--by", metavar="KEY", help="a curve for each value of this setting, as in compare")
    plot.add_argument(
        "--output",
        metavar="PATH",
        type=Path,
        help="NAME.png or NAME.svg; by default curve.png, beside a single run",
    )
    return parser, names


def _train(given: argparse.Namespace) -> None:
    from sac_torchrl.config.recipes import recipe_path

    path = recipe_path(given.recipe)
    sys.argv = [str(path), *given.settings]
    runpy.run_path(str(path), run_name="__main__")


def _resume(given: argparse.Namespace) -> None:
    from sac_torchrl.cli.launch import launch
    from sac_torchrl.config.command_line import assignment
    from sac_torchrl.config.files import load
    from sac_torchrl.config.layers import SHIPPED

    recipe = load(given.folder)
    sys.argv = [str(SHIPPED / f"{recipe.head}.py"), assignment("run.folder", str(given.folder)), *given.settings]
    launch(recipe)


def _verify(given: argparse.Namespace) -> None:
    from sac_torchrl.runs import snapshot

    folder: Path = given.folder / "checkpoints"
    found = snapshot.frames_in(folder)
    if not found:
        raise CheckpointError(f"{given.folder} holds no checkpoint.")
    results: list[dict[str, Any]] = []
    for frames in found:
        try:
            one = snapshot.verify(folder / str(frames))
        except CheckpointError as error:
            results.append({"frames": frames, "intact": False, "damage": str(error)})
        else:
            digest = {"digest": snapshot.digest(folder, one)} if given.digest else {}
            results.append({"frames": frames, "intact": True, **digest})
        if not given.json:
            print(_verified(results[-1]))
    if given.json:
        print(json.dumps(results, indent=2))
    damages = [result["damage"] for result in results if not result["intact"]]
    if damages:
        raise CheckpointError(
            f"{len(damages)} of {len(found)} checkpoints are damaged ({damages[0]}): "
            + ("resuming takes the newest intact one." if len(damages) < len(found) else "bring back a copy of one.")
        )


def _verified(result: dict[str, Any]) -> str:
    if not result["intact"]:
        return f"{result['frames']} damaged: {result['damage']}"
    return " ".join([f"{result['frames']} intact", *([result["digest"]] if "digest" in result else [])])


def _check_env(given: argparse.Namespace) -> None:
    from sac_torchrl.config.command_line import CommandLine
    from sac_torchrl.config.compose import with_environment
    from sac_torchrl.config.schema import TrainConfig
    from sac_torchrl.envs.check import check_env
    from sac_torchrl.envs.config import EnvConfig
    from sac_torchrl.envs.findings import Kind

    findings: list[dict[str, str]] = []
    config = TrainConfig(env=EnvConfig(given.id, plugins=given.plugin))
    for found in check_env(with_environment(config, CommandLine.read(given.settings).settings()).env):
        findings.append({"kind": found.kind.value, "text": found.text})
        if not given.json:
            print(f"{found.kind.value:8}{found.text}")
    if given.json:
        print(json.dumps(findings, indent=2))
    for finding in findings:
        if finding["kind"] == Kind.fault.value:
            raise ConfigError(f"{given.id} cannot be trained on: {finding['text']}")


def _doctor(given: argparse.Namespace) -> None:
    from sac_torchrl.cli.doctor import diagnose

    lines = []
    for line in diagnose():
        lines.append(dict(zip(("state", "text"), line.split(maxsplit=1), strict=True)))
        if not given.json:
            print(line)
    if given.json:
        print(json.dumps(lines, indent=2))


def _plot(given: argparse.Namespace) -> None:
    from sac_torchrl.cli.compare import found_runs, grouped_runs
    from sac_torchrl.runs.comparison import draw_groups
    from sac_torchrl.runs.plots import curve

    folders = found_runs(given.folders)
    path = given.output or (Path("curve.png") if len(folders) > 1 else folders[0] / "curve.png")
    print(curve(folders, path) if given.by is None else draw_groups(grouped_runs(given.folders, given.by), path))
