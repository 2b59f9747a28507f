"""Overlap of held-out text with the training text, counted.

Legend: N windows, P places, T time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsabench.data.tokens import TokenSplit

RUN = 32
"""Length in tokens of a run that does not repeat by chance; a power of two."""

_CHUNK = 2**22
"""Training tokens that are looked at together, which bounds the memory."""

_FACTORS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F)
"""Odd 64-bit numbers, one for each doubling of a run."""


@dataclass(frozen=True)
class Overlap:
    """How much of some windows stands in the training text too, counted in runs of RUN tokens."""

    windows: int
    """Windows that hold at least one such run."""

    n_windows: int
    runs: int
    """Such runs, counted at every place of every window."""

    n_runs: int

    @property
    def window_share(self) -> float:
        """windows / n_windows."""
        return self.windows / self.n_windows

    @property
    def run_share(self) -> float:
        """runs / n_runs."""
        return self.runs / self.n_runs


def training_overlap(train: TokenSplit, windows_NT: NDArray[np.int32]) -> Overlap | None:
    """The runs of RUN tokens in these windows that also stand in a training document, counted. None when windows are
    shorter than a run, or there are none.

    Runs are compared by 64-bit hashes.
    """
    if windows_NT.shape[1] < RUN or not len(windows_NT):
        return None
    hashes_NP = run_hashes(windows_NT)
    known = np.unique(hashes_NP)
    seen = np.zeros(len(known), bool)
    for first in range(0, max(1, len(train.tokens) - RUN + 1), _CHUNK):
        tokens_T = train.tokens[first : first + _CHUNK + RUN - 1].astype(np.uint32)
        if len(tokens_T) < RUN:
            break
        place_P = first + np.arange(len(tokens_T) - RUN + 1)
        # A run that crosses from one document into the next is no text that anyone wrote.
        document_P = np.searchsorted(train.offsets, place_P, side="right")
        within_P = train.offsets[np.minimum(document_P, len(train.offsets) - 1)] >= place_P + RUN
        seen |= np.isin(known, run_hashes(tokens_T)[within_P])
    repeated_NP = seen[np.searchsorted(known, hashes_NP)]
    return Overlap(int(repeated_NP.any(1).sum()), len(windows_NT), int(repeated_NP.sum()), repeated_NP.size)


def run_hashes(tokens: NDArray[np.integer]) -> NDArray[np.uint64]:
    """A 64-bit hash of the RUN tokens from each place on, along the last axis; 31 places fewer than tokens.

    h_1 = mix(token), h_2n[p] = h_n[p] c_n + h_n[p + n]  (mod 2^64).
    """
    h = tokens.astype(np.uint64) + np.uint64(1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64's finaliser
        h = (h ^ (h >> np.uint64(shift))) * np.uint64(factor)
    h ^= h >> np.uint64(31)
    width = 1
    for factor in _FACTORS:
        h = h[..., :-width] * np.uint64(factor) + h[..., width:]
        width *= 2
    assert width == RUN
    hashes: NDArray[np.uint64] = h
    return hashes
