"""The windows of `multi_needle`: keys with several values in a haystack of words, and questions at the end.

Legend: B windows, N keys of a window, M values of a key, P = N M places, Q queries.
"""

from __future__ import annotations

import numpy as np

from dsabench.data.batch import SplitName
from dsabench.data.tasks.curriculum import Level
from dsabench.data.tasks.draws import Draws
from dsabench.data.tasks.task_batch import TaskBatch, answer, blank, put
from dsabench.spec.tasks import MultiNeedle, asked


def generate(settings: MultiNeedle, at: Level, length: int, windows: int, draws: Draws, split: SplitName) -> TaskBatch:
    """Places of all keys mixed, anywhere before the questions, which end the span. Listed is the value in the
    haystack."""
    n, m = at.size, settings.values_per_key
    n_queries = asked(n, settings.n_needles, settings.n_queries)
    batch = blank(settings, length, at.span, windows, draws)
    haystack = at.span + 1 - n_queries * (2 + m)
    batch.tokens[:, :haystack] = settings.first_id("w") + draws.below(settings.n_words, (windows, haystack))
    key_BN = settings.first_id("k") + draws.distinct(windows, n, settings.n_keys)
    value_BP = settings.first_id("v") + draws.distinct(windows, n * m, settings.n_values)
    owner_BP = draws.distinct(windows, n * m, n * m) // m
    place_BP = draws.places(windows, n * m, 2, haystack)
    put(batch.tokens, place_BP, np.take_along_axis(key_BN, owner_BP, 1))
    put(batch.tokens, place_BP + 1, value_BP)
    asked_BQ = draws.distinct(windows, n_queries, n)
    question_Q = haystack + (2 + m) * np.arange(n_queries)
    batch.tokens[:, question_Q] = settings.first_id("?")
    batch.tokens[:, question_Q + 1] = np.take_along_axis(key_BN, asked_BQ, 1)
    # A stable sort by owner lists each key's places one after the other, in their order.
    place_BNM = np.take_along_axis(place_BP, owner_BP.argsort(1, kind="stable"), 1).reshape(windows, n, m)
    target_BQM = np.take_along_axis(place_BNM, asked_BQ[..., None], 1) + 1
    query_BQM = np.broadcast_to(question_Q[:, None] + 1 + np.arange(m), target_BQM.shape)
    answer(batch, query_BQM.reshape(windows, -1), target_BQM.reshape(windows, -1))
    return batch
