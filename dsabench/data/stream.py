"""The overlapping split: all documents as one stream, whose windows are drawn for training or validation.

Published small-scale experiments often hold data out in this way. Their validation loss measures memory: a window
starts at every token, so a validation window shares all but one of its tokens with its neighbours, and nearly all of
these are trained on.

Legend: N windows.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dsabench.data.batch import SplitName, what_fits
from dsabench.errors import DataError

OVERLAP_NOTE = (
    "WARNING: data.split = overlapping: validation windows overlap training windows in all but one token, so the "
    "validation loss measures memory, not generalisation; a tokenizer trained here has seen the validation text too"
)

_WINDOW_STREAM = 2**64 - 2
"""Philox key beside split_seed; documents are split with 2**64 - 1, batches drawn with (seed, step)."""


@dataclass(frozen=True)
class Overlapping:
    """The draw of the windows that are held out of a stream; the same for every training seed and attention."""

    val_share: float
    seed: int

    @functools.lru_cache(maxsize=2)  # noqa: B019 - frozen, equal by value, and two at most are kept
    def draw(self, n_tokens: int, length: int) -> dict[SplitName, NDArray[np.int64]]:
        """Sorted starts of the windows of `length` + 1 tokens, for training and for validation.

        Together they are all places where a window fits; val_share of them, at least one and not all, are for
        validation. Takes 8 bytes a token, and 24 while it draws. The last draws are kept, because every run of a sweep
        asks for the same one. Raises DataError when the stream has fewer than two windows.
        """
        n_windows = n_tokens - length
        if n_windows < 2:
            raise DataError(
                f"length {length} with data.split = overlapping needs a text of at least {length + 2} tokens, and "
                f"this one has {n_tokens:,}; {what_fits(n_tokens - 2)}, or use more text"
            )
        # Sorting by raw Philox output: unlike Generator.permutation, that stream is promised never to change.
        keys_N = np.random.Philox(key=np.array([self.seed, _WINDOW_STREAM], np.uint64)).random_raw(n_windows)
        order_N = np.argsort(keys_N, kind="stable")
        n_val = min(max(1, round(self.val_share * n_windows)), n_windows - 1)
        sides: tuple[tuple[Literal["train", "val"], NDArray[np.int64]], ...] = (
            ("train", order_N[n_val:]),
            ("val", order_N[:n_val]),
        )
        drawn = {side: np.sort(start_N) for side, start_N in sides}
        for start_N in drawn.values():
            start_N.flags.writeable = False
        return drawn
