"""The windows of `induction`: a row of symbols, and the same row again, in which each symbol says the next.

Legend: B windows, N symbols of the row.
"""

from __future__ import annotations

import numpy as np

from dsabench.data.batch import SplitName
from dsabench.data.tasks.curriculum import Level
from dsabench.data.tasks.draws import Draws
from dsabench.data.tasks.task_batch import TaskBatch, answer, blank, half_of_the_rest, put
from dsabench.spec.tasks import Induction


def generate(settings: Induction, at: Level, length: int, windows: int, draws: Draws, split: SplitName) -> TaskBatch:
    """A row in the first half of the span and again in the second. Listed is the answer in the first row."""
    n = at.size
    batch = blank(settings, length, at.span, windows, draws)
    symbol_BN = settings.first_id("s") + draws.distinct(windows, n, settings.n_symbols)
    room = n + half_of_the_rest(2 * n, at.span)
    first_BN = draws.places(windows, 1, n, room) + np.arange(n)
    again_BN = room + draws.places(windows, 1, n, at.span + 1 - room) + np.arange(n)
    put(batch.tokens, first_BN, symbol_BN)
    put(batch.tokens, again_BN[:, :1], symbol_BN[:, :1])
    answer(batch, again_BN[:, :-1], first_BN[:, 1:])
    return batch
