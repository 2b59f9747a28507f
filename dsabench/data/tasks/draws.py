"""Random numbers of a batch, from a counter-based generator's raw 64 bits.

Only `random_raw` of Philox is used: NumPy keeps its stream, but not those of its distributions, between versions.

Legend: B windows, N draws of a window.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

EVALUATION_KEY = 2**64 - 1
"""First word of the evaluation windows' keys; a training seed is below 2^32."""


class Draws:
    """Independent draws; the same ones for the same (first, second) key, in the order in which they are asked for."""

    def __init__(self, first: int, second: int) -> None:
        self._bits = np.random.Philox(key=np.array([first, second], np.uint64))

    def raw(self, shape: tuple[int, ...]) -> NDArray[np.uint64]:
        """Uniform 64-bit numbers."""
        return self._bits.random_raw(int(np.prod(shape))).reshape(shape)

    def below(self, bound: int, shape: tuple[int, ...]) -> Integers:
        """Uniform over 0..bound-1, off by at most bound / 2^64. With bound 1 nothing is drawn."""
        if bound == 1:
            return np.zeros(shape, np.int64)
        return (self.raw(shape) % np.uint64(bound)).astype(np.int64)

    def distinct(self, rows: int, n: int, bound: int) -> Integers:
        """(rows, n) different numbers of 0..bound-1 in random order: where the n smallest of `bound` draws stand."""
        raw = self.raw((rows, bound))
        if n < bound:
            kept = np.argpartition(raw, n - 1, axis=1)[:, :n]  # in no particular order
            return np.take_along_axis(kept, np.argsort(np.take_along_axis(raw, kept, 1), axis=1), 1)
        return np.argsort(raw, axis=1)

    def places(self, rows: int, n: int, width: int, room: int) -> Integers:
        """(rows, n) ascending first places of n blocks of `width` in 0..room-1 that do not overlap.

        The n sorted draws say how much of the free room lies before each block.
        """
        free_BN = np.sort(self.below(room - n * width + 1, (rows, n)), axis=1)
        return free_BN + width * np.arange(n)
