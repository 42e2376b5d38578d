import math
from decimal import Decimal, localcontext
from functools import partial

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import Tensor, nn
from torchrl.data import Bounded, Categorical, Unbounded
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor, TanhNormal

from sac_torchrl.agents.policies import (
    NormalParameters,
    SquashedNormal,
    StdForm,
    acting,
    categorical_actor,
    tanh_normal_actor,
)
from sac_torchrl.specs import Specs

DTYPES = [torch.float32, torch.float64]
SATURATED = [(10.0, 0.5), (20.0, 0.5), (-20.0, 0.5), (20.0, 7.0)]


def squashed(*, dimensions: int = 1) -> ProbabilisticActor:
    """A squashed head whose observation is its parameters: means, then logarithms of standard deviations."""
    specs = Specs(Unbounded(shape=2 * dimensions), Bounded(-1, 1, shape=dimensions))
    return tanh_normal_actor(nn.Identity(), specs)


def choosing(actions: int) -> ProbabilisticActor:
    """A categorical head whose observation is its own logits."""
    return categorical_actor(nn.Identity(), Specs(Unbounded(shape=actions), Categorical(actions)))


def observed(values: Tensor) -> TensorDict:
    return TensorDict({"observation": values}, batch_size=values.shape[:-1])


def distribution(loc: Tensor, scale: Tensor) -> TanhNormal:
    head: TanhNormal = squashed(dimensions=loc.shape[-1]).get_dist(observed(torch.cat([loc, scale.log()], -1)))
    return head


def exact_log_prob(loc: float, scale: float, noise: float) -> float:
    """The log-density of tanh(loc + scale x noise), from the change of variables with 80 digits."""
    with localcontext() as context:
        context.prec = 80
        pi = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")
        u = Decimal(loc) + Decimal(scale) * Decimal(noise)
        sech = 2 / (u.exp() + (-u).exp())
        density = -(Decimal(noise) ** 2) / 2 - Decimal(scale).ln() - (2 * pi).ln() / 2
        return float(density - 2 * sech.ln())


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (0.7, 0.3), (-1.5, 0.9)])
def test_the_density_integrates_to_one_over_the_actions(loc: float, scale: float) -> None:
    torch.manual_seed(0)
    wide = distribution(*torch.tensor([[loc], [scale]], dtype=torch.float64))
    action, log_prob = wide.rsample_and_log_prob((200_000,))
    action, order = action.squeeze(-1).sort()
    assert float(torch.trapezoid(log_prob[order].exp(), action)) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (0.5, 0.1), (-3.0, 2.0), *SATURATED])
def test_the_log_probability_is_the_exact_change_of_variables(loc: float, scale: float, dtype: torch.dtype) -> None:
    means = torch.full((40, 2), loc, dtype=dtype)
    head = distribution(means, torch.full_like(means, scale))
    torch.manual_seed(1)
    action, log_prob = head.rsample_and_log_prob()
    torch.manual_seed(1)
    noise = torch.randn_like(means)
    torch.testing.assert_close(action, torch.tanh(head.loc + head.scale * noise))
    expected = [
        sum(exact_log_prob(loc, float(head.scale[row, i]), float(noise[row, i])) for i in range(2)) for row in range(40)
    ]
    # torch's softplus is the identity beyond 20, which leaves out exp(-20) = 2e-9.
    rtol, atol = (2e-6, 1e-5) if dtype is torch.float32 else (1e-12, 1e-8)
    torch.testing.assert_close(log_prob, torch.tensor(expected, dtype=dtype), rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("loc", "scale"), [(0.3, 0.5), *SATURATED])
def test_the_gradients_of_the_log_probability_hold_in_saturation(loc: float, scale: float, dtype: torch.dtype) -> None:
    means = torch.full((64, 1), loc, dtype=dtype, requires_grad=True)
    log_stds = torch.full((64, 1), scale, dtype=dtype).log().requires_grad_()
    head = squashed().get_dist(observed(torch.cat([means, log_stds], -1)))
    torch.manual_seed(2)
    action, log_prob = head.rsample_and_log_prob()
    assert action.isfinite().all()
    assert log_prob.isfinite().all()
    of_mean, of_log_std = torch.autograd.grad(log_prob.sum(), [means, log_stds], retain_graph=True)
    torch.manual_seed(2)
    noise = torch.randn(64, 1, dtype=dtype)
    std = log_stds.detach().exp()
    pull = 2 * torch.tanh(means.detach() + std * noise)
    torch.testing.assert_close(of_mean, pull)
    torch.testing.assert_close(of_log_std, pull * std * noise - 1)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(action.sum(), [means, log_stds]))


def test_an_action_is_drawn_and_scored_as_by_torchrls_distribution() -> None:
    torch.manual_seed(0)
    loc, scale = torch.randn(7, 3, dtype=torch.float64), torch.rand(7, 3, dtype=torch.float64) + 0.1
    found = []
    for kind in (partial(TanhNormal, safe_tanh=False), SquashedNormal):
        parameters = loc.clone().requires_grad_(), scale.clone().requires_grad_()
        torch.manual_seed(1)
        action, log_prob = kind(*parameters).rsample_and_log_prob((5,))
        gradients = [torch.autograd.grad(of.sum(), parameters, retain_graph=True) for of in (action, log_prob)]
        found.append([action, log_prob, *gradients[0], *gradients[1]])
    assert [tuple(value.shape) for value in found[1][:2]] == [(5, 7, 3), (5, 7)]
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bound", [-1.0, 1.0])
@pytest.mark.parametrize("mode", [ExplorationType.RANDOM, ExplorationType.DETERMINISTIC])
def test_saturated_actions_reach_the_bounds(bound: float, mode: ExplorationType) -> None:
    observation = torch.tensor([20 * bound, -1.0]).expand(32, 2)
    with set_exploration_type(mode):
        action = squashed()(observed(observation))["action"]
    assert torch.equal(action, torch.full((32, 1), bound))


def test_the_deterministic_action_is_the_squashed_mean() -> None:
    torch.manual_seed(0)
    observation = torch.randn(16, 6)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        action = squashed(dimensions=3)(observed(observation))["action"]
    torch.testing.assert_close(action, observation[:, :3].tanh())


def test_actions_are_drawn_where_nothing_else_is_asked_for() -> None:
    torch.manual_seed(0)
    observation = torch.zeros(4096, 2)
    action = squashed()(observed(observation))["action"]
    # A standard normal pre-image: P(|tanh(u)| < tanh(1)) = P(|u| < 1) = 0.6827, within 4 standard errors.
    assert float((action.atanh().abs() < 1).float().mean()) == pytest.approx(0.6827, abs=0.03)


def test_standard_deviations_stay_within_their_bounds() -> None:
    parameters = torch.tensor([0.3, -0.4, 1.0, 2.0, -100.0, 100.0, -1.5, 1.5], dtype=torch.float64)
    mean, std = NormalParameters()(parameters)
    assert mean.tolist() == [0.3, -0.4, 1.0, 2.0]
    torch.testing.assert_close(std.log(), torch.tensor([-20.0, 2.0, -1.5, 1.5], dtype=torch.float64))


@pytest.mark.parametrize(
    ("std", "low", "at_zero", "high"),
    [
        (StdForm.clip, math.exp(-20), 1.0, math.exp(2)),
        (StdForm.tanh, math.exp(-5), math.exp(-1.5), math.exp(2)),
        (StdForm.softplus, 1e-5, math.log(2) + 1e-5, 100.0 + 1e-5),
        (StdForm.biased_softplus, 0.1, 1.0, 100.0 + math.log(math.expm1(0.99)) + 0.01),
    ],
)
def test_every_standard_deviation_has_its_bounds(std: StdForm, low: float, at_zero: float, high: float) -> None:
    output = torch.tensor([-100.0, 0.0, 100.0], dtype=torch.float64)
    mean, found = NormalParameters(std)(torch.cat([output + 7, output]))
    assert torch.equal(mean, output + 7)
    torch.testing.assert_close(found, torch.tensor([low, at_zero, high], dtype=torch.float64))


def test_between_its_bounds_a_standard_deviation_is_that_of_its_system() -> None:
    output = torch.linspace(-4, 1.9, 50, dtype=torch.float64)
    torch.testing.assert_close(StdForm.clip(output), output.exp())
    stretched = -5 + (2 - -5) * (output.tanh() + 1) / 2
    torch.testing.assert_close(StdForm.tanh(output), stretched.exp())
    torch.testing.assert_close(StdForm.softplus(output), (1 + output.exp()).log() + 1e-5)
    torchrl = NormalParamExtractor(scale_mapping="biased_softplus_1.0", scale_lb=0.1)
    torch.testing.assert_close(StdForm.biased_softplus(output), torchrl(torch.cat([output, output]))[1])


def test_the_narrowest_policy_still_has_an_exact_log_probability() -> None:
    torch.manual_seed(0)
    # In float64: in float32 the smallest step of a mean of 0.5 is already 30 of these standard deviations.
    head = squashed().get_dist(observed(torch.tensor([[0.5, -1000.0]], dtype=torch.float64)))
    _, log_prob = head.rsample_and_log_prob((8,))
    torch.manual_seed(0)
    noise = torch.randn(8, 1, 1, dtype=torch.float64)
    scale = float(head.scale)
    assert scale == pytest.approx(2.0611536e-09)
    expected = [exact_log_prob(0.5, scale, float(number)) for number in noise.flatten()]
    assert log_prob.flatten().tolist() == pytest.approx(expected, rel=1e-6)


def test_a_categorical_policy_draws_by_its_logits() -> None:
    logits = torch.tensor([0.0, 2.0, -1.0])
    actor = choosing(3)
    torch.testing.assert_close(actor.get_dist(observed(logits)).probs, logits.softmax(-1))
    torch.manual_seed(0)
    action = actor(observed(logits.expand(20_000, 3)))["action"]
    assert (action.dtype, action.shape) == (torch.int64, (20_000,))
    torch.testing.assert_close(action.bincount(minlength=3) / 20_000, logits.softmax(-1), rtol=0, atol=0.015)


def test_the_deterministic_choice_is_the_likeliest_action() -> None:
    torch.manual_seed(0)
    logits = torch.randn(64, 5)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        action = choosing(5)(observed(logits))["action"]
    assert torch.equal(action, logits.argmax(-1))


def linear_actor(*, discrete: bool) -> ProbabilisticActor:
    torch.manual_seed(0)
    action = Categorical(4) if discrete else Bounded(-1, 1, shape=2)
    specs = Specs(Unbounded(shape=3), action)
    head = categorical_actor if discrete else tanh_normal_actor
    return head(nn.Linear(3, 4), specs)


def draw(policy: TensorDictModule) -> TensorDict:
    torch.manual_seed(1)
    written: TensorDict = policy(observed(torch.linspace(-2, 2, 192).reshape(64, 3)))
    return written


@pytest.mark.parametrize("discrete", [False, True])
def test_acting_writes_the_actors_action_and_nothing_else(discrete: bool) -> None:
    actor = linear_actor(discrete=discrete)
    before = draw(actor)
    policy = acting(actor)
    transition = draw(policy)
    assert set(transition.keys()) == {"observation", "action"}
    assert torch.equal(transition["action"], before["action"])
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.mul_(-1)
    assert torch.equal(draw(policy)["action"], draw(actor)["action"])
    assert not torch.equal(draw(policy)["action"], before["action"])


@pytest.mark.parametrize("discrete", [False, True])
def test_acting_leaves_the_actor_as_it_was(discrete: bool) -> None:
    actor = linear_actor(discrete=discrete)
    before = set(draw(actor).keys())
    acting(actor)
    assert set(draw(actor).keys()) == before
