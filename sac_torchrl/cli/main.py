"""The command `sac-torchrl`: train, resume, evaluate, verify and plot runs; look at environments and the machine."""

import argparse
import importlib.metadata
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

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
    look = command("evaluate", _evaluate, "play episodes with a run's newest checkpoint; write evaluation.json")
    look.add_argument("folder", metavar="FOLDER", type=Path)
    look.add_argument("--episodes", metavar="N", type=int, help="how many; by default as many as in training")
    look.add_argument("--video", action="store_true", help="film one more episode into FOLDER/videos/")
    look.add_argument(
        "--plugin", metavar="MODULE", action="append", default=[], help="import a module with environments"
    )
    look.add_argument("settings", metavar="KEY=VALUE", nargs="*", help="other keys of the environment, env.KEY=VALUE")
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
    command("doctor", _doctor, "show what works on this machine, and what to install for the rest")
    plot = command("plot", _plot, "draw the learning curve of a run, or the mean curve of several")
    plot.add_argument("folders", metavar="FOLDER", type=Path, nargs="+")
    plot.add_argument("--output", metavar="PATH", type=Path, help="by default curve.png, in a single run's folder")
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


def _evaluate(given: argparse.Namespace) -> None:
    from sac_torchrl.config.command_line import CommandLine
    from sac_torchrl.config.files import load
    from sac_torchrl.runs import snapshot
    from sac_torchrl.runs.device import resolve_device
    from sac_torchrl.runs.evaluation import evaluate, record_video, write_evaluation
    from sac_torchrl.runs.seeds import Seeds

    folder: Path = given.folder
    config = load(folder, plugins=given.plugin, settings=CommandLine.read(given.settings).settings())
    episodes = config.evaluate.episodes if given.episodes is None else given.episodes
    if episodes < 1:
        raise ConfigError(f"--episodes {episodes}: give 1 or more.")
    specs = config.specs()
    saved = next(snapshot.intact(folder / "checkpoints"), None)
    if saved is None:
        raise CheckpointError(f"{folder} holds no checkpoint yet: let the run go on until it has saved one.")
    agent = config.agent(specs, device=resolve_device(config.device))
    config.learner.build(agent).load_state_dict(saved.state["parts"]["learner"])
    # The seed and the number of environments of the recipes: the last evaluation of a run comes out again.
    seed = Seeds.derive(config.seed).evaluation + saved.frames
    env = config.env.build(seed=seed, count=episodes)
    try:
        evaluation = evaluate(agent.actor, env, episodes=episodes, seed=seed, timeout=config.evaluate.timeout)
    finally:
        env.close()
    path = folder / "evaluation.json"
    write_evaluation(evaluation, path, env=config.env.id, frames=saved.frames, seed=config.seed)
    print(path.read_text(), end="")
    if given.video:
        print(record_video(agent.actor, config.env, folder / "videos" / f"{saved.frames}.mp4", seed=seed))


def _verify(given: argparse.Namespace) -> None:
    from sac_torchrl.runs import snapshot

    folder: Path = given.folder / "checkpoints"
    found = snapshot.frames_in(folder)
    if not found:
        raise CheckpointError(f"{given.folder} holds no checkpoint.")
    damages: list[str] = []
    for frames in found:
        try:
            one = snapshot.verify(folder / str(frames))
        except CheckpointError as error:
            damages.append(str(error))
            print(f"{frames} damaged: {error}")
        else:
            print(f"{frames} intact", *([snapshot.digest(folder, one)] if given.digest else []))
    if damages:
        raise CheckpointError(
            f"{len(damages)} of {len(found)} checkpoints are damaged ({damages[0]}): "
            + ("resuming takes the newest intact one." if len(damages) < len(found) else "bring back a copy of one.")
        )


def _check_env(given: argparse.Namespace) -> None:
    from sac_torchrl.config.command_line import CommandLine
    from sac_torchrl.config.compose import with_environment
    from sac_torchrl.config.schema import TrainConfig
    from sac_torchrl.envs.check import Kind, check_env
    from sac_torchrl.envs.config import EnvConfig

    fatal = ""
    config = TrainConfig(env=EnvConfig(given.id, plugins=given.plugin))
    for finding in check_env(with_environment(config, CommandLine.read(given.settings).settings()).env):
        print(f"{finding.kind.value:8}{finding.text}")
        fatal = fatal or (finding.text if finding.kind is Kind.fault else "")
    if fatal:
        raise ConfigError(f"{given.id} cannot be trained on: {fatal}")


def _doctor(given: argparse.Namespace) -> None:
    from sac_torchrl.cli.doctor import diagnose

    for line in diagnose():
        print(line)


def _plot(given: argparse.Namespace) -> None:
    from sac_torchrl.runs.plots import curve

    folders: list[Path] = given.folders
    alone = Path("curve.png") if len(folders) > 1 else folders[0] / "curve.png"
    print(curve(folders, given.output or alone))
