"""Data, from text or task to paired batches: sources, document split, tokenizer, memory-mapped tokens, windows.

Needs numpy, never torch.

data = prepare(spec.data)                        # TokenData: read, split, tokenized, cached; or TaskData
windows = cut(data, spec.length)                 # raises DataError when no document holds a window
batch = windows.batch(seed=42, step=0, batch_size=16, steps=1000)
batch.inputs, batch.tokens[:, 1:]                # (B, length): what a model reads, and what it is to say next
held_out = windows.evaluation("val", 131_072)
"""

from __future__ import annotations

from dsabench.data.batch import Baseline, Batch, WindowSource
from dsabench.data.held_out_share import Amounts
from dsabench.data.packing import PackedWindows
from dsabench.data.pieces import pieces
from dsabench.data.prepare import Survey, fingerprint, prepare, survey
from dsabench.data.stored_tokenizer import tokenizer_by_digest
from dsabench.data.tasks import TaskWindows
from dsabench.data.tokens import TaskData, TokenData, TokenSplit
from dsabench.data.windows import Windows, validation_window

__all__ = [
    "Amounts",
    "Baseline",
    "Batch",
    "PackedWindows",
    "Survey",
    "TaskData",
    "TaskWindows",
    "TokenData",
    "TokenSplit",
    "WindowSource",
    "Windows",
    "cut",
    "fingerprint",
    "pieces",
    "prepare",
    "survey",
    "tokenizer_by_digest",
    "validation_window",
]


def cut(data: TokenData | TaskData, length: int) -> WindowSource:
    """The windows of one length of prepared data. Raises DataError, saying what would fit, when there are none."""
    if isinstance(data, TaskData):
        return TaskWindows(data.settings, length)
    return PackedWindows(data, length) if data.packed else Windows(data, length)
