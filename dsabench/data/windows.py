"""Windows of L + 1 consecutive tokens of one document: L inputs, and L targets one place further.

With data.split = overlapping, windows of one stream of all documents, each drawn for training or for validation: see
stream.py.

Legend: N windows, B batch, D documents of a split.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsabench.data.batch import FULL_NAME, Baseline, Batch, SplitName, evenly_spaced, what_fits
from dsabench.data.tokens import TokenData, TokenSplit
from dsabench.errors import DataError


class Windows:
    """The windows of one length of both splits. No window crosses documents; a document's last target is its end.

    Raises DataError when no document of a split holds length + 1 tokens.
    """

    def __init__(self, data: TokenData, length: int) -> None:
        self.length, self._data = length, data
        self.notes: list[str] = []
        """How many documents are too short for a window, and their share of the tokens, a line a split."""
        self._splits: dict[SplitName, TokenSplit] = {"train": data.train, "val": data.val}
        self._drawn: dict[SplitName, NDArray[np.int64]] | None = None
        if data.overlapping is not None:
            self._drawn = data.overlapping.draw(len(data.train.tokens), length)
        else:
            for name, split in self._splits.items():
                self._check(name, split)
        sizes_D = np.diff(data.train.offsets)
        self._cumulative_D = np.cumsum(np.maximum(sizes_D - length, 0))

    @property
    def n_starts(self) -> int:
        """Number of different training windows."""
        return int(self._cumulative_D[-1]) if self._drawn is None else len(self._drawn["train"])

    def batch(self, seed: int, step: int, batch_size: int, steps: int) -> Batch:
        """The windows of a training step; how many steps there are makes no difference."""
        return Batch(self.gather(self.batch_starts(seed, step, batch_size)))

    def batch_starts(self, seed: int, step: int, batch_size: int) -> NDArray[np.int64]:
        """(B,) places in the training tokens where the windows of a step start, uniform over all training windows.

        Drawn by Philox with the key (seed, step) alone: the same for every attention. A 64-bit number modulo n_starts
        is uniform to within n_starts / 2^64.
        """
        raw_B = np.random.Philox(key=np.array([seed, step], np.uint64)).random_raw(batch_size)
        return self._start((raw_B % np.uint64(self.n_starts)).astype(np.int64))

    def _start(self, number_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """The start of the window with each number in 0..n_starts-1: document by document, in order."""
        if self._drawn is not None:
            return self._drawn["train"][number_N]
        document_N = np.searchsorted(self._cumulative_D, number_N, side="right")
        before_N = np.where(document_N > 0, self._cumulative_D[document_N - 1], 0)
        start_N: NDArray[np.int64] = self._splits["train"].offsets[document_N] + number_N - before_N
        return start_N

    def gather(self, starts_N: NDArray[np.int64], split: SplitName = "train") -> NDArray[np.int32]:
        """(N, L + 1) token ids of the windows at these starts; inputs are [:, :-1], targets [:, 1:]."""
        places_NT = np.asarray(starts_N)[:, None] + np.arange(self.length + 1)
        tokens_NT: NDArray[np.int32] = self._splits[split].tokens[places_NT].astype(np.int32)
        return tokens_NT

    def evaluation(self, split: SplitName, max_tokens: int | None = None) -> Batch:
        """Fixed windows of a split, the same for every seed and attention.

        In each document they lie end to end from its first token: the first input of a window is the last target of
        the window before it, so that no target is scored twice. The tail of a document that fills no window is left
        out. At most ceil(max_tokens / L) windows, evenly spaced over the split. With data.split = overlapping: the
        windows drawn for this side, or evenly spaced ones of them.
        """
        starts_N = self.evaluation_starts(split)
        if max_tokens is not None:
            starts_N = starts_N[evenly_spaced(len(starts_N), -(-max_tokens // self.length))]
        return Batch(self.gather(starts_N, split))

    def baseline(self, batch: Batch) -> Baseline:
        """See TokenData.baseline."""
        return self._data.baseline(batch)

    def evaluation_starts(self, split: SplitName) -> NDArray[np.int64]:
        """Where all evaluation windows of a split start, in order."""
        if self._drawn is not None:
            return self._drawn[split]
        offsets = self._splits[split].offsets
        count_D = np.maximum(np.diff(offsets) - 1, 0) // self.length
        document_N = np.repeat(np.arange(len(count_D)), count_D)
        first_D = np.cumsum(count_D) - count_D
        start_N: NDArray[np.int64] = (
            offsets[document_N] + (np.arange(len(document_N)) - first_D[document_N]) * self.length
        )
        return start_N

    def _check(self, name: SplitName, split: TokenSplit) -> None:
        sizes_D = np.diff(split.offsets)
        longest = int(sizes_D.max(initial=0))
        if longest <= self.length:
            # Of both sides: advice that holds for one of them alone would end in the other's error.
            most = min(int(np.diff(side.offsets).max(initial=0)) for side in self._splits.values()) - 1
            raise DataError(
                f"length {self.length} needs a document of {self.length + 1} tokens, and the longest of the "
                f"{len(sizes_D)} {FULL_NAME[name]} documents has {longest}; {what_fits(most)}, or use longer documents"
            )
        short_D = sizes_D <= self.length
        if short_D.any():
            share = 100 * int(sizes_D[short_D].sum()) / int(sizes_D.sum())
            self.notes.append(
                f"{int(short_D.sum())} of {len(sizes_D)} {FULL_NAME[name]} documents ({share:.2g} % of the tokens) "
                f"are shorter than a window of {self.length + 1} tokens and unused"
            )


def validation_window(
    data: TokenData, length: int, document: int | None = None, start: int = 0
) -> tuple[NDArray[np.int32], int]:
    """`length` tokens of a validation document from its token `start` on, and which document it is.

    document: its place among the validation documents, from 0; None is the first one that is long enough.
    Raises DataError, saying what there is.
    """
    sizes_D = np.diff(data.val.offsets)
    if document is None:
        fits_D = np.flatnonzero(sizes_D >= start + length)
        if not len(fits_D):
            raise DataError(
                f"no validation document has {length} tokens from token {start} on; the longest of the {len(sizes_D)} "
                f"has {int(sizes_D.max(initial=0))}"
            )
        document = int(fits_D[0])
    if not 0 <= document < len(sizes_D):
        raise DataError(f"validation document {document}: there are {len(sizes_D)} of them, 0 to {len(sizes_D) - 1}")
    size = int(sizes_D[document])
    if not 0 <= start <= size - length:
        last = f"a window of {length} can start at 0 to {size - length}" if size >= length else "another is needed"
        raise DataError(
            f"validation document {document} has {size} tokens: no window of {length} starts at {start}; {last}"
        )
    first = int(data.val.offsets[document]) + start
    tokens_T: NDArray[np.int32] = data.val.tokens[first : first + length].astype(np.int32)
    return tokens_T, document
