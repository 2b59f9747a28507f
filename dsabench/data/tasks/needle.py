"""The windows of `needle`: keys with their values in a haystack of words, and questions at the end.

Legend: B windows, N needles of a window, Q queries, W words of a value.
"""

from __future__ import annotations

import numpy as np

from dsabench.data.batch import SplitName
from dsabench.data.tasks.curriculum import Level
from dsabench.data.tasks.draws import Draws
from dsabench.data.tasks.task_batch import TaskBatch, answer, blank, put
from dsabench.spec.tasks import Needle, asked


def generate(settings: Needle, at: Level, length: int, windows: int, draws: Draws, split: SplitName) -> TaskBatch:
    """Needles anywhere before the questions, which end the span. Listed is the value's word in the needle."""
    n, n_words, n_queries = at.size, settings.value_length, asked(at.size, settings.n_needles, settings.n_queries)
    batch = blank(settings, length, at.span, windows, draws)
    haystack = at.span + 1 - n_queries * (2 + n_words)
    batch.tokens[:, :haystack] = settings.first_id("w") + draws.below(settings.n_words, (windows, haystack))
    key_BN = settings.first_id("k") + draws.distinct(windows, n, settings.n_keys)
    needle_BN = draws.places(windows, n, 1 + n_words, haystack)
    asked_BQ = draws.distinct(windows, n_queries, n)
    question_Q = haystack + (2 + n_words) * np.arange(n_queries)
    put(batch.tokens, needle_BN, key_BN)  # what follows in the haystack becomes its value
    batch.tokens[:, question_Q] = settings.first_id("?")
    batch.tokens[:, question_Q + 1] = np.take_along_axis(key_BN, asked_BQ, 1)
    query_BQW = np.broadcast_to(question_Q[:, None] + 1 + np.arange(n_words), (windows, n_queries, n_words))
    value_BQW = np.take_along_axis(needle_BN, asked_BQ, 1)[..., None] + 1 + np.arange(n_words)
    answer(batch, query_BQW.reshape(windows, -1), value_BQW.reshape(windows, -1))
    return batch
