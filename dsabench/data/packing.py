"""Packed windows: L + 1 tokens of several consecutive documents, each of which sees itself alone.

    window = tokens s .. s + L of a split, documents side by side       ids[t] = documents that began in 1..t

Windows may then be longer than documents. The model is given the ids, and no attention crosses from one document into
another. Positions run through the whole window, because rotary attention sees distances alone. A document's first token
is not scored, because the input before it is the end of another document. All other targets are scored.

Legend: N windows, B batch, D documents of a split, S starts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsabench.data.batch import FULL_NAME, Baseline, Batch, SplitName, evenly_spaced, what_fits
from dsabench.data.tokens import TokenData, TokenSplit
from dsabench.errors import DataError


class PackedWindows:
    """The packed windows of one length of both splits. Raises DataError when a split has fewer than L + 1 tokens."""

    def __init__(self, data: TokenData, length: int) -> None:
        self.length, self._data = length, data
        self.notes: list[str] = []
        self._splits: dict[SplitName, TokenSplit] = {"train": data.train, "val": data.val}
        most = min(len(split.tokens) for split in self._splits.values()) - 1
        for name, split in self._splits.items():
            if len(split.tokens) <= length:
                raise DataError(
                    f"length {length} with data.packing = documents needs {length + 1:,} tokens, and the "
                    f"{FULL_NAME[name]} documents have {len(split.tokens):,}; {what_fits(most)}, or use more text"
                )
        self._start_S = _starts(data.train.offsets, length)
        self.most_documents = max(_most_documents(split.offsets, length) for split in self._splits.values())

    def batch(self, seed: int, step: int, batch_size: int, steps: int) -> Batch:
        """The windows of a training step; how many steps there are makes no difference."""
        return self._gather(self.batch_starts(seed, step, batch_size), "train")

    def batch_starts(self, seed: int, step: int, batch_size: int) -> NDArray[np.int64]:
        """(B,) places in the training tokens where the windows of a step start, keyed by (seed, step) alone.

        Uniform over the starts of documents and, in a document longer than L, every L-th token of it, so that its end
        is trained on too. After the start, documents follow in the split's order until the window is full; after the
        split's last document comes its first.
        """
        raw_B = np.random.Philox(key=np.array([seed, step], np.uint64)).random_raw(batch_size)
        return self._start_S[(raw_B % np.uint64(len(self._start_S))).astype(np.int64)]

    def evaluation(self, split: SplitName, max_tokens: int | None = None) -> Batch:
        """Fixed windows of a split, the same for every seed and attention.

        They lie end to end over the split's tokens: the first input of a window is the last target of the window
        before it, so that no target is scored twice. A document that a window's start cuts is seen from there on.
        At most ceil(max_tokens / L) windows, evenly spaced over the split.
        """
        start_N = np.arange((len(self._splits[split].tokens) - 1) // self.length, dtype=np.int64) * self.length
        if max_tokens is not None:
            start_N = start_N[evenly_spaced(len(start_N), -(-max_tokens // self.length))]
        return self._gather(start_N, split)

    def baseline(self, batch: Batch) -> Baseline:
        """See TokenData.baseline."""
        return self._data.baseline(batch)

    def _gather(self, start_N: NDArray[np.int64], name: SplitName) -> Batch:
        split = self._splits[name]
        place_NT = (start_N[:, None] + np.arange(self.length + 1)) % len(split.tokens)
        began_NT = split.offsets[np.searchsorted(split.offsets, place_NT)] == place_NT  # no place is the last offset
        began_NT[:, 0] = False
        ids_NT = began_NT.cumsum(axis=1).astype(np.int32)
        return Batch(
            tokens=split.tokens[place_NT].astype(np.int32),
            scored=~began_NT[:, 1:],
            documents=ids_NT[:, :-1],
            most_documents=self.most_documents,
        )


def _most_documents(offsets: NDArray[np.int64], length: int) -> int:
    """The most documents that a run of `length` tokens touches; after the split's last document comes its first."""
    offset_D = np.unique(offsets)[:-1]  # of documents that have tokens
    twice_D = np.concatenate([offset_D, offset_D + offsets[-1]])
    # A window that starts with the last token of the document before D sees the most.
    began_D = np.searchsorted(twice_D, offset_D + length - 1, side="left") - np.arange(len(offset_D))
    return 1 + int(began_D.max())


def _starts(offsets: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """(S,) each document's start, and every L-th token of it that has a target in it, in order."""
    count_D = np.maximum(np.diff(offsets) - 2, 0) // length + 1
    document_S = np.repeat(np.arange(len(count_D)), count_D)
    before_D = np.cumsum(count_D) - count_D
    start_S: NDArray[np.int64] = offsets[document_S] + (np.arange(len(document_S)) - before_D[document_S]) * length
    return start_S[np.diff(offsets)[document_S] > 0]
