"""Addition problems end to end: `21+93=150;` is 12 + 39 = 051 with the ones first. Answers are the digits of the sum.

Legend: B windows, P problems of a window, N digits of an operand, A digits of a sum (N + 1), M listed positions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsabench.data.batch import SplitName
from dsabench.data.tasks.curriculum import Level
from dsabench.data.tasks.draws import Draws, Integers
from dsabench.data.tasks.task_batch import TaskBatch, blank
from dsabench.spec.tasks import Arithmetic

HELD_OUT_EIGHTH = np.uint64(7)
"""Problems with this value in the top three bits of their hash, an eighth of all, stand in validation windows only."""


def generate(settings: Arithmetic, at: Level, length: int, windows: int, draws: Draws, split: SplitName) -> TaskBatch:
    """As many problems as the span holds.

    There are only 10^(2 n_digits) of them, so that two streams would share some: validation has its own eighth. At the
    full size each digit is still uniform to within a few per cent.

    Listed for digit i of a sum are digits i and i - 1 of both operands. The carry into place i follows from place
    i - 1 and the sum's digit there, which is the input at t.
    """
    n = at.size
    batch = blank(settings, length, at.span, windows, draws)
    problem = settings.tokens_needed(n)
    n_problems = (at.span + 1) // problem
    a_BPN, b_BPN = _operands(windows * n_problems, n, draws, split).reshape(2, windows, n_problems, n)
    sum_BPA = add(a_BPN, b_BPN)
    sign_BP1 = np.ones((windows, n_problems, 1), np.int64)
    digit = settings.first_id("")
    parts = (
        a_BPN + digit,
        sign_BP1 * settings.first_id("+"),
        b_BPN + digit,
        sign_BP1 * settings.first_id("="),
        sum_BPA + digit,
        sign_BP1 * settings.first_id(";"),
    )
    batch.tokens[:, : n_problems * problem] = np.concatenate(parts, axis=-1).reshape(windows, -1)
    first_P = problem * np.arange(n_problems)
    query_PA = first_P[:, None] + 2 * n + 1 + np.arange(n + 1)
    batch.scored[:, query_PA] = True
    listed_AM = _listed(n)
    batch.targets[:, query_PA] = np.where(listed_AM < 0, -1, first_P[:, None, None] + listed_AM)
    return batch


def add(a_N: Integers, b_N: Integers) -> Integers:
    """(..., N + 1) digits of the sums of numbers given as (..., N) digits, ones first."""
    sum_A = np.concatenate([a_N + b_N, np.zeros_like(a_N[..., :1])], axis=-1)
    for place in range(a_N.shape[-1]):
        sum_A[..., place + 1] += sum_A[..., place] >= 10
        sum_A[..., place] %= 10
    return sum_A


def _listed(n: int) -> Integers:
    """(A, M) places in a problem of digits i and i - 1 of the first and the second operand, -1 where there is none."""
    i_A1 = np.arange(n + 1)[:, None]
    place_AM = np.concatenate([i_A1, i_A1, i_A1 - 1, i_A1 - 1], axis=1)
    there_AM = (place_AM >= 0) & (place_AM < n)
    return np.where(there_AM, place_AM + np.array([0, n + 1, 0, n + 1]), -1)


def _operands(problems: int, n: int, draws: Draws, split: SplitName) -> Integers:
    """(2 * problems, n) digits: first operands, then second ones, of problems of the split's own."""
    digits_P2N = draws.below(10, (problems, 2, n))
    wrong = _of_other_split(digits_P2N, split)
    while wrong.any():
        digits_P2N[wrong] = draws.below(10, (int(wrong.sum()), 2, n))
        wrong[wrong] = _of_other_split(digits_P2N[wrong], split)
    return digits_P2N.swapaxes(0, 1).reshape(2 * problems, n)


def _of_other_split(digits_P2N: Integers, split: SplitName) -> NDArray[np.bool_]:
    hash_P = np.zeros(len(digits_P2N), np.uint64)
    for place in range(digits_P2N.shape[2]):
        for operand in range(2):
            hash_P = _mix(hash_P + digits_P2N[:, operand, place].astype(np.uint64) + np.uint64(1))
    held_out_P: NDArray[np.bool_] = (hash_P >> np.uint64(61)) == HELD_OUT_EIGHTH
    return held_out_P if split == "train" else ~held_out_P


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64, a bijection whose every output bit depends on every input bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
