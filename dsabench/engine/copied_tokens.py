"""Loss by how far back a token's n-gram last stood in its window: where an attention that sees little must fall behind.

A token is a copy where the NGRAM tokens that end with it stand earlier in its window (and, of packed documents, in its
document). Its distance is that to the latest such place. Most tokens can be guessed from what stands just before them;
what a window forgets and a selection keeps shows in copies from farther back. After the loss on repeated n-grams of
Zoology (arXiv 2312.04927, "AR hits": bigrams, of which frequent ones are left out; four tokens need no such list).

Legend: N windows, L inputs of a window.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsabench.data import Batch

NGRAM = 4
"""Tokens that must be the same, the predicted one included."""


class CopiedTokens:
    """The scored targets of some windows by copy distance: bin 0 has those that are no copy, bin i those of distances
    2^(i-1) to 2^i - 1."""

    def __init__(self, windows: Batch) -> None:
        length = windows.tokens.shape[1] - 1
        self.bins_NL = np.frexp(copy_distances(windows))[1].astype(np.int8)  # the exponent of 0 is 0
        self.n_bins = (length - 1).bit_length() + 1
        self.scored_NL = np.ones_like(self.bins_NL, bool) if windows.scored is None else windows.scored
        self.counts = np.bincount(self.bins_NL[self.scored_NL], minlength=self.n_bins)
        self.far = max(1, (length // 4).bit_length())
        """The first bin whose distances are a quarter of the window, rounded down to a power of two, and more."""

    def losses(self, nats_NL: NDArray[np.floating[Any]]) -> dict[str, Any]:
        """Metrics by their names in `dsabench.metrics`, and lists by bin, of the targets' losses in nats."""
        sums = np.bincount(
            self.bins_NL[self.scored_NL], nats_NL[self.scored_NL].astype(np.float64), minlength=self.n_bins
        )

        def mean(bins: slice) -> float | None:
            count = int(self.counts[bins].sum())
            return float(sums[bins].sum()) / count if count else None

        return {
            "near_copy_loss": mean(slice(1, self.far)),
            "far_copy_loss": mean(slice(self.far, None)),
            "far_copy_share": float(self.counts[self.far :].sum() / self.counts.sum()),
            "loss_by_copy_distance": [mean(slice(i, i + 1)) for i in range(self.n_bins)],
            "tokens_by_copy_distance": [int(count) for count in self.counts],
        }


def copy_distances(windows: Batch) -> NDArray[np.int32]:
    """(N, L): tokens from each target back to the last token of the latest earlier n-gram that is the same; 0 where
    there is none."""
    tokens = windows.tokens.astype(np.int64)
    n_windows, length = tokens.shape[0], tokens.shape[1] - 1
    distances = np.zeros((n_windows, length), np.int32)
    if length < NGRAM:
        return distances
    # Numbers for the grams that end at NGRAM - 1..L, of a window (and of a document) each its own; one across two
    # documents is like no other.
    rows = np.arange(n_windows)[:, None]
    grams = np.broadcast_to(rows, (n_windows, length + 2 - NGRAM))
    parts = [tokens[:, i : i + grams.shape[1]] for i in range(NGRAM)]
    if windows.documents is not None:  # of inputs: the last token of a gram belongs to that of the one before it
        documents = windows.documents.astype(np.int64)
        across = documents[:, NGRAM - 2 :] != documents[:, : grams.shape[1]]
        parts += [documents[:, NGRAM - 2 :], np.where(across, 1 + np.arange(grams.shape[1]), 0)]
    for part in parts:
        _, grams = np.unique(grams * (int(part.max()) + 1) + part, return_inverse=True)
        grams = grams.reshape(n_windows, -1)
    order = np.argsort(grams, axis=None, kind="stable")
    same = np.diff(grams.ravel()[order]) == 0  # of one window, and neighbours in it
    found = np.zeros(grams.size, np.int32)
    found[order[1:][same]] = np.diff(order)[same]
    distances[:, NGRAM - 2 :] = found.reshape(n_windows, -1)
    return distances
