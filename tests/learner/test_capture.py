from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor
from torch.optim import Adam

from sac_torchrl.learner.capture import Captured, Scripted, SideBySide, half_the_threads

SQUARE = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))


def assert_same(make: Callable[[], Callable[..., Sequence[Tensor]]], *shapes: tuple[int, ...]) -> None:
    """Six calls of a recorded function and of a plain one, with the same inputs and random numbers, give the same."""
    answers = []
    for recorded in (False, True):
        torch.manual_seed(3)
        function = Captured(make()) if recorded else make()
        inputs = [[torch.randn(shape) for shape in shapes] for _ in range(6)]
        answers.append([[result.clone() for result in function(*each)] for each in inputs])
    for plain, replayed in zip(*answers, strict=True):
        assert len(plain) == len(replayed)
        assert all(map(torch.equal, plain, replayed))


def test_calls_are_replayed_and_not_made_again() -> None:
    made = 0

    def function(x: Tensor) -> list[Tensor]:
        nonlocal made
        made += 1
        return [x + 1]

    recorded = Captured(function)
    assert [recorded(torch.tensor(float(number)))[0].item() for number in range(5)] == [1, 2, 3, 4, 5]
    assert made == 2


def test_random_numbers_are_drawn_from_torchs_generator_in_the_same_order() -> None:
    assert_same(lambda: lambda x: [x + torch.randn_like(x), torch.randn(4), torch.randn(4), torch.rand(2)], (3,))


def test_unused_draws_still_advance_the_generator() -> None:
    def make() -> Callable[..., Sequence[Tensor]]:
        def function(x: Tensor) -> list[Tensor]:
            torch.randn(3)
            return [x + torch.randn(4)]

        return function

    assert_same(make, (4,))


def test_what_is_read_before_and_after_it_changed_is_computed_twice() -> None:
    def make() -> Callable[..., Sequence[Tensor]]:
        listed, viewed = torch.ones(3, 3), torch.ones(3, 3)

        def function(x: Tensor) -> list[Tensor]:
            before = [x @ listed, x @ viewed]
            torch._foreach_add_([listed], 1.0)
            viewed.t()[0].mul_(2)
            return [*before, x @ listed, x @ viewed]

        return function

    assert_same(make, (2, 3))


def test_an_optimizer_continues_in_the_state_that_it_has() -> None:
    def make() -> Callable[..., Sequence[Tensor]]:
        weight = torch.nn.Parameter(torch.ones(4))
        optimizer = Adam([weight], lr=0.1, fused=True)

        def function(x: Tensor) -> list[Tensor]:
            [weight.grad] = torch.autograd.grad((weight * x).pow(2).sum(), [weight])
            optimizer.step()
            optimizer.zero_grad()
            return [weight.detach(), optimizer.state[weight]["step"]]

        return function

    assert_same(make, (4,))


def test_a_generator_of_ones_own_is_drawn_from_in_torchscript() -> None:
    def make() -> Callable[..., Sequence[Tensor]]:
        generator = torch.Generator().manual_seed(5)
        return lambda x: [x + torch.rand(x.shape, generator=generator), torch.rand(2)]

    assert_same(make, (3,))
    recorded = Captured(make())
    for _ in range(2):
        recorded(torch.ones(3))
    assert isinstance(recorded._replay, Scripted)


def test_equal_numbers_of_other_types_are_other_operations() -> None:
    recorded = Captured(lambda x: [x + 1, x + 1.0])
    types = [[result.dtype for result in recorded(torch.ones(2, dtype=torch.int64))] for _ in range(3)]
    assert types == 3 * [[torch.int64, torch.float32]]


def called(function: Callable[..., Sequence[Tensor]], *inputs: Tensor) -> dict[str, int]:
    """How often a replay of the recorded function calls each of torch's operations."""
    recorded = Captured(function)
    for _ in range(2):
        recorded(*inputs)
    with torch.profiler.profile() as profile:
        recorded(*inputs)
    return {event.key: event.count for event in profile.key_averages()}


def test_a_constant_that_is_returned_is_the_callers_own() -> None:
    recorded = Captured(lambda x: [x + 1, torch.ones(3)])
    returned = [recorded(torch.zeros(3))[1] for _ in range(4)]
    assert len({ones.data_ptr() for ones in returned}) == 4


def test_a_copy_is_left_out_where_nothing_can_tell() -> None:
    assert "aten::clone" not in called(lambda x: [x.clone() + 1], torch.ones(3))

    def function(x: Tensor) -> list[Tensor]:
        old, new, spread = x.clone(), x.clone(), x.sum(1, keepdim=True).expand(3, 4).clone()
        x.mul_(2)
        return [old + 1, new.add_(1), x + 1, spread.view(12) + 1]

    assert_same(lambda: function, (3, 4))
    recorded, given = Captured(lambda x: [x.clone()]), torch.ones(3)
    assert all(recorded(given)[0].data_ptr() != given.data_ptr() for _ in range(3))


@pytest.mark.parametrize("columns", [2, 12, 23, 32, 33])
def test_products_with_few_columns_are_the_same_turned_over(columns: int) -> None:
    narrow = torch.randn(256, columns, generator=torch.Generator().manual_seed(0))
    bias = torch.arange(float(columns))

    def function(x: Tensor) -> list[Tensor]:
        whole = x @ narrow
        part = (x @ narrow.cos())[:, columns // 4 :]  # of a product that nobody else reads
        return [part + 1, x.t() @ narrow[:64], torch.addmm(bias, x, narrow), whole, whole.exp()[:, :1]]

    assert_same(lambda: function, (64, 256))


def test_turned_products_lie_in_memory_like_the_others() -> None:
    # An optimizer goes through a parameter and its gradient in the order of their memory.
    narrow = torch.randn(256, 23, generator=torch.Generator().manual_seed(0))
    recorded = Captured(lambda x: [x @ narrow])
    assert all(recorded(torch.randn(64, 256))[0].is_contiguous() for _ in range(3))


def test_a_column_times_a_row_is_no_product_of_matrices() -> None:
    def function(x: Tensor) -> list[Tensor]:
        return [x[:, :1] @ x[:1]]

    assert_same(lambda: function, (4, 5))
    assert "aten::mm" not in called(function, torch.randn(4, 5))


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


WEIGHTS = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))


def two_losses(x: Tensor) -> list[Tensor]:
    first = (x + torch.randn(3, 4)) @ WEIGHTS[0]
    second = (x + torch.randn(3, 4)) @ WEIGHTS[1]
    stack = torch.stack([second.t() @ x, second.t() @ second])
    return [first.sum(), x + 1, (second.relu() @ WEIGHTS[1]).mean(), (first @ WEIGHTS[0]).exp(), stack]


def read_before_it_changes(x: Tensor) -> list[Tensor]:
    shared = x * 2
    before = shared.exp()
    shared.add_(1)
    return [(x + shared) @ WEIGHTS[0], (x + before) @ WEIGHTS[1]]


def noise_between(x: Tensor) -> list[Tensor]:
    first, second = x @ WEIGHTS[0], x @ WEIGHTS[1]
    return [torch.dropout(first, 0.5, train=True), torch.dropout(second, 0.5, train=True)]


def in_place(x: Tensor) -> list[Tensor]:
    shared = torch.zeros(3, 4)
    first = x @ WEIGHTS[0] + shared.add_(x @ WEIGHTS[0])
    return [first, x @ WEIGHTS[1] + shared]


def changed_afterwards(x: Tensor) -> list[Tensor]:
    shared = torch.zeros(3, 4)
    first, second = x @ WEIGHTS[0] + shared, x @ WEIGHTS[1]
    return [first, second, shared.add_(x)]


def joined(x: Tensor) -> list[Tensor]:
    first, second = x @ WEIGHTS[0], x @ WEIGHTS[1]
    return [first + second, first, second]


def side_by_side(function: Callable[..., Sequence[Tensor]]) -> tuple[SideBySide, Sequence[Tensor]]:
    """How a function whose halves are computed side by side is replayed, and the constants that are passed to it."""
    assert_same(lambda: function, (3, 4))
    torch.set_num_threads(2)
    recorded = Captured(function)
    for _ in range(3):
        recorded(torch.ones(3, 4))
    assert isinstance(recorded._replay, SideBySide)
    return recorded._replay, recorded._constants


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("function", [two_losses, read_before_it_changes])
def test_losses_that_have_nothing_to_do_with_each_other_are_computed_side_by_side(
    function: Callable[..., Sequence[Tensor]],
) -> None:
    replay, constants = side_by_side(function)
    assert torch.get_num_threads() == 2
    with half_the_threads():
        replay(torch.ones(3, 4), *constants)
        assert torch.get_num_threads() == 1  # and the other half has one
    assert torch.get_num_threads() == 2


def what_follows_from_inputs(x: Tensor) -> list[Tensor]:
    return [x.exp() @ WEIGHTS[0], x.cos() @ WEIGHTS[1]]


@pytest.mark.usefixtures("two_threads")
def test_what_one_half_needs_alone_is_computed_by_it() -> None:
    replay, constants = side_by_side(what_follows_from_inputs)
    assert list(replay._before(torch.ones(3, 4), *constants)) == []


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("function", [noise_between, in_place, changed_afterwards, joined])
def test_dependent_losses_are_not_split(function: Callable[..., Sequence[Tensor]]) -> None:
    assert_same(lambda: function, (3, 4))
    recorded = Captured(function)
    for _ in range(2):
        recorded(torch.ones(3, 4))
    assert not isinstance(recorded._replay, SideBySide)
