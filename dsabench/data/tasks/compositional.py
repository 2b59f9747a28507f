"""The windows of `compositional`: keys of two parts with their values, then the keys again.

Legend: B windows, G parts on a side, N = G^2 keys of a window.
"""

from __future__ import annotations

import numpy as np

from dsabench.data.batch import SplitName
from dsabench.data.tasks.curriculum import Level
from dsabench.data.tasks.draws import Draws
from dsabench.data.tasks.task_batch import TaskBatch, answer, blank, half_of_the_rest, put
from dsabench.spec.tasks import Compositional


def generate(
    settings: Compositional, at: Level, length: int, windows: int, draws: Draws, split: SplitName
) -> TaskBatch:
    """All pairs of parts in random order in the first part of the span, and again in the rest. Listed is the value."""
    n = at.size**2
    batch = blank(settings, length, at.span, windows, draws)
    one_BG, other_BG = (
        settings.first_id(part) + draws.distinct(windows, at.size, settings.n_parts) for part in ("a", "b")
    )
    key_BN, asked_BN = draws.distinct(windows, n, n), draws.distinct(windows, n, n)
    value_BN = settings.first_id("v") + draws.below(settings.n_values, (windows, n))
    room = 3 * n + half_of_the_rest(6 * n, at.span)
    stored_BN = draws.places(windows, n, 3, room)
    query_BN = room + draws.places(windows, n, 3, at.span + 1 - room)
    asked_key_BN = np.take_along_axis(key_BN, asked_BN, 1)
    for place_BN, pair_BN in ((stored_BN, key_BN), (query_BN, asked_key_BN)):
        put(batch.tokens, place_BN, np.take_along_axis(one_BG, pair_BN // at.size, 1))
        put(batch.tokens, place_BN + 1, np.take_along_axis(other_BG, pair_BN % at.size, 1))
    put(batch.tokens, stored_BN + 2, value_BN)
    answer(batch, query_BN + 1, np.take_along_axis(stored_BN, asked_BN, 1) + 2)
    return batch
