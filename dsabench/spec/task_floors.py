"""Floors of tasks: accuracy and loss of the best solver that does not see what the task is about.

It knows how windows are made and sees the whole window, but for the one thing that the task is about (each task says
which). So it knows between which values it has to choose, rules out what was answered before it, and takes the most
frequent of those that are left. A model at the floor may have learnt nothing of the task.

    m values, independent and uniform over n kinds, one of them asked at random; c_i of them are of kind i
    accuracy(m)  E[max_i c_i] / m
    loss(m)      E[-sum_i c_i / m ln(c_i / m)] = ln m - E[ln(1 + Binomial(m - 1, 1 / n))], in nats

Exact up to EXACT values. Above, the mean of DRAWS / m draws: its standard error is below 3e-4.
Legend: M number of values, 1 to m; C count of a kind; R draws.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

EXACT = 512
DRAWS = 2**22


class Floor(NamedTuple):
    """What a model has to beat."""

    accuracy: float
    """Share of answers that are right."""

    loss: float
    """Nats per answer."""


def mean(floors: Iterable[Floor]) -> Floor:
    """The floor of as many answers."""
    accuracies, losses = zip(*floors, strict=True)
    return Floor(math.fsum(accuracies) / len(accuracies), math.fsum(losses) / len(losses))


def one_of(m: int, n: int) -> Floor:
    """One of m values of n kinds is asked."""
    accuracy_M, loss_M = _one_of_up_to(m, n)
    return Floor(float(accuracy_M[-1]), float(loss_M[-1]))


def one_of_the_rest(m: int, n: int, asked: int) -> Floor:
    """The same `asked` times; each answer is seen when the next is asked, and is not asked again. What is left is
    independent and uniform again."""
    accuracy_M, loss_M = _one_of_up_to(m, n)
    return Floor(float(accuracy_M[m - asked :].mean()), float(loss_M[m - asked :].mean()))


def word_of_the_rest(m: int, n: int, asked: int, words: int) -> Floor:
    """The same of values of several words, asked word by word: words that were seen rule out values too.

    With j words seen, besides the value itself Binomial(rest - 1, n^-j) of the others begin like it.
    """
    accuracy_M, loss_M = _one_of_up_to(m, n)
    floors = [one_of_the_rest(m, n, asked)]
    for seen in range(1, words):
        chosen = [_binomial(rest - 1, float(n) ** -seen) for rest in range(m - asked + 1, m + 1)]
        floors.append(mean(Floor(float(p @ accuracy_M[: len(p)]), float(p @ loss_M[: len(p)])) for p in chosen))
    return mean(floors)


def different_ones(m: int) -> Floor:
    """One of m different values is asked, then one of the m - 1 others, and so on to the last."""
    return Floor(math.fsum(1 / rest for rest in range(1, m + 1)) / m, math.lgamma(m + 1) / m)


def digits_of_a_sum(n: int) -> Floor:
    """The n + 1 digits of a + b, ones first, a and b uniform over 0..10^n - 1 and not seen, earlier digits seen.

    Each digit but the last is uniform. The last is the carry: of the 10^n equally likely pairs whose sum ends in the
    digits of s, s + 1 do not carry. With u = (s + 1) / 10^n its accuracy is E[max(u, 1 - u)] = 3/4, and its loss the
    mean entropy, 1/2 nat but for less than 1e-9 from six digits on.
    """
    import numpy as np

    p = np.arange(1, 10**n) / 10**n if n < 6 else None
    carry = 0.5 if p is None else -float((p * np.log(p) + (1 - p) * np.log1p(-p)).sum()) / 10**n
    return Floor((0.1 * n + 0.75) / (n + 1), (n * math.log(10) + carry) / (n + 1))


@functools.lru_cache(maxsize=256)
def _one_of_up_to(m: int, n: int) -> tuple[Numbers, Numbers]:
    """(M,) accuracy and loss for 1 to m values."""
    if m > EXACT:
        return _drawn(m, n)
    import numpy as np

    size_M = np.arange(1, m + 1)
    chosen = [_binomial(size - 1, 1 / n) for size in range(1, m + 1)]
    expected_log_M = np.array([p @ np.log(np.arange(1, len(p) + 1)) for p in chosen])
    return _largest_counts(m, n) / size_M, np.log(size_M) - expected_log_M


def _largest_counts(m: int, n: int) -> Numbers:
    """(M,) E[max_i c_i] = sum_c P(max_i c_i > c).

    With Poisson counts in place of c_i, independent and of mean m / n each, P(max <= c | sum = M) is a coefficient of
    the n-th power of a truncated Poisson series over the untruncated one. All terms are positive: nothing cancels.
    """
    import numpy as np

    logs_C = np.cumsum(np.log(np.maximum(np.arange(m + 1), 1)))
    series_C = np.exp(np.arange(m + 1) * math.log(m / n) - logs_C - m / n)
    all_M = np.exp(np.arange(m + 1) * math.log(m) - logs_C - m)[1:]
    expected_M = np.zeros(m)
    for most in range(m):
        below_M = _power(series_C * (np.arange(m + 1) <= most), n)[1:] / all_M
        expected_M += np.clip(1 - below_M, 0, 1)
        if below_M[-1] > 1 - 1e-14:  # of fewer values all the more
            break
    return expected_M


def _power(series_C: Numbers, n: int) -> Numbers:
    """The n-th power of a power series, cut to as many terms."""
    import numpy as np

    power = np.zeros_like(series_C)
    power[0] = 1.0
    while n:
        if n % 2:
            power = np.convolve(power, series_C)[: len(power)]
        series_C = np.convolve(series_C, series_C)[: len(power)]
        n //= 2
    return power


def _binomial(trials: int, p: float) -> Numbers:
    """Probabilities of 0, 1, ... successes up to `trials`, or to where the rest is below 1e-14; 0 < p < 1."""
    import numpy as np

    mean = trials * p
    k = np.arange(min(trials, math.ceil(mean + 12 * math.sqrt(mean) + 24)) + 1)
    logs = np.cumsum(np.log(np.maximum(np.arange(trials + 1), 1)))
    choose = logs[-1] - logs[k] - logs[trials - k]
    probabilities: Numbers = np.exp(choose + k * math.log(p) + (trials - k) * math.log1p(-p))
    return probabilities


def _drawn(m: int, n: int) -> tuple[Numbers, Numbers]:
    """As _one_of_up_to, the mean of draws of m values, of which the first M count; the same draws each time."""
    import numpy as np

    draws = max(16, DRAWS // m)
    value_RM = np.random.Generator(np.random.Philox(0)).integers(n, size=(draws, m), dtype=np.int32)
    order_RM = np.argsort(value_RM, axis=1, kind="stable")
    sorted_RM = np.take_along_axis(value_RM, order_RM, 1)
    begins_RM = np.diff(sorted_RM, axis=1, prepend=-1) != 0
    place_M = np.arange(m)
    count_RM = np.empty_like(value_RM)  # of a value's kind, itself and those before it
    np.put_along_axis(count_RM, order_RM, place_M - np.maximum.accumulate(place_M * begins_RM, axis=1) + 1, 1)
    largest_M = np.maximum.accumulate(count_RM, axis=1).mean(0)
    c_ln_c = np.arange(m + 1) * np.log(np.maximum(np.arange(m + 1), 1))
    added_M = (c_ln_c[count_RM] - c_ln_c[count_RM - 1]).mean(0)
    size_M = place_M + 1
    return largest_M / size_M, np.log(size_M) - np.cumsum(added_M) / size_M
