"""`sac-torchrl play`: a policy on screen, or as mp4 or gif."""

import argparse
from pathlib import Path

from sac_torchrl.cli.policies import add_environment, add_policy, as_text, chosen_policy, environments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_policy(parser)
    add_environment(parser)
    parser.add_argument("--output", metavar="PATH", type=Path, help="NAME.mp4 or NAME.gif; by default on screen")
    parser.add_argument("--episodes", metavar="N", type=int, default=1, help="how many, by default 1")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the first episode, by default 0")
    parser.add_argument("--stochastic", action="store_true", help="draw actions from the policy")


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
