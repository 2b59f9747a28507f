"""The share of the text that is held out, counted in bytes: when it is far from val_share, and how it is reached.

Documents of like size hold out what their number says. Where sizes differ so much that the text held out is another
share of the whole, documents are held out in drawn order until their bytes are nearest to val_share, and documents too
large for that are cut first.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from dsabench.data.sources.readers import LONE_PIECES

FACTOR = 2.0
"""How many times val_share, or what the number of documents makes of it, the held-out text may be, and how many times
less; and how many times less than its share the training text may be. Documents whose sizes differ by no more than this
factor never go beyond it."""


@dataclass(frozen=True)
class Amounts:
    """Documents and bytes (of text; two a token id) of both sides of a split."""

    train_documents: int
    train_bytes: int
    val_documents: int
    val_bytes: int

    @property
    def n_bytes(self) -> int:
        """Bytes of both sides."""
        return self.train_bytes + self.val_bytes

    @property
    def held_out(self) -> float:
        """The held-out share of the bytes."""
        return self.val_bytes / self.n_bytes

    def __str__(self) -> str:
        train = f"{size(self.train_bytes)} in {_documents(self.train_documents)}"
        if not self.val_documents:
            return f"{train}, windows of it held out"
        return f"{train} to train on, {size(self.val_bytes)} in {self.val_documents:,} held out ({self.percent})"

    @property
    def percent(self) -> str:
        """The held-out share, as `10.1 %`."""
        return f"{100 * self.held_out:.3g} %"

    def document(self) -> dict[str, float]:
        """For JSON."""
        return {**asdict(self), "held_out_share": self.held_out}


def _documents(count: int) -> str:
    return f"{count:,} document{'s' * (count != 1)}"


def size(n_bytes: int) -> str:
    """`9.7 MB`."""
    for unit, bytes_of_one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= bytes_of_one:
            return f"{n_bytes / bytes_of_one:.3g} {unit}"
    return f"{n_bytes} bytes"


def far(amounts: Amounts, share: float) -> bool:
    """Whether sizes make the held-out text another share of the whole than was asked for.

    c = the held-out share of the documents, lower = min(share, c), upper = max(share, c), s = that of the bytes:
    far when s < lower / FACTOR, s > upper FACTOR, or 1 - s < (1 - upper) / FACTOR. c counts, because of two documents
    one is held out whatever share is asked for.
    """
    by_number = amounts.val_documents / (amounts.val_documents + amounts.train_documents)
    lower, upper = min(share, by_number), max(share, by_number)
    s = amounts.held_out
    return s < lower / FACTOR or s > upper * FACTOR or 1 - s < (1 - upper) / FACTOR


def nearest(ends: NDArray[np.int64], share: float) -> int:
    """How many of the first documents to hold out so that their bytes are nearest to `share` of all: at least one, and
    not all. ends: bytes of the first 1, 2, ... documents."""
    return 1 + int(np.argmin(np.abs(ends[:-1] / ends[-1] - share)))


def fits(ends: NDArray[np.int64], n: int, share: float) -> bool:
    """Whether the first n documents are within FACTOR of `share` of the bytes, and the others of theirs."""
    s = float(ends[n - 1] / ends[-1])
    return share / FACTOR <= s <= share * FACTOR and 1 - s >= (1 - share) / FACTOR


def too_large(bytes_N: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """Which documents hold more than a side of the split should: then no order of them need give the share."""
    large_N: NDArray[np.bool_] = bytes_N > min(share, 1 - share) * bytes_N.sum()
    return large_N


def pieces(bytes_N: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """Into how many pieces to cut each of these: as many as a lone document, in proportion to its share of all, or so
    many that two of them are no larger than the smaller side, because a piece that is cut at a line end may be twice as
    large as the mean."""
    of_all = max(LONE_PIECES, 2 / min(share, 1 - share))
    pieces_N: NDArray[np.int64] = np.ceil(of_all * (bytes_N / bytes_N.sum())).astype(np.int64)
    return pieces_N
