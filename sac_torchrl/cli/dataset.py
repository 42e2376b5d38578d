"""`sac-torchrl dataset`: episodes of a policy as a Minari dataset."""

import argparse

from sac_torchrl.cli.policies import add_environment, add_policy, as_text, chosen_policy, environments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_policy(parser)
    parser.add_argument("name", metavar="NAME", help="of the dataset, as in pendulum/expert-v0")
    add_environment(parser)
    parser.add_argument("--episodes", metavar="N", type=int, default=100, help="how many, by default 100")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the first episode, by default 0")
    parser.add_argument("--stochastic", action="store_true", help="draw actions from the policy")


def run(given: argparse.Namespace) -> None:
    """Record, and print the returns."""
    from sac_torchrl.deploy.dataset import record_episodes

    policy = chosen_policy(given)
    *_, env = environments(given, policy)
    returns = record_episodes(
        policy, env, given.name, episodes=given.episodes, seed=given.seed, deterministic=not given.stochastic
    )
    print(as_text({"dataset": given.name, "env": env.id, "frames": policy.saved.frames, "returns": returns}))
