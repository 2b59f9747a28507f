"""Windows in which what the task is about is shuffled, answers kept; and a solver that does not look at it.

Legend: B windows, T tokens, N values, Q queries, P problems.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from dsabench.data.tasks import TaskBatch
from dsabench.spec.task_settings import TaskSettings
from dsabench.spec.tasks import Arithmetic


def places(task: TaskSettings, batch: TaskBatch) -> np.ndarray:
    """(B, N) places of the tokens that say what is asked for: keys of the queries; the symbols to be copied, first row
    of an induction included; the digits of operands."""
    if isinstance(task, Arithmetic):
        n, one = task.n_digits, task.tokens_needed(task.n_digits)
        digits = np.r_[0:n, n + 1 : 2 * n + 1]
        first_P = np.arange(0, batch.tokens.shape[1] - one + 1, one)
        return np.tile((first_P[:, None] + digits).ravel(), (len(batch.tokens), 1))
    query_BT, first = batch.scored, task.first_id("s" if task.name in ("induction", "selective_copy") else "k")
    here_BT = (batch.tokens[:, :-1] >= first) & (batch.tokens[:, :-1] < first + dict(task.alphabet).get("k", 2**31))
    if task.name in ("induction", "selective_copy"):
        here_BT &= np.arange(query_BT.shape[1]) < query_BT.argmax(1)[:, None]
    else:
        here_BT &= query_BT
    return np.nonzero(here_BT)[1].reshape(len(query_BT), -1)


def shuffled(task: TaskSettings, batch: TaskBatch, seed: int = 0) -> TaskBatch:
    """The windows with these tokens in another order; operands are those of another window."""
    place_BN, tokens_BT = places(task, batch), batch.tokens.copy()
    values_BN = np.take_along_axis(tokens_BT, place_BN, 1)
    if isinstance(task, Arithmetic):
        values_BN = np.roll(values_BN, 1, axis=0)
    else:
        values_BN = np.random.default_rng(seed).permuted(values_BN, axis=1)
    np.put_along_axis(tokens_BT, place_BN, values_BN, 1)
    return replace(batch, tokens=tokens_BT)


def solve(task: TaskSettings, batch: TaskBatch) -> tuple[np.ndarray, np.ndarray]:
    """(B, Q) whether the best solver that looks at no `places` is right (a share, where several guesses are equally
    good), and its loss in nats. It reads `inputs` alone, and counts what can still be the answer."""
    right, nats = [], []
    for inputs_T, tokens_T, scored_T in zip(batch.inputs, batch.tokens, batch.scored, strict=True):
        queries = np.flatnonzero(scored_T)
        for i, t in enumerate(queries):
            weight = _weights(task, inputs_T[: t + 1], queries[: i + 1])
            answer, total = int(tokens_T[t + 1]), sum(weight.values())
            best = [value for value, w in weight.items() if w == max(weight.values())]
            right.append((answer in best) / len(best))
            nats.append(-math.log(weight[answer] / total))
    shape = (len(batch.tokens), -1)
    return np.reshape(right, shape), np.reshape(nats, shape)


def _weights(task: TaskSettings, seen_T: np.ndarray, queries: np.ndarray) -> dict[int, float]:
    """How probable each answer to the last query is, not normalised; earlier ones are read where they are shown."""
    if isinstance(task, Arithmetic):
        return _digit_weights(task, seen_T)
    shown = task.answer_cover is None
    words = getattr(task, "value_length", 1)
    answered = [tuple(seen_T[queries[i] + 1 : queries[i] + 1 + words]) for i in range(0, len(queries) - 1, words)]
    if task.name == "induction":
        first = task.first_id("s")
        row = [int(token) for token in seen_T[: queries[0]] if token >= first]
        return {token: 1 for token in row if token not in seen_T[queries[0] :]}
    if task.name == "selective_copy":
        values = [(int(token),) for token in seen_T[: queries[0]] if token >= task.first_id("s")]
    else:
        key, n_keys = task.first_id("k"), dict(task.alphabet)["k"]
        stored = [t for t in range(queries[0]) if key <= seen_T[t] < key + n_keys]
        values = [tuple(int(token) for token in seen_T[t + 1 : t + 1 + words]) for t in stored]
    word = (len(queries) - 1) % words
    if shown:
        begun = answered.pop()[:word] if word else ()
        for value in answered:
            values.remove(value)
        values = [value for value in values if value[:word] == begun]
    weight: dict[int, float] = {}
    for value in values:
        weight[value[word]] = weight.get(value[word], 0) + 1
    return weight


def _digit_weights(task: Arithmetic, seen_T: np.ndarray) -> dict[int, float]:
    """Of a digit all ten the same; of the last digit, a carry, as many as there are pairs whose sum ends so."""
    zero, n = task.first_id(""), task.n_digits
    digits = seen_T[(len(seen_T) - 1) // task.tokens_needed(n) * task.tokens_needed(n) + 2 * n + 2 :] - zero
    if len(digits) < n:
        return dict.fromkeys(range(zero, zero + 10), 1.0)
    low = sum(int(digit) * 10**place for place, digit in enumerate(digits))
    return {zero: low + 1, zero + 1: 10**n - low - 1}
