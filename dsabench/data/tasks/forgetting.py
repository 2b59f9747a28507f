"""The windows of `forgetting`: pairs of a key and a value, new values for some keys, then keys.

Legend: B windows, N keys of a window, U keys with a new value, Q queries.
"""

from __future__ import annotations

import numpy as np

from dsabench.data.batch import SplitName
from dsabench.data.tasks.curriculum import Level
from dsabench.data.tasks.draws import Draws
from dsabench.data.tasks.task_batch import TaskBatch, answer, blank, half_of_the_rest, put
from dsabench.spec.tasks import Forgetting, asked


def generate(settings: Forgetting, at: Level, length: int, windows: int, draws: Draws, split: SplitName) -> TaskBatch:
    """First pairs, new pairs and queries, in this order; half of the free places lie before the queries. Listed is the
    value that holds."""
    n, n_new, n_queries = at.size, settings.updates(at.size), asked(at.size, settings.n_pairs, settings.n_queries)
    batch = blank(settings, length, at.span, windows, draws)
    key_BN = settings.first_id("k") + draws.distinct(windows, n, settings.n_keys)
    value_BN = draws.below(settings.n_values, (windows, n))
    renewed_BU = draws.distinct(windows, n_new, n)
    old_BU = np.take_along_axis(value_BN, renewed_BU, 1)
    new_BU = (old_BU + 1 + draws.below(settings.n_values - 1, (windows, n_new))) % settings.n_values
    asked_BQ = draws.distinct(windows, n_queries, n)
    room = 2 * (n + n_new) + half_of_the_rest(settings.tokens_needed(n), at.span)
    pair_BP = draws.places(windows, n + n_new, 2, room)
    first_BN, again_BU = pair_BP[:, :n], pair_BP[:, n:]
    query_BQ = room + draws.places(windows, n_queries, 2, at.span + 1 - room)
    put(batch.tokens, first_BN, key_BN)
    put(batch.tokens, first_BN + 1, settings.first_id("v") + value_BN)
    put(batch.tokens, again_BU, np.take_along_axis(key_BN, renewed_BU, 1))
    put(batch.tokens, again_BU + 1, settings.first_id("v") + new_BU)
    put(batch.tokens, query_BQ, np.take_along_axis(key_BN, asked_BQ, 1))
    holds_BN = first_BN.copy()
    np.put_along_axis(holds_BN, renewed_BU, again_BU, 1)
    answer(batch, query_BQ, np.take_along_axis(holds_BN, asked_BQ, 1) + 1)
    return batch
