"""The windows of `mqar`: packed pairs, then each key once, at gaps of a power law.

Legend: B windows, N pairs of a window, G gaps that there are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsabench.data.batch import SplitName
from dsabench.data.tasks.curriculum import Level
from dsabench.data.tasks.draws import Draws, Integers
from dsabench.data.tasks.task_batch import TaskBatch, answer, blank, put
from dsabench.spec.tasks import Mqar


def generate(settings: Mqar, at: Level, length: int, windows: int, draws: Draws, split: SplitName) -> TaskBatch:
    """Pairs at the start of the span, queries behind them at even distances. Listed is the value."""
    n = at.size
    batch = blank(settings, length, at.span, windows, draws)
    pair_BN = np.broadcast_to(2 * np.arange(n), (windows, n))
    key_BN = settings.first_id("k") + draws.distinct(windows, n, settings.n_keys)
    put(batch.tokens, pair_BN, key_BN)
    put(batch.tokens, pair_BN + 1, settings.first_id("v") + draws.distinct(windows, n, settings.n_values))
    gap_BN = _gaps(draws, windows, n, (at.span - 2 * n) // 2, settings.power)
    query_BN = 2 * n + 2 * np.take_along_axis(gap_BN, draws.distinct(windows, n, n), 1)
    put(batch.tokens, query_BN, key_BN)
    answer(batch, query_BN, pair_BN + 1)
    return batch


def _gaps(draws: Draws, windows: int, n: int, there: int, power: float) -> Integers:
    """(B, N): n different gaps of 0..there-1, drawn one after the other with probabilities in proportion to
    (g + 1)^(power - 1): the n that come first in a race of exponential times of these rates."""
    rate_G = np.arange(1.0, there + 1) ** (power - 1)
    uniform_BG = (draws.raw((windows, there)).astype(np.float64) + 0.5) / 2.0**64
    time_BG: NDArray[np.float64] = -np.log(uniform_BG) / rate_G
    return np.argsort(time_BG, axis=1, kind="stable")[:, :n]
