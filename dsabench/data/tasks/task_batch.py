"""Windows of a task: tokens, which answers are scored, and where each answer is to be found.

Legend: B windows, L inputs of a window, M listed positions of an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsabench.data.batch import Batch
from dsabench.data.tasks.draws import Draws, Integers
from dsabench.spec.task_settings import FILLER, PAD, TaskSettings


@dataclass(frozen=True, eq=False)
class TaskBatch(Batch):
    """Windows whose answers are known, with the places where each answer is to be found."""

    tokens: NDArray[np.int32]
    """(B, L + 1) ids, answers in their places whether the model reads them or not: see `inputs`."""

    scored: NDArray[np.bool_]
    """(B, L): after reading input t, the model is to answer tokens[:, t + 1]. Never at or before padding."""

    targets: NDArray[np.int32]
    """(B, L, M): input positions < t that must be attended to for the answer, unused ones -1; all -1 where not scored.

    Where the answer stands in the window it is the answer's own place (the value, not the key before it), because that
    is what the last attention of a retrieval circuit reads. For `arithmetic` it is the digits that are added.
    The input at t is not listed though it is needed: the residual stream holds it.
    """


def blank(settings: TaskSettings, length: int, span: int, windows: int, draws: Draws) -> TaskBatch:
    """Fillers, if the task has any, in tokens 0..span of length + 1, padding after them; nothing scored."""
    tokens_BT = np.full((windows, length + 1), settings.first_id(PAD), np.int32)
    counts = dict(settings.alphabet)
    if FILLER in counts:
        fillers_BT = draws.below(counts[FILLER], (windows, span + 1))
        tokens_BT[:, : span + 1] = settings.first_id(FILLER) + fillers_BT
    return TaskBatch(
        tokens_BT,
        np.zeros((windows, length), np.bool_),
        np.full((windows, length, settings.width), -1, np.int32),
        answer_cover=settings.answer_cover,
    )


def put(array: NDArray[Any], places: NDArray[np.int64], values: NDArray[Any] | int | bool) -> None:
    """array[b, places[b, n]] = values[b, n] for all b, n."""
    array[np.arange(len(array)).reshape(-1, *[1] * (places.ndim - 1)), places] = values


def half_of_the_rest(needed: int, span: int) -> int:
    """Half of the places that are free among the span's tokens, of which the task takes `needed`."""
    return (span + 1 - needed) // 2


def answer(batch: TaskBatch, query_BQ: Integers, target_BQ: Integers) -> None:
    """Score inputs query_BQ, whose answers are the tokens that stand at target_BQ: write them after the queries."""
    put(batch.tokens, query_BQ + 1, np.take_along_axis(batch.tokens, target_BQ, 1))
    put(batch.scored, query_BQ, True)
    put(batch.targets[..., 0], query_BQ, target_BQ)


def piece(settings: TaskSettings, token: int) -> str:
    """An id as a reader sees it: `k17`, `v3`, `?`, `=`, `7`; `_` is padding, `.` filler."""
    assert token >= 0
    for name, count in settings.alphabet:
        if token < count:
            return name if count == 1 else f"{name}{token}"
        token -= count
    raise AssertionError(f"{settings.name} has ids 0 to {settings.vocab_size - 1} only")
