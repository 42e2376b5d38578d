"""`sac-torchrl export`: a policy as a file for programs without this package."""

import argparse
import json
from pathlib import Path

OBSERVATIONS = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("policy", metavar="RUN", type=Path, help="a run, one of its checkpoints, policies/best, ...")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="NAME.onnx, NAME.pt2, or a new folder")
    parser.add_argument("--checkpoint", metavar="N", help="of a run: newest (the default), best or frames")
    parser.add_argument(
        "--plugin", metavar="MODULE", action="append", default=[], help="import a module with environments"
    )


def run(given: argparse.Namespace) -> None:
    """Record observations, write the file, print what it says of itself."""
    from sac_torchrl.deploy.export import check_output, export_policy
    from sac_torchrl.deploy.policies import policy_path
    from sac_torchrl.deploy.policy import Policy
    from sac_torchrl.deploy.recorded import environment_of, record_observations

    check_output(given.output)
    policy = Policy.load(policy_path(given.policy, given.checkpoint))
    env = environment_of(policy.saved, given.plugin)
    recorded = record_observations(policy, env, OBSERVATIONS, seed=policy.saved.seed)
    print(json.dumps(export_policy(policy, given.output, recorded).metadata(), indent=2))
