"""The windows of `selective_copy`: symbols among fillers, a bar, and the symbols alone in their order.

Legend: B windows, N symbols to copy.
"""

from __future__ import annotations

import numpy as np

from dsabench.data.batch import SplitName
from dsabench.data.tasks.curriculum import Level
from dsabench.data.tasks.draws import Draws
from dsabench.data.tasks.task_batch import TaskBatch, answer, blank, put
from dsabench.spec.tasks import SelectiveCopy


def generate(
    settings: SelectiveCopy, at: Level, length: int, windows: int, draws: Draws, split: SplitName
) -> TaskBatch:
    """Symbols anywhere before the bar; the bar and the copy end the span. Listed is the symbol that is copied."""
    n = at.size
    batch = blank(settings, length, at.span, windows, draws)
    bar = at.span - n
    place_BN = draws.places(windows, n, 1, bar)
    put(batch.tokens, place_BN, settings.first_id("s") + draws.below(settings.n_symbols, (windows, n)))
    batch.tokens[:, bar] = settings.first_id("|")
    answer(batch, np.broadcast_to(bar + np.arange(n), (windows, n)), place_BN)
    return batch
