"""The exact mean return of Blackjack-v1 policies: `python benchmarks/blackjack_value.py RUN [RUN ...]`.

Cards are drawn with replacement and the dealer stands at 17 (Sutton and Barto 2018, example 5.1): every hand is
enumerated, and none is played. The best policy is enumerated in the same way.
"""

import sys
from collections.abc import Callable
from functools import cache

import numpy as np

import sac_torchrl as sac

CARDS = {card: (4 if card == 10 else 1) / 13 for card in range(1, 11)}
Sticks = Callable[[int, int, bool], bool]


def main() -> None:
    """The value of every run's newest policy."""
    print(f"optimum: {value(lambda total, shown, ace: sticking(total, shown) > hitting(total, shown, ace)):.4f}")
    states = [(total, shown, ace) for total in range(32) for shown in range(11) for ace in (0, 1)]
    columns = tuple(np.array(column) for column in zip(*states, strict=True))
    for path in sys.argv[1:]:
        actions = dict(zip(states, sac.Policy.load(path)(columns).tolist(), strict=True))
        print(f"{path}: {value(lambda total, shown, ace, table=actions: table[total, shown, int(ace)] == 0):.4f}")  # type: ignore[misc]


def value(sticks: Sticks) -> float:
    """The mean return of a policy, which sticks or hits by the sum of its hand, the dealer's card and its ace."""

    @cache
    def played(total: int, shown: int, ace: bool) -> float:
        if sticks(total, shown, ace):
            return sticking(total, shown)
        return sum(chance * _after(total, ace, card, shown, played) for card, chance in CARDS.items())

    mean = 0.0
    for first, one in CARDS.items():
        for second, two in CARDS.items():
            total, ace = (first + second, False) if 1 not in (first, second) else (first + second + 10, True)
            for shown, three in CARDS.items():
                natural = total == 21 and sticks(total, shown, ace)
                mean += one * two * three * (1 - dealer(shown)["natural"] if natural else played(total, shown, ace))
    return mean


def sticking(total: int, shown: int) -> float:
    """The mean return of a hand without a natural that draws no more."""
    ends = dealer(shown)
    won = sum(chance for end, chance in ends.items() if end == "bust" or (isinstance(end, int) and end < total))
    lost = sum(chance for end, chance in ends.items() if end == "natural" or (isinstance(end, int) and end > total))
    return won - lost + (ends["natural"] if total == 21 else 0.0)  # the environment compares sums: a natural is 21


@cache
def hitting(total: int, shown: int, ace: bool) -> float:
    """The mean return of drawing a card and playing on in the best way."""
    return sum(chance * _after(total, ace, card, shown, _best) for card, chance in CARDS.items())


def _best(total: int, shown: int, ace: bool) -> float:
    return max(sticking(total, shown), hitting(total, shown, ace))


def _after(total: int, ace: bool, card: int, shown: int, played: Callable[[int, int, bool], float]) -> float:
    total, ace = _with(total, ace, card)
    return -1.0 if total > 21 else played(total, shown, ace)


def _with(total: int, ace: bool, card: int) -> tuple[int, bool]:
    """The sum of a hand with one more card, and whether an ace in it counts 11."""
    if card == 1 and total + 11 <= 21:
        return total + 11, True
    total += card
    return (total - 10, False) if total > 21 and ace else (total, ace)


@cache
def dealer(shown: int) -> dict[int | str, float]:
    """How the dealer ends: the chance of each sum, of going bust and of a natural."""
    ends: dict[int | str, float] = dict.fromkeys([17, 18, 19, 20, 21, "bust", "natural"], 0.0)

    def draw(total: int, ace: bool, chance: float) -> None:
        if total >= 17:
            ends["bust" if total > 21 else total] += chance
            return
        for card, share in CARDS.items():
            draw(*_with(total, ace, card), chance * share)

    for hidden, share in CARDS.items():
        if {shown, hidden} == {1, 10}:
            ends["natural"] += share
        else:
            draw(*_with(11 if shown == 1 else shown, shown == 1, hidden), share)
    return ends


if __name__ == "__main__":
    main()
