"""The windows of `common_words`: a list in which some words stand several times, and bars that ask for these.

Legend: B windows, D different words of a window, P places of the list, C common words.
"""

from __future__ import annotations

import numpy as np

from dsabench.data.batch import SplitName
from dsabench.data.tasks.curriculum import Level
from dsabench.data.tasks.draws import Draws
from dsabench.data.tasks.task_batch import TaskBatch, answer, blank, put
from dsabench.spec.tasks import CommonWords


def generate(settings: CommonWords, at: Level, length: int, windows: int, draws: Draws, split: SplitName) -> TaskBatch:
    """The list anywhere before the bars, which end the span. Listed are all places of the word."""
    counts = settings.counts
    of_P = np.repeat(np.arange(at.size + len(counts)), [*counts, *[1] * at.size])
    batch = blank(settings, length, at.span, windows, draws)
    bar = at.span - len(counts)
    word_BD = settings.first_id("w") + draws.distinct(windows, at.size + len(counts), settings.n_words)
    order_BP = draws.distinct(windows, len(of_P), len(of_P))
    place_BP = np.take_along_axis(draws.places(windows, len(of_P), 1, bar), order_BP, 1)
    put(batch.tokens, place_BP, np.take_along_axis(word_BD, np.broadcast_to(of_P, place_BP.shape), 1))
    batch.tokens[:, bar] = settings.first_id("|")
    begin_C = np.cumsum([0, *counts[:-1]])
    query_BC = np.broadcast_to(bar + np.arange(len(counts)), (windows, len(counts)))
    answer(batch, query_BC, place_BP[:, begin_C])
    for c, count in enumerate(counts):
        listed_BM = np.sort(place_BP[:, begin_C[c] : begin_C[c] + count], axis=1)
        batch.targets[:, bar + c, :count] = listed_BM
    return batch
