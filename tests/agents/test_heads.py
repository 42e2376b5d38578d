"""The loss on the seam: equal to TorchRL's where both exist, and to plain sums over joint actions elsewhere."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded, Categorical, MultiCategorical, TensorSpec, Unbounded
from torchrl.objectives import LossModule
from training import train

from sac_torchrl.agents.agent import Agent
from sac_torchrl.agents.critics import action_value_critic, state_action_critic
from sac_torchrl.agents.discrete_sac import DiscreteSAC
from sac_torchrl.agents.head_loss import HeadLoss
from sac_torchrl.agents.heads import EnumeratedCategorical, EnumeratedNormal, Head, choose_head
from sac_torchrl.agents.losses import AlphaForm, CriticReduction, Terms
from sac_torchrl.agents.multi_discrete import ActionCritic, Factored
from sac_torchrl.agents.networks import NetworkConfig
from sac_torchrl.agents.policies import categorical_actor, tanh_normal_actor
from sac_torchrl.agents.sac import SAC
from sac_torchrl.agents.variant import assemble
from sac_torchrl.errors import ConfigError
from sac_torchrl.learner.capture import Execution
from sac_torchrl.learner.learner import LearnerConfig
from sac_torchrl.specs import Specs

CPU = torch.device("cpu")
GAMMA, ALPHA, ROWS, OBSERVED, ACTIONS = 0.9, 0.3, 12, 3, 4
SIZES = (3, 2, 4)
JOINT = list(itertools.product(*map(range, SIZES)))
SMALL = NetworkConfig([16, 12])
BOX, INDEX, SEVERAL = Bounded(-1, 1, shape=2), Categorical(ACTIONS), MultiCategorical(SIZES)


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def transitions(action: TensorSpec, *, seed: int = 4) -> TensorDict:
    """Rows 0 to 3 terminated."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.get_default_dtype())

    torch.manual_seed(seed)
    chosen: Tensor = action.expand(torch.Size([ROWS, *action.shape])).rand()
    rows = {
        "observation": normal(ROWS, OBSERVED),
        "action": chosen.to(torch.get_default_dtype()) if chosen.is_floating_point() else chosen,
        "next": {
            "observation": normal(ROWS, OBSERVED),
            "reward": normal(ROWS, 1),
            "terminated": (torch.arange(ROWS) < 4).unsqueeze(-1),
        },
    }
    return TensorDict(rows, batch_size=[ROWS])


def moved(agent: Agent) -> Agent:
    """The same agent with target networks that have moved away from its critics."""
    torch.manual_seed(8)
    with torch.no_grad():
        for leaf in agent.loss.target_qvalue_network_params.values(True, True):
            leaf.data.add_(torch.randn_like(leaf), alpha=0.2)
    return agent


def on_torchrl(action: TensorSpec, **fields: Any) -> Agent:
    torch.manual_seed(3)
    kind: Any = DiscreteSAC if isinstance(action, Categorical) else SAC
    built: Agent = kind(network=SMALL, gamma=GAMMA, alpha=ALPHA, **fields).build(
        Specs(Unbounded(shape=OBSERVED), action), device=CPU
    )
    return moved(built)


def on_seam(action: TensorSpec, **terms: Any) -> Agent:
    """The agent that `on_torchrl` builds, from the same draws, with HeadLoss in place of TorchRL's loss."""
    torch.manual_seed(3)
    specs = Specs(Unbounded(shape=OBSERVED), action)
    if isinstance(action, Categorical):
        network = SMALL.build(specs.observation, outputs=ACTIONS, device=CPU)
        actor = categorical_actor(network, specs, distribution_class=EnumeratedCategorical)
        critics = [action_value_critic(SMALL.build(specs.observation, outputs=ACTIONS, device=CPU)) for _ in range(2)]
    else:
        network = SMALL.build(specs.observation, outputs=4, device=CPU)
        actor = tanh_normal_actor(network, specs, distribution_class=EnumeratedNormal)
        critics = [
            state_action_critic(SMALL.build(specs.observation, inputs=2, outputs=1, device=CPU)) for _ in range(2)
        ]
    loss = HeadLoss(
        actor,
        critics[0],
        critics=2,
        alpha=[ALPHA],
        fixed_alpha=False,
        target_entropy=[0.2 * math.log(ACTIONS) if isinstance(action, Categorical) else -2.0],
        terms=Terms(**terms),
        stored_value=(
            (lambda values, chosen: values[:, torch.arange(len(chosen)), chosen])
            if isinstance(action, Categorical)
            else None
        ),
    )
    return moved(assemble(actor, loss, critics, gamma=GAMMA, tau=0.02 if isinstance(action, Categorical) else 0.005))


TERMS = {
    "actor_q": CriticReduction.mean,
    "alpha_form": AlphaForm.alpha,
    "reward_scale": 5.0,
    "critic_loss_scale": 0.5,
}


@pytest.mark.parametrize(
    ("execution", "terms"), [(Execution.captured, {}), (Execution.eager, {}), (Execution.eager, TERMS)]
)
@pytest.mark.parametrize("action", [BOX, INDEX], ids=["gaussian", "discrete"])
@pytest.mark.usefixtures("float64")
def test_the_seam_trains_as_torchrls_losses_do(action: TensorSpec, execution: Execution, terms: dict[str, Any]) -> None:
    batches = [transitions(action, seed=seed) for seed in range(5)]
    learners = [
        LearnerConfig(lr=1e-2, execution=execution).build(agent)
        for agent in (on_torchrl(action, **terms), on_seam(action, **terms))
    ]
    metrics = [train(learner, [batch.clone() for batch in batches]) for learner in learners]
    for expected, found in zip(*metrics, strict=True):
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)


def several(critic: ActionCritic, *, seed: int = 3, **fields: Any) -> Agent:
    torch.manual_seed(seed)
    return moved(
        DiscreteSAC(network=SMALL, gamma=GAMMA, alpha=ALPHA, critic=critic, **fields).build(
            Specs(Unbounded(shape=OBSERVED), SEVERAL), device=CPU
        )
    )


def perceptron(parameters: TensorDict, *inputs: Tensor, critic: int | None = None) -> Tensor:
    leaves = [
        leaf if critic is None else leaf[critic] for key, leaf in parameters.items(True, True) if key[-1] == "weight"
    ]
    biases = [
        leaf if critic is None else leaf[critic] for key, leaf in parameters.items(True, True) if key[-1] == "bias"
    ]
    value = torch.cat(inputs, -1)
    for weight, bias in zip(leaves[:-1], biases[:-1], strict=True):
        value = torch.relu(value @ weight.T + bias)
    output: Tensor = value @ leaves[-1].T + biases[-1]
    return output


def joint_values(kind: ActionCritic, parameters: TensorDict, observation: Tensor) -> Tensor:
    """Q of both critics for every joint action, `(2, rows, joint)`, written out one joint action at a time."""
    found = []
    for critic in range(2):
        columns = []
        for place, action in enumerate(JOINT):
            if kind is ActionCritic.joint:
                hot = torch.cat([torch.eye(size)[index] for size, index in zip(SIZES, action, strict=True)])
                hot = hot.expand(len(observation), -1)
                columns.append(perceptron(parameters, observation, hot, critic=critic).squeeze(-1))
                continue
            values = perceptron(parameters, observation, critic=critic)
            parts = values[:, : sum(SIZES)].split_with_sizes(list(SIZES), -1)
            column = total(parts, action, lambda part: part / len(SIZES))
            if kind is ActionCritic.enumerated:
                column = column + values[:, sum(SIZES) + place] / len(JOINT)
            columns.append(column)
        found.append(torch.stack(columns, -1))
    return torch.stack(found)


def joint_log_probs(loss: LossModule, observation: Tensor) -> Tensor:
    logits = perceptron(loss.actor_network_params, observation).split_with_sizes(list(SIZES), -1)
    return torch.stack([total(logits, action, lambda part: part.log_softmax(-1)) for action in JOINT], -1)


def total(parts: Sequence[Tensor], action: Sequence[int], of: Callable[[Tensor], Tensor]) -> Tensor:
    """The sum over dimensions of what `of` makes of their values, at an action, `(rows,)`."""
    return torch.stack([of(part)[:, index] for part, index in zip(parts, action, strict=True)]).sum(0)


def expected(kind: ActionCritic, loss: LossModule, batch: TensorDict, *, critic_entropy: bool) -> dict[str, Tensor]:
    """The losses, summed over all joint actions; the smaller expectation where values are decomposed."""

    def soft(log_probs: Tensor, values: Tensor) -> Tensor:
        probs = log_probs.exp()
        if kind is ActionCritic.decomposed:
            return (probs * values).sum(-1).amin(0)
        return (probs * values.amin(0)).sum(-1)

    alpha, following = loss.log_alpha.detach().exp(), batch["next"]
    with torch.no_grad():
        log_probs = joint_log_probs(loss, following["observation"])
        value = soft(log_probs, joint_values(kind, loss.target_qvalue_network_params, following["observation"]))
        if critic_entropy:
            value = value - alpha * (log_probs.exp() * log_probs).sum(-1)
        alive = 1.0 - following["terminated"].squeeze(-1).double()
        y = following["reward"].squeeze(-1) + GAMMA * alive * value
    places = torch.tensor([JOINT.index(tuple(action)) for action in batch["action"].tolist()])
    predicted = joint_values(kind, loss.qvalue_network_params, batch["observation"])[:, torch.arange(ROWS), places]
    log_probs = joint_log_probs(loss, batch["observation"])
    values = joint_values(kind, loss.qvalue_network_params.detach(), batch["observation"])
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    most = sum(math.log(size) for size in SIZES)
    return {
        "loss_qvalue": ((predicted - y) ** 2).sum(0).mean(),
        "loss_actor": -(soft(log_probs, values) + alpha * entropy).mean(),
        "loss_alpha": (loss.log_alpha * (entropy.detach() - 0.2 * most)).mean(),
        "alpha": alpha.squeeze(),
        "entropy": entropy.detach().mean(),
    }


TRAINED = {"loss_qvalue": "qvalue_network", "loss_actor": "actor_network", "loss_alpha": "log_alpha"}


def gradients(loss: LossModule, losses: Any, name: str) -> list[Tensor]:
    trained = [leaf for key, leaf in loss.named_parameters() if key.startswith(TRAINED[name])]
    return list(torch.autograd.grad(losses[name], trained, retain_graph=True))


@pytest.mark.parametrize("critic_entropy", [True, False])
@pytest.mark.parametrize("kind", list(ActionCritic), ids=lambda kind: kind.value)
@pytest.mark.usefixtures("float64")
def test_several_discrete_actions_are_sums_over_joint_ones(kind: ActionCritic, critic_entropy: bool) -> None:
    agent = several(kind, critic_entropy=critic_entropy)
    batch = transitions(SEVERAL)
    found, wanted = agent.loss(batch), expected(kind, agent.loss, batch, critic_entropy=critic_entropy)
    # A joint critic's actor draws all dimensions but one: see the test of its bias.
    drawn = {"loss_actor"} if kind is ActionCritic.joint else set()
    for name, value in wanted.items():
        if name not in drawn:
            torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)
    for name in TRAINED.keys() - drawn:
        for one, other in zip(gradients(agent.loss, found, name), gradients(agent.loss, wanted, name), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


class _Drew(Factored):
    """A policy that always draws the same action."""

    drawn: Tensor

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        return self.drawn.expand(*sample_shape, *self.batch_shape, -1)


@pytest.mark.usefixtures("float64")
def test_one_dimension_exact_and_the_others_drawn_is_unbiased() -> None:
    """The mean over every possible draw, each with its probability, is the gradient of the expectation."""
    torch.manual_seed(0)
    logits, values = torch.randn(5, sum(SIZES), requires_grad=True), torch.randn(5, len(JOINT))
    exact = Factored(logits, sizes=SIZES, critic=ActionCritic.enumerated, enumerate_up_to=0).choices()
    wanted = (exact.weights * values).sum(-1)
    mean = torch.zeros(5)
    for place, action in enumerate(JOINT):
        policy = _Drew(logits, sizes=SIZES, critic=ActionCritic.joint, enumerate_up_to=0)
        policy.drawn = torch.tensor(action)
        choices = policy.choices()
        rows = {tuple(row) for row in choices.actions[0].tolist()}
        assert len(rows) == choices.actions.shape[1] == 1 + sum(size - 1 for size in SIZES), "no row is asked for twice"
        of_choices = values.gather(-1, (choices.actions * torch.tensor([8, 4, 1])).sum(-1))
        mean = mean + exact.weights[:, place].detach() * (choices.weights * of_choices).sum(-1)
    torch.testing.assert_close(mean, wanted, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(value.sum(), logits, retain_graph=True)[0] for value in (mean, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_a_factored_policy_knows_its_probabilities() -> None:
    torch.manual_seed(0)
    logits = torch.randn(sum(SIZES))

    def of(rows: int) -> Factored:
        return Factored(logits.expand(rows, -1), sizes=SIZES, critic=ActionCritic.joint, enumerate_up_to=0)

    policy, log_probs = of(200_000), of(len(JOINT)).log_prob(torch.tensor(JOINT))
    drawn = (policy.sample() * torch.tensor([8, 4, 1])).sum(-1).bincount(minlength=len(JOINT)) / 200_000
    assert log_probs.exp().sum() == pytest.approx(1.0)
    torch.testing.assert_close(drawn, log_probs.exp(), rtol=0.0, atol=0.005)
    assert JOINT[int(log_probs.argmax())] == tuple(policy.deterministic_sample[0].tolist())
    assert float(policy.entropy()[0]) == pytest.approx(-float((log_probs.exp() * log_probs).sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "solves"), [(ActionCritic.joint, True), (ActionCritic.enumerated, True), (ActionCritic.decomposed, False)]
)
def test_xor_needs_a_critic_of_joint_actions(kind: ActionCritic, solves: bool) -> None:
    """One step, two bits, reward 1 where they differ: the mean of a value of each bit is the same for all actions."""
    torch.manual_seed(1)
    specs = Specs(Unbounded(shape=1), MultiCategorical([2, 2]))
    agent = DiscreteSAC(
        network=NetworkConfig([16]), critic=kind, alpha=0.1, fixed_alpha=True, enumerate_up_to=64
    ).build(specs, device=CPU)
    learner = LearnerConfig(lr=3e-2).build(agent)
    action = torch.tensor(list(itertools.product(range(2), range(2)))).repeat(16, 1)
    rows = {
        "observation": torch.ones(64, 1),
        "action": action,
        "next": {
            "observation": torch.ones(64, 1),
            "reward": (action[:, 0] != action[:, 1]).float().unsqueeze(-1),
            "terminated": torch.ones(64, 1, dtype=torch.bool),
        },
    }
    for _ in range(300):
        learner.update(TensorDict(rows, batch_size=[64]))
    policy = agent.actor.get_dist(TensorDict({"observation": torch.ones(2, 1)}, batch_size=[2]))
    rewarded = float(policy.log_prob(torch.tensor([[0, 1], [1, 0]])).exp().sum().detach())
    assert rewarded == pytest.approx(1.0 if solves else 0.5, abs=0.1)


def test_a_head_that_does_not_fit_is_refused_by_name() -> None:
    several = Specs(Unbounded(shape=1), SEVERAL)
    assert choose_head(Head.auto, several) is Head.multi_discrete
    with pytest.raises(ConfigError, match=r"variant.head=discrete .* needs multi_discrete"):
        choose_head(Head.discrete, several)
    with pytest.raises(ConfigError, match=r"1,440 joint actions.*variant.critic=joint"):
        DiscreteSAC(critic=ActionCritic.enumerated).build(
            Specs(Unbounded(shape=1), MultiCategorical([10, 12, 12])), device=CPU
        )
    with pytest.raises(ConfigError, match=r"q_clip=0.5: not with several discrete actions"):
        DiscreteSAC(q_clip=0.5).build(Specs(Unbounded(shape=1), SEVERAL), device=CPU)
    with pytest.raises(ConfigError, match=r"needs continuous actions.* 3 x 2 x 4 discrete ones"):
        SAC().build(Specs(Unbounded(shape=1), SEVERAL), device=CPU)
