"""Overlap of held-out text with the training text, counted.

Legend: N windows, P places where a run starts, T time, V vocabulary.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsabench.data.pieces import UNDECODABLE
from dsabench.data.tokens import TokenData

RUN = 64
"""Length in characters of a run that does not repeat by chance; a power of two."""

DUPLICATED = 0.25
"""Share of the runs from which on held-out text is called duplicated. Ordinary English has 0.02, Python code 0.1."""

_CHUNK = 2**22
"""Training tokens that are looked at together, which bounds the memory."""

_BITS = 24
"""Of a hash, looked up in a table before the whole of it is searched for."""

_LOW = np.uint64(2**_BITS - 1)

_FACTORS = (
    *(0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9),
    *(0xD6E8FEB86659FD93, 0xA0761D6478BD642F, 0xE7037ED1A0B428DB),
)
"""Odd 64-bit numbers, one for each doubling of a run."""


@dataclass(frozen=True)
class Overlap:
    """How much of some windows stands in the training text too, counted in runs of RUN characters."""

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


def training_overlap(data: TokenData, windows_NT: NDArray[np.int32]) -> Overlap | None:
    """The runs of RUN characters in these windows that also stand in a training document, counted. None when no window
    has such a run.

    White space does not count, so that a copy with other line ends, indentation or wrapping is found. Runs are compared
    by 64-bit hashes.
    """
    table = _Characters(data)
    n_windows, width = windows_NT.shape
    hashes_P, window_P = _runs(*table.of(windows_NT.ravel(), np.repeat(np.arange(n_windows), width)))
    if not len(hashes_P):
        return None
    known = np.unique(hashes_P)
    maybe = np.zeros(2**_BITS, bool)
    maybe[known & _LOW] = True
    seen = np.zeros(len(known), bool)
    train = data.train
    text, document = np.empty(0, np.int32), np.empty(0, np.int64)
    for first in range(0, len(train.tokens), _CHUNK):
        tokens_T = train.tokens[first : first + _CHUNK]
        # A run that crosses from one document into the next is no text that anyone wrote.
        document_T = np.searchsorted(train.offsets, first + np.arange(len(tokens_T)), side="right")
        more = table.of(tokens_T, document_T)
        text, document = np.concatenate([text, more[0]]), np.concatenate([document, more[1]])
        hashes = _runs(text, document)[0]
        seen |= np.isin(known, hashes[maybe[hashes & _LOW]])
        text, document = text[1 - RUN :], document[1 - RUN :]
    repeated_P = seen[np.searchsorted(known, hashes_P)]
    windows = len(np.unique(window_P[repeated_P]))
    return Overlap(windows, n_windows, int(repeated_P.sum()), len(repeated_P))


class _Characters:
    """The text of each id as numbers: its characters that are no white space; of an id that is no whole character, and
    of the end of a document, one number of its own."""

    def __init__(self, data: TokenData) -> None:
        found = []
        for number in range(data.vocab_size):
            text = data.decode([number])
            own = number == data.end_of_document or UNDECODABLE in text
            found.append([sys.maxunicode + 1 + number] if own else [ord(one) for one in text if not one.isspace()])
        self._size_V = np.array([len(one) for one in found])
        self._first_V = np.cumsum(self._size_V) - self._size_V
        self._all = np.array([one for each in found for one in each], np.int32)

    def of(self, tokens: NDArray[np.integer], owner: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The characters of the tokens, and what each belongs to."""
        size = self._size_V[tokens]
        shift = self._first_V[tokens] - (np.cumsum(size) - size)
        return self._all[np.repeat(shift, size) + np.arange(size.sum())], np.repeat(owner, size)


def _runs(text: NDArray[np.int32], owner: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The hash of each run of characters that belong to one thing, and that thing."""
    if len(text) < RUN:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    within = owner[: 1 - RUN] == owner[RUN - 1 :]
    return run_hashes(text)[within], owner[: 1 - RUN][within]


def run_hashes(text: NDArray[np.integer]) -> NDArray[np.uint64]:
    """A 64-bit hash of the RUN characters from each place on; RUN - 1 places fewer than characters.

    h_1 = mix(character), h_2n[p] = h_n[p] c_n + h_n[p + n]  (mod 2^64).
    """
    h = text.astype(np.uint64) + np.uint64(1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64's finaliser
        h = (h ^ (h >> np.uint64(shift))) * np.uint64(factor)
    h ^= h >> np.uint64(31)
    width = 1
    for factor in _FACTORS:
        h = h[:-width] * np.uint64(factor) + h[width:]
        width *= 2
    assert width == RUN
    hashes: NDArray[np.uint64] = h
    return hashes
