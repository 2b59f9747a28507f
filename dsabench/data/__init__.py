"""Text to paired batches: corpora, document split, tokenizer, memory-mapped tokens, windows. Needs numpy, never torch.

data = prepare(spec.data)                        # TokenData: read, split, tokenized, cached
windows = Windows(data, spec.length)             # raises DataError when no document holds a window
starts_B = windows.batch_starts(seed=42, step=0, batch_size=16)
tokens_BT = windows.gather(starts_B)             # (B, length + 1): inputs [:, :-1], targets [:, 1:]
held_out_NT = windows.evaluation("val", 131_072)
"""

from dsabench.data.pieces import pieces, visible
from dsabench.data.prepare import fingerprint, prepare, tokenizer_by_digest
from dsabench.data.tokens import TokenData, TokenSplit
from dsabench.data.windows import Windows, validation_window

__all__ = [
    "TokenData",
    "TokenSplit",
    "Windows",
    "fingerprint",
    "pieces",
    "prepare",
    "tokenizer_by_digest",
    "validation_window",
    "visible",
]
