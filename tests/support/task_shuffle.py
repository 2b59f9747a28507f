"""Windows in which what the task is about is shuffled, answers kept; and a solver that does not look at it.

Legend: B windows, T tokens, N values, Q queries, P problems.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import task_meaning

from dsabench.data.tasks import TaskBatch
from dsabench.spec.task_settings import TaskSettings
from dsabench.spec.tasks import (
    Arithmetic,
    CommonWords,
    Compositional,
    Forgetting,
    MultiNeedle,
    VariableTracking,
)


def places(task: TaskSettings, batch: TaskBatch) -> np.ndarray:
    """(B, N) places of the tokens that say what is asked for: keys of the queries; the symbols to be copied, first row
    of an induction included; the digits of operands."""
    if isinstance(task, Arithmetic):
        n, one = task.n_digits, task.tokens_needed(task.n_digits)
        digits = np.r_[0:n, n + 1 : 2 * n + 1]
        first_P = np.arange(0, batch.tokens.shape[1] - one + 1, one)
        return np.tile((first_P[:, None] + digits).ravel(), (len(batch.tokens), 1))
    if isinstance(task, CommonWords):  # words of the list
        end = batch.tokens.shape[1] - 1 - task.n_common
        listed = task.first_id("w") <= batch.tokens[:, :end]
        return np.nonzero(listed)[1].reshape(len(batch.tokens), -1)
    if isinstance(task, Compositional):  # both parts of each query
        second = np.nonzero(batch.scored)[1].reshape(len(batch.tokens), -1)
        return np.stack([second - 1, second], -1).reshape(len(batch.tokens), -1)
    asked = {"induction": "s", "selective_copy": "s", "variable_tracking": "x"}.get(task.name, "k")
    query_BT, first = batch.scored, task.first_id(asked)
    here_BT = (batch.tokens[:, :-1] >= first) & (batch.tokens[:, :-1] < first + dict(task.alphabet)[asked])
    if task.name in ("induction", "selective_copy"):
        here_BT &= np.arange(query_BT.shape[1]) < query_BT.argmax(1)[:, None]
    else:
        here_BT &= query_BT
    return np.nonzero(here_BT)[1].reshape(len(query_BT), -1)


def shuffled(task: TaskSettings, batch: TaskBatch, seed: int = 0) -> TaskBatch:
    """The windows with these tokens in another order; operands are those of another window, the parts of a key stay
    together, and of a list of words each word becomes another of them, at all of its places."""
    place_BN, tokens_BT = places(task, batch), batch.tokens.copy()
    values_BN = np.take_along_axis(tokens_BT, place_BN, 1)
    if isinstance(task, Arithmetic):
        values_BN = np.roll(values_BN, 1, axis=0)
    elif isinstance(task, CommonWords):
        generator = np.random.default_rng(seed)
        for row_N in values_BN:
            words, which_N = np.unique(row_N, return_inverse=True)
            row_N[:] = generator.permutation(words)[which_N]
    else:
        width = 2 if isinstance(task, Compositional) else 1
        grouped = values_BN.reshape(len(values_BN), -1, width)
        order = np.random.default_rng(seed).permuted(np.tile(np.arange(grouped.shape[1]), (len(grouped), 1)), axis=1)
        values_BN = np.take_along_axis(grouped, order[..., None], 1).reshape(values_BN.shape)
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
    if isinstance(task, CommonWords):
        first = task.first_id("w")
        return {token: 1 for token in set(seen_T[: queries[0]].tolist()) if token >= first}
    if isinstance(task, Forgetting | Compositional | VariableTracking | MultiNeedle):
        return _of_all_that_could_be_asked(task, seen_T[: queries[0]], len(queries))
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


def _of_all_that_could_be_asked(task: TaskSettings, seen_T: np.ndarray, number: int) -> dict[int, float]:
    """How many of the things that could be asked for have each answer, at query `number` (from 1) of the window."""
    answers = task_meaning.answers_by_key(task, [int(token) for token in seen_T])
    if isinstance(task, MultiNeedle):
        of_key = (number - 1) % task.values_per_key
        return dict(Counter(values[of_key] for values in answers.values()))
    if isinstance(task, VariableTracking):  # the last variable of a chain is on the right of no statement
        answers = {name: value for name, value in answers.items() if name in task_meaning.chain_ends(task, seen_T)}
    return dict(Counter(values[0] for values in answers.values()))
