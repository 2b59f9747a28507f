"""What the listed positions are worth: answers read from them alone, and how many of them a selection holds.

Legend: B windows, L inputs, M listed positions, K selected slots, C choices of an answer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsabench.data.tasks.task_batch import TaskBatch
from dsabench.spec.task_settings import TaskSettings
from dsabench.spec.tasks import Arithmetic


def answers_from_targets(settings: TaskSettings, batch: TaskBatch) -> NDArray[np.int32]:
    """(B, L) answers to every scored input from the tokens at its listed positions and the input itself, else -1.

    It looks at nothing else of the window, and is always right: what is listed suffices.
    """
    inputs_BL = batch.tokens[:, :-1]
    flat_BM = np.maximum(batch.targets, 0).reshape(len(inputs_BL), -1)
    seen_BLM = np.take_along_axis(inputs_BL, flat_BM, 1).reshape(batch.targets.shape)
    seen_BLM = np.where(batch.targets >= 0, seen_BLM, -1)
    answer_BL = _sum_digit(settings, seen_BLM, inputs_BL) if isinstance(settings, Arithmetic) else seen_BLM[..., 0]
    return np.where(batch.scored, answer_BL, -1).astype(np.int32)


def _sum_digit(settings: Arithmetic, seen_BLM: NDArray[np.int32], inputs_BL: NDArray[np.int32]) -> NDArray[np.int32]:
    """(a + b + carry) mod 10; a place lower, where a' + b' + carry' has the digit c', which the input is:

    carry' = (c' - a' - b') mod 10 and carry = (a' + b' + carry' >= 10).
    """
    zero = settings.first_id("")
    here_BL = np.maximum(seen_BLM[..., :2] - zero, 0).sum(-1)
    below_BL = np.maximum(seen_BLM[..., 2:] - zero, 0).sum(-1)
    carry_BL = below_BL + (inputs_BL - zero - below_BL) % 10 >= 10
    digit_BL: NDArray[np.int32] = zero + (here_BL + np.where(seen_BLM[..., 2] < 0, 0, carry_BL)) % 10
    return digit_BL


def target_recall(selected_BLK: NDArray[np.integer], batch: TaskBatch) -> float:
    """Recall@k: share of all listed positions of scored inputs that are among the K selected (-1 is an empty slot)."""
    b, t = np.nonzero(batch.scored)
    listed_CM, selected_CK = batch.targets[b, t], selected_BLK[b, t]
    found_CM = (listed_CM[:, :, None] == selected_CK[:, None, :]).any(-1)
    return float(found_CM[listed_CM >= 0].mean())


def target_recall_chance(batch: TaskBatch, k: int) -> float:
    """The same for a random causal set of k keys: mean over listed positions of min(1, k / (t + 1))."""
    _, t, _ = np.nonzero(batch.targets >= 0)
    return float(np.minimum(1.0, k / (t + 1)).mean())
