"""A task of one step with four goals: what a Gaussian, a mixture and a flow make of it, as a table and a picture.

python benchmarks/heads.py [--seeds 5]
python benchmarks/heads.py --cost             processor time of an update with each head
"""

import argparse
import math
import statistics
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded, Categorical, MultiCategorical, TensorSpec, Unbounded

from sac_torchrl.agents.discrete_sac import DiscreteSAC
from sac_torchrl.agents.heads import PolicyForm
from sac_torchrl.agents.multi_discrete import ActionCritic
from sac_torchrl.agents.networks import NetworkConfig
from sac_torchrl.agents.sac import SAC
from sac_torchrl.agents.variant import Variant
from sac_torchrl.learner.learner import Learner, LearnerConfig
from sac_torchrl.specs import HybridAction, Specs

GOALS = torch.tensor([[0.7, 0.0], [-0.7, 0.0], [0.0, 0.7], [0.0, -0.7]])
ALPHA = 0.25
UPDATES, ROWS, DRAWN = 2500, 64, 4000
POLICIES: dict[str, dict[str, Any]] = {
    "Gaussian": {"policy": PolicyForm.gaussian},
    "mixture of 4": {"policy": PolicyForm.mixture, "components": 4},
    "flow of 6": {"policy": PolicyForm.flow, "couplings": 6},
}


def reward(action: Tensor) -> Tensor:
    """-8 times the squared distance to the nearest goal, of actions `(..., 2)`."""
    return -8 * ((action.unsqueeze(-2) - GOALS) ** 2).sum(-1).amin(-1)


def optimum(points: int = 800) -> float:
    """The best soft value: alpha times the logarithm of the integral of exp(reward / alpha)."""
    side = (torch.arange(points) + 0.5) * 2 / points - 1
    grid = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1)
    return ALPHA * float((reward(grid) / ALPHA).flatten().logsumexp(0) + 2 * math.log(2 / points))


def trained(seed: int, fields: dict[str, Any]) -> tuple[float, Tensor]:
    """The soft value after training, and actions `(DRAWN, 2)` of the policy."""
    torch.manual_seed(seed)
    specs = Specs(Unbounded(shape=1), Bounded(-1, 1, shape=2))
    variant = SAC(network=NetworkConfig([32, 32]), critic_hidden=[64, 64], alpha=ALPHA, fixed_alpha=True, **fields)
    learner = LearnerConfig(lr=3e-3).build(variant.build(specs, device=torch.device("cpu")))
    generator, ones = torch.Generator().manual_seed(seed), torch.ones(ROWS, 1)
    for _ in range(UPDATES):
        action = 2 * torch.rand(ROWS, 2, generator=generator) - 1
        following = {
            "observation": ones,
            "reward": reward(action).unsqueeze(-1),
            "terminated": torch.ones(ROWS, 1, dtype=torch.bool),
        }
        learner.update(TensorDict({"observation": ones, "action": action, "next": following}, batch_size=[ROWS]))
    with torch.no_grad():
        policy: Any = learner.agent.actor.get_dist(
            TensorDict({"observation": torch.ones(DRAWN, 1)}, batch_size=[DRAWN])
        )
        if fields["policy"] is PolicyForm.mixture:
            choices = policy.target_choices()
            soft = (choices.weights * (reward(choices.actions) - ALPHA * choices.log_probs.squeeze(-1))).sum(-1)
            return float(soft.mean()), policy.sample()
        drawn, log_prob = policy.rsample_and_log_prob()
        return float((reward(drawn) - ALPHA * log_prob).mean()), drawn


def learner_of(variant: Variant, specs: Specs) -> Learner:
    """A captured learner."""
    torch.manual_seed(0)
    return LearnerConfig().build(variant.build(specs, device=torch.device("cpu")))


def batch_of(action: TensorSpec) -> TensorDict:
    """256 random rows of HalfCheetah-v5's observations."""
    chosen: Tensor = action.expand(torch.Size([256, *action.shape])).rand()
    rows = {
        "observation": torch.randn(256, 17),
        "action": chosen,
        "next": {
            "observation": torch.randn(256, 17),
            "reward": torch.randn(256, 1),
            "terminated": torch.zeros(256, 1, dtype=torch.bool),
        },
    }
    return TensorDict(rows, batch_size=[256])


def hybrid(values: int, *, shared: bool) -> Specs:
    """One discrete choice with 6 parameters, of every value or one after the other."""
    own = [tuple(range(6)) if shared else tuple(range(6))[k::values] for k in range(values)]
    return specs_of(Bounded(-1.0, 1.0, shape=7), hybrid=HybridAction((values,), 6, tuple(own)))


def specs_of(action: TensorSpec, **more: Any) -> Specs:
    """Those of HalfCheetah-v5's observations."""
    return Specs(Unbounded(shape=17), action, **more)


BOX = Bounded(-1.0, 1.0, shape=6)
# A head, n and K (the critics' rows for a state in the actor's loss), and what it is measured by.
COSTS: list[tuple[str, str, str, Variant, Specs]] = [
    ("Gaussian, TorchRL's loss", "", "1", SAC(), specs_of(BOX)),
    ("Gaussian, HeadLoss", "", "1", SAC(critic_entropy=False), specs_of(BOX)),
    *(("mixture", str(k), str(k), SAC(policy=PolicyForm.mixture, components=k), specs_of(BOX)) for k in (1, 2, 4, 8)),
    ("flow", "6 couplings", "1", SAC(policy=PolicyForm.flow), specs_of(BOX)),
    ("hybrid, 6 parameters of every value", "3", "3", SAC(), hybrid(3, shared=True)),
    *(("hybrid, 6 parameters of one each", str(k), str(k), SAC(), hybrid(k, shared=False)) for k in (2, 3, 6)),
    ("discrete, TorchRL's loss", "18", "all in 1", DiscreteSAC(), specs_of(Categorical(18))),
    ("discrete, HeadLoss", "18", "all in 1", DiscreteSAC(critic_entropy=False), specs_of(Categorical(18))),
    *(
        (f"6 x 3, {kind.value}", n, rows, DiscreteSAC(critic=kind), specs_of(MultiCategorical([3] * 6)))
        for kind, n, rows in zip(ActionCritic, ("18", "18", "729"), ("13", "all in 1", "all in 1"), strict=True)
    ),
]


def cost(turns: int = 9, updates: int = 30) -> None:
    """Print the processor time of an update of every head as a part of the first, measured in turns."""
    learners = [(learner_of(variant, specs), batch_of(specs.action)) for *_, variant, specs in COSTS]
    spent: list[list[float]] = [[] for _ in COSTS]
    for turn in range(turns + 1):
        for times, (learner, batch) in zip(spent, learners, strict=True):
            begun = time.process_time()
            for _ in range(updates):
                learner.update(batch)
            if turn:  # the first one records
                times.append((time.process_time() - begun) / updates * 1e3)
    print("| head | n | K | ms of processor time an update | of the first |")
    print("|---|---|---|---|---|")
    for (name, n, k, *_), times in zip(COSTS, spent, strict=True):
        ratios = sorted(one / first for one, first in zip(times, spent[0], strict=True))
        part = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"| {name} | {n} | {k} | {statistics.median(times):.1f} | {part} |")


def main() -> None:
    """Print the table and draw the first seed's policies into docs/pictures/heads.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cost", action="store_true")
    arguments = parser.parse_args()
    if arguments.cost:
        cost()
        return
    seeds = arguments.seeds
    mpl.use("Agg")
    best = optimum()
    figure, axes = plt.subplots(1, len(POLICIES), figsize=(9, 3.2), sharex=True, sharey=True)
    print("| policy | gap to the best soft value: mean, worst | goals visited (5 % of actions or more), by seed |")
    print("|---|---|---|")
    for (name, fields), plot in zip(POLICIES.items(), axes, strict=True):
        gaps, visited = [], []
        for seed in range(seeds):
            value, actions = trained(seed, fields)
            nearest = ((actions.unsqueeze(-2) - GOALS) ** 2).sum(-1).argmin(-1)
            gaps.append(best - value)
            visited.append(int((nearest.bincount(minlength=4) >= 0.05 * DRAWN).sum()))
            if seed == 0:
                plot.scatter(*actions[:1500].T, s=2, alpha=0.4)
                plot.scatter(*GOALS.T, marker="x", color="black")
                plot.set(title=name, xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
        print(
            f"| {name} | {statistics.fmean(gaps):.3f}, {max(gaps):.3f} | {', '.join(map(str, visited))} |", flush=True
        )
    figure.tight_layout()
    figure.savefig(Path(__file__).parents[1] / "docs" / "pictures" / "heads.png", dpi=120)


if __name__ == "__main__":
    main()
