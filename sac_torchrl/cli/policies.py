"""What the commands on policies share: which policy, which environment, what is printed."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sac_torchrl.deploy.policy import Policy
    from sac_torchrl.envs.config import EnvConfig


def add_policy(parser: argparse.ArgumentParser) -> None:
    """Arguments that choose a policy."""
    parser.add_argument(
        "policy", metavar="RUN", type=Path, help="a run, one of its policies/ or checkpoints/, or an export"
    )
    parser.add_argument("--checkpoint", metavar="N", help="of a run: newest (the default), best, or frames")
    add_plugin(parser)


def add_plugin(parser: argparse.ArgumentParser) -> None:
    """The option that imports modules."""
    parser.add_argument(
        "--plugin", metavar="MODULE", action="append", default=[], help="import a module with environments"
    )


def add_environment(parser: argparse.ArgumentParser) -> None:
    """Keys of the environment that are changed."""
    parser.add_argument("settings", metavar="env.KEY=VALUE", nargs="*", help="other settings of the environment")


def add_episodes(parser: argparse.ArgumentParser, *, default: int) -> None:
    """Options of the episodes that are played."""
    parser.add_argument("--episodes", metavar="N", type=int, default=default, help=f"how many, by default {default}")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the first episode, by default 0")
    parser.add_argument("--stochastic", action="store_true", help="draw actions from the policy")


def chosen_policy(given: argparse.Namespace) -> "Policy":
    """The policy that the arguments choose."""
    from sac_torchrl.deploy.policies import policy_path
    from sac_torchrl.deploy.policy import Policy

    return Policy.load(policy_path(given.policy, given.checkpoint))


def environments(given: argparse.Namespace, policy: "Policy") -> list["EnvConfig"]:
    """The environment of the training, and, where keys are given, the same one with these changed."""
    from sac_torchrl.config.command_line import CommandLine
    from sac_torchrl.deploy.recorded import check_spaces, environment_of

    found = [environment_of(policy.saved, given.plugin)]
    if given.settings:
        found.append(environment_of(policy.saved, given.plugin, CommandLine.read(given.settings).settings()))
        check_spaces(policy, found[-1])
    return found


def as_text(content: Any) -> str:
    """JSON as every command prints it."""
    return json.dumps(content, indent=2)
