"""The windows of `recall`: pairs of a key and a value, then keys; the answer is the key's value.

Legend: B windows, N pairs of a window, Q queries.
"""

from __future__ import annotations

import numpy as np

from dsabench.data.batch import SplitName
from dsabench.data.tasks.curriculum import Level
from dsabench.data.tasks.draws import Draws
from dsabench.data.tasks.task_batch import TaskBatch, answer, blank, half_of_the_rest, put
from dsabench.spec.tasks import Recall, asked


def generate(settings: Recall, at: Level, length: int, windows: int, draws: Draws, split: SplitName) -> TaskBatch:
    """Pairs in the first part of the span, queries in the rest, half of the free places each. Listed is the value."""
    n, n_queries = at.size, asked(at.size, settings.n_pairs, settings.n_queries)
    batch = blank(settings, length, at.span, windows, draws)
    key_BN = settings.first_id("k") + draws.distinct(windows, n, settings.n_keys)
    value_BN = settings.first_id("v") + draws.below(settings.n_values, (windows, n))
    asked_BQ = draws.distinct(windows, n_queries, n)
    room = 2 * n + half_of_the_rest(settings.tokens_needed(n), at.span)
    pair_BN = draws.places(windows, n, 2, room)
    query_BQ = room + draws.places(windows, n_queries, 2, at.span + 1 - room)
    put(batch.tokens, pair_BN, key_BN)
    put(batch.tokens, pair_BN + 1, value_BN)
    put(batch.tokens, query_BQ, np.take_along_axis(key_BN, asked_BQ, 1))
    answer(batch, query_BQ, np.take_along_axis(pair_BN, asked_BQ, 1) + 1)
    return batch
