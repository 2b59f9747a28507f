"""The windows of `variable_tracking`: chains of assignments, mixed, and questions at the end.

Legend: B windows, N chains of a window, H statements of a chain, S = N H statements, Q queries.
"""

from __future__ import annotations

import numpy as np

from dsabench.data.batch import SplitName
from dsabench.data.tasks.curriculum import Level
from dsabench.data.tasks.draws import Draws
from dsabench.data.tasks.task_batch import TaskBatch, answer, blank, put
from dsabench.spec.tasks import VariableTracking, asked


def generate(
    settings: VariableTracking, at: Level, length: int, windows: int, draws: Draws, split: SplitName
) -> TaskBatch:
    """Statements anywhere before the questions, which end the span. Listed are the value, and of each statement that
    passes it on the variable on the right."""
    n, n_steps = at.size, settings.n_hops + 1
    n_queries = asked(n, settings.n_chains, settings.n_queries)
    batch = blank(settings, length, at.span, windows, draws)
    haystack = at.span + 1 - 3 * n_queries
    chain_BS = draws.distinct(windows, n * n_steps, n * n_steps) // n_steps
    place_BS = draws.places(windows, n * n_steps, 3, haystack)
    # A stable sort by chain lists each chain's statements one after the other, in their order.
    place_BNH = np.take_along_axis(place_BS, chain_BS.argsort(1, kind="stable"), 1).reshape(windows, n, n_steps)
    variable_BNH = settings.first_id("x") + draws.distinct(windows, n * n_steps, settings.n_variables)
    variable_BNH = variable_BNH.reshape(windows, n, n_steps)
    value_BN = settings.first_id("v") + draws.below(settings.n_values, (windows, n))
    right_BNH = np.concatenate([value_BN[..., None], variable_BNH[..., :-1]], axis=-1)
    for offset, token_BNH in ((0, variable_BNH), (2, right_BNH)):
        put(batch.tokens, place_BNH.reshape(windows, -1) + offset, token_BNH.reshape(windows, -1))
    put(batch.tokens, place_BS + 1, settings.first_id("="))
    asked_BQ = draws.distinct(windows, n_queries, n)
    question_Q = haystack + 3 * np.arange(n_queries)
    batch.tokens[:, question_Q] = settings.first_id("?")
    batch.tokens[:, question_Q + 1] = np.take_along_axis(variable_BNH[..., -1], asked_BQ, 1)
    target_BQH = np.take_along_axis(place_BNH, asked_BQ[..., None], 1) + 2
    query_BQ = np.broadcast_to(question_Q + 1, asked_BQ.shape)
    answer(batch, query_BQ, target_BQH[..., 0])
    for step in range(1, n_steps):
        put(batch.targets[..., step], query_BQ, target_BQH[..., step])
    return batch
