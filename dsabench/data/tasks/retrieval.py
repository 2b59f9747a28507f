"""Recall, induction, needle, selective copy: tasks whose answer stands earlier in the window, at the listed place.

Legend: B windows, N things in a window (pairs, needles, symbols), Q queries, W words of a value.
"""

from __future__ import annotations

import numpy as np

from dsabench.data.tasks.curriculum import Level
from dsabench.data.tasks.draws import Draws, Integers
from dsabench.data.tasks.task_batch import TaskBatch, blank, first_id, put
from dsabench.spec.tasks import Induction, Needle, Recall, SelectiveCopy, asked


def recall(settings: Recall, at: Level, length: int, windows: int, draws: Draws) -> TaskBatch:
    """Pairs in the first part of the span, queries in the rest, half of the free places each. Listed is the value."""
    n, n_queries = at.size, asked(at.size, settings.n_pairs, settings.n_queries)
    batch = blank(settings, length, at.span, windows, draws)
    key_BN = first_id(settings, "k") + draws.distinct(windows, n, settings.n_keys)
    value_BN = first_id(settings, "v") + draws.below(settings.n_values, (windows, n))
    asked_BQ = draws.distinct(windows, n_queries, n)
    room = 2 * n + _half_of_the_rest(settings.tokens_needed(n), at.span)
    pair_BN = draws.places(windows, n, 2, room)
    query_BQ = room + draws.places(windows, n_queries, 2, at.span + 1 - room)
    put(batch.tokens, pair_BN, key_BN)
    put(batch.tokens, pair_BN + 1, value_BN)
    put(batch.tokens, query_BQ, np.take_along_axis(key_BN, asked_BQ, 1))
    _answer(batch, query_BQ, np.take_along_axis(pair_BN, asked_BQ, 1) + 1)
    return batch


def induction(settings: Induction, at: Level, length: int, windows: int, draws: Draws) -> TaskBatch:
    """A row in the first half of the span and again in the second. Listed is the answer in the first row."""
    n = at.size
    batch = blank(settings, length, at.span, windows, draws)
    symbol_BN = first_id(settings, "s") + draws.distinct(windows, n, settings.n_symbols)
    room = n + _half_of_the_rest(2 * n, at.span)
    first_BN = draws.places(windows, 1, n, room) + np.arange(n)
    again_BN = room + draws.places(windows, 1, n, at.span + 1 - room) + np.arange(n)
    put(batch.tokens, first_BN, symbol_BN)
    put(batch.tokens, again_BN[:, :1], symbol_BN[:, :1])
    _answer(batch, again_BN[:, :-1], first_BN[:, 1:])
    return batch


def needle(settings: Needle, at: Level, length: int, windows: int, draws: Draws) -> TaskBatch:
    """Needles anywhere before the questions, which end the span. Listed is the value's word in the needle."""
    n, n_words, n_queries = at.size, settings.value_length, asked(at.size, settings.n_needles, settings.n_queries)
    batch = blank(settings, length, at.span, windows, draws)
    haystack = at.span + 1 - n_queries * (2 + n_words)
    batch.tokens[:, :haystack] = first_id(settings, "w") + draws.below(settings.n_words, (windows, haystack))
    key_BN = first_id(settings, "k") + draws.distinct(windows, n, settings.n_keys)
    needle_BN = draws.places(windows, n, 1 + n_words, haystack)
    asked_BQ = draws.distinct(windows, n_queries, n)
    question_Q = haystack + (2 + n_words) * np.arange(n_queries)
    put(batch.tokens, needle_BN, key_BN)  # what follows in the haystack becomes its value
    batch.tokens[:, question_Q] = first_id(settings, "?")
    batch.tokens[:, question_Q + 1] = np.take_along_axis(key_BN, asked_BQ, 1)
    query_BQW = np.broadcast_to(question_Q[:, None] + 1 + np.arange(n_words), (windows, n_queries, n_words))
    value_BQW = np.take_along_axis(needle_BN, asked_BQ, 1)[..., None] + 1 + np.arange(n_words)
    _answer(batch, query_BQW.reshape(windows, -1), value_BQW.reshape(windows, -1))
    return batch


def selective_copy(settings: SelectiveCopy, at: Level, length: int, windows: int, draws: Draws) -> TaskBatch:
    """Symbols anywhere before the bar; the bar and the copy end the span. Listed is the symbol that is copied."""
    n = at.size
    batch = blank(settings, length, at.span, windows, draws)
    bar = at.span - n
    place_BN = draws.places(windows, n, 1, bar)
    put(batch.tokens, place_BN, first_id(settings, "s") + draws.below(settings.n_symbols, (windows, n)))
    batch.tokens[:, bar] = first_id(settings, "|")
    _answer(batch, np.broadcast_to(bar + np.arange(n), (windows, n)), place_BN)
    return batch


def _half_of_the_rest(needed: int, span: int) -> int:
    """Half of the places that the task leaves free among the span's tokens."""
    return (span + 1 - needed) // 2


def _answer(batch: TaskBatch, query_BQ: Integers, target_BQ: Integers) -> None:
    """Score inputs query_BQ, whose answers are the tokens that stand at target_BQ: write them after the queries."""
    put(batch.tokens, query_BQ + 1, np.take_along_axis(batch.tokens, target_BQ, 1))
    put(batch.scored, query_BQ, True)
    put(batch.targets[..., 0], query_BQ, target_BQ)
