"""`sac-torchrl dataset`: episodes of a policy as a Minari dataset."""

import argparse

from sac_torchrl.cli.policies import add_environment, add_episodes, add_policy, as_text, chosen_policy, environments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_policy(parser)
    parser.add_argument("name", metavar="NAME", help="of the dataset, as in pendulum/expert-v0")
    add_environment(parser)
    add_episodes(parser, default=100)


def run(given: argparse.Namespace) -> None:
    """Record, and print the returns."""
    from sac_torchrl.deploy.dataset import record_episodes

    policy = chosen_policy(given)
    *_, env = environments(given, policy)
    returns = record_episodes(
        policy, env, given.name, episodes=given.episodes, seed=given.seed, deterministic=not given.stochastic
    )
    print(as_text({"dataset": given.name, "env": env.id, "frames": policy.saved.frames, "returns": returns}))
