"""Every preset of a published system: its numbers, and its updates derived again in plain torch in float64."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictParams
from torch import Tensor
from torch.nn.functional import softplus
from torchrl.data import Bounded, Categorical, Unbounded

from sac_torchrl import Execution, Learner, SACv1, Specs
from sac_torchrl.agents.discrete_sac import DiscreteSAC
from sac_torchrl.agents.heads import PolicyForm
from sac_torchrl.agents.mixture import Gradient
from sac_torchrl.agents.sac import SAC
from sac_torchrl.config.layers import SHIPPED, read
from sac_torchrl.config.recipes import configure
from sac_torchrl.config.schema import TrainConfig, chosen
from sac_torchrl.specs import ENTROPY, SPAN

CPU = torch.device("cpu")
ROWS, OBSERVED, DIMENSIONS, ACTIONS = 12, 3, 2, 4


@dataclass(frozen=True)
class System:
    """What a system does, written down from its code; the defaults are what most of them do."""

    variant: str = "sac"
    hidden: tuple[int, ...] = (256, 256)
    init: str = "torch"
    std: str = "clip"
    lr: tuple[float, float, float] = (3e-4, 3e-4, 3e-4)  # policy, critics, temperature
    eps: float = 1e-8
    batch: int = 256
    gamma: float = 0.99
    tau: float = 0.005
    target_every: int = 1
    clipped: float | None = None  # the norm of each loss's gradient
    alpha: float = 1.0
    learned: bool = True
    entropy_ratio: float | None = None  # of log(actions); None: `per_dimension` for each dimension
    per_dimension: float = -1.0
    alpha_form: str = "log_alpha"
    reward_scale: float = 1.0
    actor_q: str = "min"
    target_q: str = "min"
    q_clip: float | None = None
    entropy_penalty: float = 0.0
    half: bool = False  # the critics' loss
    order: str = "together"
    actor_every: int = 1
    actor_updates: int = 1
    random: int = 1_000
    starts: int | None = None
    ratio: float = 1.0
    update_every: int = 1
    n_steps: int = 1
    capacity: int = 1_000_000
    envs: int = 1
    total: int = 1_000_000
    evaluated: tuple[int, int] = (1_000, 10)  # every so many frames, on so many episodes


SYSTEMS = {
    "spinup": System(
        lr=(1e-3, 1e-3, 1e-3),
        batch=100,
        alpha=0.2,
        learned=False,
        order="critics_first",
        random=10_000,
        starts=950,
        update_every=50,
        total=400_000,
        evaluated=(4_000, 10),
    ),
    "haarnoja2018a": System(
        variant="sac_v1",
        init="xavier_uniform",
        learned=False,
        reward_scale=5.0,
        actor_q="first",
        half=True,
        starts=999,
        total=3_000_000,
        evaluated=(1_000, 1),
    ),
    "softlearning": System(
        init="xavier_uniform",
        std="softplus",
        eps=1e-7,
        alpha_form="alpha",
        actor_q="mean",
        half=True,
        order="one_by_one",
        random=10_000,
        total=3_000_000,
        evaluated=(25_000, 1),
    ),
    "pytorch_sac": System(
        hidden=(1024, 1024),
        init="orthogonal",
        std="tanh",
        lr=(1e-4, 1e-4, 1e-4),
        batch=1024,
        target_every=2,
        alpha=0.1,
        alpha_form="alpha",
        order="critics_first",
        random=5_000,
        evaluated=(10_000, 10),
    ),
    "cleanrl": System(
        std="tanh",
        lr=(3e-4, 1e-3, 1e-3),
        alpha_form="alpha",
        order="one_by_one",
        actor_every=2,
        actor_updates=2,
        random=5_000,
        evaluated=(10_000, 10),
    ),
    "sb3": System(half=True, order="critics_first", random=100, evaluated=(25_000, 5)),
    "tianshou": System(
        lr=(1e-3, 1e-3, 1e-3),
        alpha=0.2,
        learned=False,
        order="critics_first",
        random=10_000,
        total=1_010_000,
        evaluated=(5_000, 10),
    ),
    "torchrl": System(
        std="biased_softplus", random=25_000, starts=24_000, update_every=1_000, envs=8, evaluated=(25_000, 8)
    ),
    "jaxrl": System(
        init="orthogonal",
        per_dimension=-0.5,
        alpha_form="alpha",
        order="critics_first",
        random=10_000,
        starts=9_999,
        evaluated=(5_000, 10),
    ),
    "christodoulou2019": System(
        variant="discrete_sac",
        hidden=(512,),
        init="he_normal",
        eps=1e-4,
        batch=64,
        tau=1.0,
        target_every=2_000,
        clipped=5.0,
        entropy_ratio=0.98,
        order="critics_first",
        random=20_000,
        ratio=0.25,
        total=100_000,
    ),
    "sd_sac": System(
        variant="discrete_sac",
        hidden=(512,),
        lr=(1e-5, 1e-5, 1e-5),
        batch=64,
        alpha=0.05,
        learned=False,
        entropy_ratio=0.2,
        actor_q="mean",
        target_q="mean",
        q_clip=0.5,
        entropy_penalty=0.5,
        order="critics_first",
        random=0,
        starts=640,
        ratio=0.1,
        n_steps=3,
        capacity=100_000,
        envs=10,
        total=10_000_000,
        evaluated=(50_000, 10),
    ),
}
NAMES = pytest.mark.parametrize("name", SYSTEMS)


def configured(name: str) -> TrainConfig:
    return configure(read(SHIPPED / "presets" / f"{name}.yaml").head or "continuous", preset=name)


def numbers(config: TrainConfig) -> System:
    """The preset as a row of the table."""
    variant, learner = config.variant, config.learner
    assert isinstance(variant, SAC | SACv1 | DiscreteSAC)
    assert variant.critics == 2
    assert variant.critic_hidden is None
    assert learner.betas == (0.9, 0.999)
    assert learner.weight_decay == 0
    own = [learner.lr if rate is None else rate for rate in (learner.actor_lr, learner.critic_lr, learner.alpha_lr)]
    row = System(
        variant=chosen(config)["variant"],
        hidden=tuple(variant.network.hidden),
        init=variant.network.init.value,
        lr=(own[0], own[1], own[2]),
        eps=learner.eps,
        batch=config.batch_size,
        gamma=variant.gamma,
        tau=variant.tau,
        target_every=learner.target_every,
        clipped=learner.max_grad_norm,
        alpha=variant.alpha,
        learned=not isinstance(variant, SACv1) and not variant.fixed_alpha,
        reward_scale=variant.reward_scale,
        actor_q=variant.actor_q.value,
        half=isinstance(variant, SACv1) or {0.5: True, 1.0: False}[variant.critic_loss_scale],
        order=learner.order.value,
        actor_every=learner.actor_every,
        actor_updates=learner.actor_updates,
        random=config.random_frames,
        starts=config.learning_starts,
        ratio=config.replay_ratio,
        update_every=config.update_every,
        n_steps=config.n_steps,
        capacity=config.replay.capacity,
        envs=config.env.count,
        total=config.total_frames,
        evaluated=(config.evaluate.every, config.evaluate.episodes),
    )
    if not isinstance(variant, DiscreteSAC):
        row = replace(row, std=variant.std.value)
    if not isinstance(variant, SACv1):
        row = replace(row, alpha_form=variant.alpha_form.value)
    if isinstance(variant, SAC):
        row = replace(row, per_dimension=variant.entropy_per_dimension)
    if isinstance(variant, DiscreteSAC):
        row = replace(
            row,
            entropy_ratio=variant.target_entropy_ratio,
            target_q=variant.target_q.value,
            q_clip=variant.q_clip,
            entropy_penalty=variant.entropy_penalty,
        )
    return row


@NAMES
def test_every_number_of_a_preset_is_its_systems(name: str) -> None:
    assert numbers(configured(name)) == SYSTEMS[name]


@NAMES
def test_a_preset_of_a_system_leaves_the_task_to_others(name: str) -> None:
    assert "env.id" not in {setting.key for setting in read(SHIPPED / "presets" / f"{name}.yaml").settings}


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def small(name: str) -> Learner:
    """The preset's learner on narrow networks, two updates before its target networks move next."""
    config = configured(name)
    assert isinstance(config.variant, SAC | SACv1 | DiscreteSAC)
    config.variant.network.hidden = [10, 8]
    discrete = config.variant.__class__ is DiscreteSAC
    action = Categorical(ACTIONS) if discrete else Bounded(-1, 1, shape=DIMENSIONS)
    torch.manual_seed(3)
    agent = config.variant.build(Specs(Unbounded(shape=OBSERVED), action), device=CPU)
    config.learner.execution = Execution.eager
    learner = config.learner.build(agent)
    learner.updates = 1_998
    return learner


def batches(count: int, system: System) -> list[TensorDict]:
    torch.manual_seed(4)
    discrete = system.variant == "discrete_sac"
    return [
        TensorDict(
            {
                "observation": torch.randn(ROWS, OBSERVED),
                "action": torch.randint(ACTIONS, (ROWS,)) if discrete else 2 * torch.rand(ROWS, DIMENSIONS) - 1,
                "next": {
                    "observation": torch.randn(ROWS, OBSERVED),
                    "reward": torch.randn(ROWS, 1),
                    "terminated": (torch.arange(ROWS) % 4 == 0).unsqueeze(-1),
                },
                SPAN: torch.randint(1, system.n_steps + 1, (ROWS, 1)),
                ENTROPY: math.log(ACTIONS) * torch.rand(ROWS),
            },
            batch_size=[ROWS],
        )
        for _ in range(count)
    ]


Weights = list[Tensor]  # of one perceptron: weight, bias, weight, bias, ...


def leaves(parameters: TensorDictParams, critic: int | None = None) -> Weights:
    """The perceptron's own tensors, copied; of one critic where several are stacked."""
    found = {".".join(map(str, key)): leaf.detach().clone() for key, leaf in parameters.items(True, True)}
    names = sorted({name.rpartition(".")[0] for name in found})
    ordered = [found[f"{name}.{part}"] for name in names for part in ("weight", "bias")]
    return [(leaf if critic is None else leaf[critic]).requires_grad_() for leaf in ordered]


def perceptron(weights: Weights, *inputs: Tensor) -> Tensor:
    value = torch.cat(inputs, -1)
    for index in range(0, len(weights), 2):
        value = value @ weights[index].T + weights[index + 1]
        value = value.relu() if index + 2 < len(weights) else value
    return value


STD: dict[str, Callable[[Tensor], Tensor]] = {
    "clip": lambda x: torch.exp(torch.minimum(torch.maximum(x, torch.tensor(-20.0)), torch.tensor(2.0))),
    "tanh": lambda x: torch.exp(-5 + 0.5 * (2 + 5) * (torch.tanh(x) + 1)),
    "softplus": lambda x: torch.log1p(torch.exp(x)) + 1e-5,
    "biased_softplus": lambda x: torch.clamp(torch.log1p(torch.exp(x + math.log(math.exp(0.99) - 1))) + 0.01, min=0.1),
}
MANY: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "min": lambda values: torch.minimum(values[0], values[1]),
    "mean": lambda values: (values[0] + values[1]) / 2,
    "first": lambda values: values[0],
}


class Adam:
    """Kingma and Ba 2015, algorithm 1."""

    def __init__(self, weights: Weights, *, lr: float, eps: float) -> None:
        self.weights, self.lr, self.eps, self.count = weights, lr, eps, 0
        self.first, self.second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))

    def step(self, gradients: tuple[Tensor, ...]) -> None:
        self.count += 1
        with torch.no_grad():
            for weight, gradient, first, second in zip(self.weights, gradients, self.first, self.second, strict=True):
                first.mul_(0.9).add_(0.1 * gradient)
                second.mul_(0.999).add_(0.001 * gradient**2)
                scale = torch.sqrt(second / (1 - 0.999**self.count)) + self.eps
                weight.sub_(self.lr * first / (1 - 0.9**self.count) / scale)


class Derivation:
    """One system in plain torch, begun with a learner's weights."""

    def __init__(self, system: System, learner: Learner) -> None:
        loss = learner.agent.loss
        self.system, self.updates = system, learner.updates
        self.actor = leaves(loss.actor_network_params)
        self.critics = [leaves(loss.qvalue_network_params, critic) for critic in range(2)]
        self.value = leaves(loss.value_network_params) if system.variant == "sac_v1" else []
        followed = [self.value] if self.value else self.critics
        self.targets = [[leaf.detach().clone() for leaf in weights] for weights in followed]
        self.log_alpha = torch.tensor(math.log(system.alpha), requires_grad=True)
        self.trained = {
            "critics": [*self.critics[0], *self.critics[1], *self.value],
            "actor": self.actor,
            "alpha": [self.log_alpha],
        }
        rates = {"critics": system.lr[1], "actor": system.lr[0], "alpha": system.lr[2]}
        self.optimizers = {
            name: Adam(weights, lr=rates[name], eps=system.eps) for name, weights in self.trained.items()
        }

    def update(self, batch: TensorDict) -> None:
        system = self.system
        self.updates += 1
        policy = ["actor", "alpha"] if system.learned else ["actor"]
        rounds = [["critics"]]
        if self.updates % system.actor_every == 0:
            if system.order == "together":
                rounds = [["critics", *policy]]
            elif system.order == "critics_first":
                rounds += [policy] * system.actor_updates
            else:
                rounds += [[name] for name in policy] * system.actor_updates
        for names in rounds:
            losses = self.losses(batch)
            gradients = {name: torch.autograd.grad(losses[name], self.trained[name]) for name in names}
            for name in names:
                norm = math.sqrt(sum(float((one**2).sum()) for one in gradients[name]))
                factor = min(1.0, (system.clipped or torch.inf) / (norm + 1e-6))
                self.optimizers[name].step(tuple(factor * one for one in gradients[name]))
        if self.updates % system.target_every == 0:
            with torch.no_grad():
                for old, new in zip(self.targets, [self.value] if self.value else self.critics, strict=True):
                    for target, leaf in zip(old, new, strict=True):
                        target.copy_((1 - system.tau) * target + system.tau * leaf)

    def losses(self, batch: TensorDict) -> dict[str, Tensor]:
        kinds = {"sac": self.second_version, "sac_v1": self.first_version, "discrete_sac": self.discrete}
        return kinds[self.system.variant](batch)

    def bellman(self, batch: TensorDict, after: Tensor) -> Tensor:
        reward, ended = (batch["next", name].squeeze(-1) for name in ("reward", "terminated"))
        discount = self.system.gamma ** batch[SPAN].squeeze(-1)
        y: Tensor = self.system.reward_scale * reward + discount * torch.where(ended, 0.0, after)
        return y.detach()

    def draw(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        output = perceptron(self.actor, observation)
        mean, std = output[:, :DIMENSIONS], STD[self.system.std](output[:, DIMENSIONS:])
        noise = torch.randn(ROWS, DIMENSIONS)
        u = mean + std * noise
        log_normal = -(noise**2) / 2 - std.log() - math.log(2 * math.pi) / 2
        return u.tanh(), (log_normal - 2 * (math.log(2) - u - softplus(-2 * u))).sum(-1)

    def regression(self, values: list[Tensor], y: Tensor) -> Tensor:
        return sum((((value - y) ** 2).mean() for value in values), torch.zeros(())) * (0.5 if self.system.half else 1)

    def temperature(self, entropy: Tensor) -> Tensor:
        ratio = self.system.entropy_ratio
        target = self.system.per_dimension * DIMENSIONS if ratio is None else ratio * math.log(ACTIONS)
        factor = self.log_alpha.exp() if self.system.alpha_form == "alpha" else self.log_alpha
        return factor * (entropy.detach() - target).mean()

    def second_version(self, batch: TensorDict) -> dict[str, Tensor]:
        seen, following, alpha = batch["observation"], batch["next", "observation"], self.log_alpha.detach().exp()
        next_action, next_log_prob = self.draw(following)
        after = MANY["min"]([perceptron(one, following, next_action).squeeze(-1) for one in self.targets])
        values = [perceptron(one, seen, batch["action"]).squeeze(-1) for one in self.critics]
        action, log_prob = self.draw(seen)
        chosen = MANY[self.system.actor_q]([perceptron(one, seen, action).squeeze(-1) for one in self.critics])
        return {
            "critics": self.regression(values, self.bellman(batch, after - alpha * next_log_prob)),
            "actor": (alpha * log_prob - chosen).mean(),
            "alpha": self.temperature(-log_prob),
        }

    def first_version(self, batch: TensorDict) -> dict[str, Tensor]:
        seen, following, alpha = batch["observation"], batch["next", "observation"], self.system.alpha
        y = self.bellman(batch, perceptron(self.targets[0], following).squeeze(-1))
        values = [perceptron(one, seen, batch["action"]).squeeze(-1) for one in self.critics]
        action, log_prob = self.draw(seen)
        of_policy = [perceptron(one, seen, action).squeeze(-1) for one in self.critics]
        soft = (MANY["min"](of_policy) - alpha * log_prob).detach()
        value = perceptron(self.value, seen).squeeze(-1)
        return {
            "critics": self.regression(values, y) + ((value - soft) ** 2).mean() / 2,
            "actor": (alpha * log_prob - MANY[self.system.actor_q](of_policy)).mean(),
        }

    def discrete(self, batch: TensorDict) -> dict[str, Tensor]:
        seen, following, alpha = batch["observation"], batch["next", "observation"], self.log_alpha.detach().exp()
        rows = torch.arange(ROWS), batch["action"]
        next_log_prob = perceptron(self.actor, following).log_softmax(-1)
        after = MANY[self.system.target_q]([perceptron(one, following) for one in self.targets])
        y = self.bellman(batch, (next_log_prob.exp() * (after - alpha * next_log_prob)).sum(-1))
        critics = torch.zeros(())
        for one, target in zip(self.critics, self.targets, strict=True):
            value, anchor = perceptron(one, seen)[rows], perceptron(target, seen)[rows]
            error = (value - y) ** 2
            if self.system.q_clip is not None:
                step = torch.clamp(value - anchor, -self.system.q_clip, self.system.q_clip)
                error = torch.maximum(error, (anchor + step - y) ** 2)
            critics = critics + error.mean()
        log_prob = perceptron(self.actor, seen).log_softmax(-1)
        chosen = MANY[self.system.actor_q]([perceptron(one, seen) for one in self.critics]).detach()
        entropy = -(log_prob.exp() * log_prob).sum(-1)
        left = ((batch[ENTROPY] - entropy) ** 2).mean()
        return {
            "critics": critics,
            "actor": (log_prob.exp() * (alpha * log_prob - chosen)).sum(-1).mean() + self.system.entropy_penalty * left,
            "alpha": self.temperature(entropy),
        }


@NAMES
def test_two_updates_are_those_of_the_system(name: str, float64: None) -> None:
    system, learner = SYSTEMS[name], small(name)
    derived = Derivation(system, learner)
    data = batches(2, system)
    before = [leaf.clone() for leaf in derived.actor]
    torch.manual_seed(5)
    for batch in data:
        learner.update(batch)
    torch.manual_seed(5)
    for batch in data:
        derived.update(batch)
    loss = learner.agent.loss
    found = {"actor": leaves(loss.actor_network_params)}
    expected = {"actor": derived.actor}
    for critic in range(2):
        found[f"critic {critic}"] = leaves(loss.qvalue_network_params, critic)
        expected[f"critic {critic}"] = derived.critics[critic]
    if system.variant == "sac_v1":
        found |= {"value": leaves(loss.value_network_params), "target": leaves(loss.target_value_network_params)}
        expected |= {"value": derived.value, "target": derived.targets[0]}
    else:
        for critic in range(2):
            found[f"target {critic}"] = leaves(loss.target_qvalue_network_params, critic)
            expected[f"target {critic}"] = derived.targets[critic]
    for part, weights in expected.items():
        for leaf, weight in zip(found[part], weights, strict=True):
            torch.testing.assert_close(leaf, weight, rtol=1e-9, atol=1e-11, msg=f"another {part}")
    torch.testing.assert_close(loss.log_alpha, derived.log_alpha, rtol=1e-12, atol=1e-14)
    assert not any(torch.equal(old, new) for old, new in zip(before, derived.actor, strict=True))


@pytest.mark.parametrize("name", ["christodoulou2019", "sd_sac"])
def test_a_system_behind_a_task_does_not_normalize_because_the_task_does(name: str) -> None:
    assert configured("cartpole").normalize
    assert not configure("discrete", preset=["cartpole", name]).normalize


@pytest.mark.parametrize("task", ["frozen_lake", "taxi"])
@pytest.mark.parametrize("name", ["christodoulou2019", "sd_sac"])
def test_a_system_of_discrete_actions_learns_from_discrete_states(name: str, task: str, tmp_path: Path) -> None:
    config, steps = configured(name), 20
    config.env = replace(configured(task).env, count=config.env.count, mask=config.env.mask)
    specs = config.specs()
    agent = config.agent(specs, device=CPU)
    rows, learner = steps * config.env.count, config.learner.build(agent)
    buffer = config.replay.build(tmp_path, specs, rows=rows, batch_size=8, seed=0, device=CPU)
    experience = config.collector.build(
        config.env, agent.actor, buffer, specs=specs, total_frames=rows, random_frames=rows // 2, seed=0
    )
    assert list(experience) == [config.env.count] * steps
    assert buffer.sample()["observation"].dtype is torch.int64
    assert all(value.isfinite() for value in learner.update(buffer.sample()).values())


@pytest.mark.parametrize(
    ("name", "policy", "training"),
    [
        (
            "haarnoja2018_gmm",
            {"policy": PolicyForm.mixture, "components": 4, "gradient": Gradient.likelihood_ratio, "critics": 1}
            | {"tau": 0.01, "reward_scale": 1.0},
            (128, 0, 1_000, 3_000_000, [128, 128]),
        ),
        (
            "haarnoja2018_lsp",
            {"policy": PolicyForm.flow, "couplings": 2, "coupling_hidden": None, "critics": 2}
            | {"coupling_condition": None, "tau": 0.005, "reward_scale": 5.0},
            (256, 1_000, 999, 3_000_000, [256, 256]),
        ),
    ],
)
def test_the_first_systems_other_policies_have_its_numbers(
    name: str, policy: dict[str, Any], training: tuple[Any, ...]
) -> None:
    config = configured(name)
    assert {field: getattr(config.variant, field) for field in policy} == policy
    assert isinstance(config.variant, SAC) and (config.variant.alpha, config.variant.fixed_alpha) == (1.0, True)
    rows = config.batch_size, config.random_frames, config.learning_starts, config.total_frames
    assert (*rows, config.variant.network.hidden) == training
