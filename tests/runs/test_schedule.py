from fractions import Fraction

import pytest

from sac_torchrl.errors import ConfigError
from sac_torchrl.runs.schedule import Every, ReplayRatio, StopConfig, groups

RATIOS = [
    (0.25, Fraction(1, 4)),
    (1, Fraction(1)),
    (4, Fraction(4)),
    (0.1, Fraction(1, 10)),
    (1 / 3, Fraction(1, 3)),
    (0.29, Fraction(29, 100)),
]


@pytest.mark.parametrize("increment", [1, 7, 8])
@pytest.mark.parametrize(("ratio", "exact"), RATIOS)
@pytest.mark.parametrize("after", [0, 100])
def test_updates_are_exact_at_every_moment(ratio: float, exact: Fraction, increment: int, after: int) -> None:
    replay_ratio = ReplayRatio(ratio, after=after)
    updates = 0
    for frames in range(increment, 3_000, increment):
        updates += replay_ratio.due(increment)
        assert updates == (exact * max(0, frames - after)) // 1


def test_a_long_run_loses_no_update_to_rounding() -> None:
    replay_ratio = ReplayRatio(0.1, after=0)
    assert sum(replay_ratio.due(8) for _ in range(125_000)) == 100_000


def test_the_warm_up_is_not_made_up_for() -> None:
    replay_ratio = ReplayRatio(1, after=10)
    assert [replay_ratio.due(4) for _ in range(5)] == [0, 0, 2, 4, 4]


@pytest.mark.parametrize(("ratio", "exact"), RATIOS)
@pytest.mark.parametrize("increment", [1, 7, 8])
@pytest.mark.parametrize("done", [3, 60])
def test_a_resumed_ratio_continues_the_uninterrupted_one(
    ratio: float, exact: Fraction, increment: int, done: int
) -> None:
    uninterrupted = ReplayRatio(ratio, after=100)
    for _ in range(done):
        uninterrupted.due(increment)
    resumed = ReplayRatio(ratio, after=100, frames=done * increment)
    following = [resumed.due(increment) for _ in range(200)]
    assert following == [uninterrupted.due(increment) for _ in range(200)]
    end = exact * max(0, (done + 200) * increment - 100) // 1
    assert sum(following) == end - exact * max(0, done * increment - 100) // 1


@pytest.mark.parametrize(("ratio", "exact"), RATIOS)
@pytest.mark.parametrize("increment", [1, 7, 8, 64])
@pytest.mark.parametrize(("every", "after"), [(50, 0), (50, 100), (50, 130), (1000, 25)])
def test_bursts_are_exact_at_every_multiple_and_nothing_is_due_between(
    ratio: float, exact: Fraction, increment: int, every: int, after: int
) -> None:
    replay_ratio = ReplayRatio(ratio, after=after, every=every)
    updates = 0
    for frames in range(increment, 4_000, increment):
        due = replay_ratio.due(increment)
        if frames // every == (frames - increment) // every:
            assert due == 0
        updates += due
        assert updates == (exact * max(0, frames // every * every - after)) // 1


def test_spinning_ups_updates_come_in_fifties() -> None:
    replay_ratio = ReplayRatio(1, after=950, every=50)
    due = [replay_ratio.due(1) for _ in range(1_200)]
    assert {frame: count for frame, count in enumerate(due, 1) if count} == dict.fromkeys(range(1_000, 1_201, 50), 50)


def test_a_resumed_burst_continues_the_uninterrupted_one() -> None:
    uninterrupted = ReplayRatio(0.29, after=100, every=50)
    for _ in range(333):
        uninterrupted.due(1)
    resumed = ReplayRatio(0.29, after=100, every=50, frames=333)
    assert [resumed.due(1) for _ in range(200)] == [uninterrupted.due(1) for _ in range(200)]


def test_a_tiny_ratio_is_not_taken_for_nothing() -> None:
    assert ReplayRatio(1e-7, after=0).due(25_000_000) == 2


def test_every_is_true_once_a_multiple_however_frames_advance() -> None:
    due = Every(10)
    answers = {frames: due(frames) for frames in (0, 3, 9, 10, 11, 19, 24, 24, 57, 59, 60)}
    assert [frames for frames, answer in answers.items() if answer] == [10, 57, 60]
    assert Every(10)(10)


def test_every_answers_once_at_the_same_frames() -> None:
    due = Every(10)
    assert [due(20), due(20)] == [True, False]


def test_a_resumed_every_does_not_repeat_the_multiples_before() -> None:
    due = Every(10, frames=25)
    assert [due(26), due(30), due(39), due(40)] == [False, True, False, True]


def test_a_period_of_zero_is_never_due() -> None:
    due = Every(0)
    assert not any(due(frames) for frames in range(100))


@pytest.mark.parametrize("resumed_after", range(6))
def test_patience_ends_after_so_many_evaluations_without_a_better_one(resumed_after: int) -> None:
    means = [1.0, 3.0, 2.0, 4.0, 4.0, 3.0]
    stopping = StopConfig(patience=2).build(means[:resumed_after])
    reasons = [bool(stopping.reason)]
    for mean in means[resumed_after:]:
        stopping.evaluated(mean)
        reasons.append(bool(stopping.reason))
    assert reasons == [False] * (6 - resumed_after) + [True]
    assert stopping.reason == "2 evaluations were no better than 4, stop.patience"


def test_a_return_that_is_reached_ends_a_run() -> None:
    assert StopConfig(at_return=-5).build([-6.0]).reason == ""
    assert StopConfig(at_return=-5).build([-6.0, -5.0]).reason == "the mean return -5 is at stop.at_return=-5"
    with pytest.raises(ConfigError, match=r"stop.patience=0: give 1 or more or null"):
        StopConfig(patience=0)


@pytest.mark.parametrize(("count", "most", "sizes"), [(0, 3, []), (2, 3, [2]), (6, 3, [3, 3]), (7, 3, [3, 3, 1])])
def test_updates_come_in_groups_that_add_up(count: int, most: int, sizes: list[int]) -> None:
    assert groups(count, most) == sizes
