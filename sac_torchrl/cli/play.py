"""`sac-torchrl play`: a policy on screen, or as mp4 or gif."""

import argparse
from pathlib import Path

from sac_torchrl.cli.policies import add_environment, add_episodes, add_policy, as_text, chosen_policy, environments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_policy(parser)
    add_environment(parser)
    parser.add_argument("--output", metavar="PATH", type=Path, help="NAME.mp4 or NAME.gif; by default on screen")
    add_episodes(parser, default=1)


def run(given: argparse.Namespace) -> None:
    """Play, and print what came of it."""
    from sac_torchrl.deploy.play import play

    policy = chosen_policy(given)
    *_, env = environments(given, policy)
    returns = play(
        policy, env, given.output, episodes=given.episodes, seed=given.seed, deterministic=not given.stochastic
    )
    written = None if given.output is None else str(given.output)
    print(as_text({"env": env.id, "frames": policy.saved.frames, "returns": returns, "output": written}))
