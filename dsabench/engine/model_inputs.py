"""The tokens that a model reads of its windows: all but the last, answers that are labels alone covered.

Legend: B windows, T time.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from dsabench.spec.run import RunSpec


def model_inputs(spec: RunSpec, tokens_BT: Tensor, scored_BT: Tensor | None) -> Tensor:
    """(B, T) inputs of windows of T + 1 tokens; data.Batch.inputs is the same on the host.

    What follows a scored input is an answer. Where the task hides answers, its `answer_cover` stands in their places.
    """
    inputs_BT = tokens_BT[:, :-1]
    cover = None if spec.data.task is None else spec.data.task.answer_cover
    if cover is None:
        return inputs_BT
    assert scored_BT is not None, "a task's windows say what is scored"
    return inputs_BT.masked_fill(F.pad(scored_BT[:, :-1], (1, 0)), cover)
