"""The split of a corpus into training and held-out documents.

Legend: N documents of the source in its order, empty ones and duplicates included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsabench.data.cache import digest
from dsabench.data.held_out_share import Amounts, far, fits, nearest, pieces, too_large
from dsabench.data.scan import Scan, read
from dsabench.data.sources.documents import Document
from dsabench.data.sources.readers import LONE_PIECES
from dsabench.data.sources.source import Source, open_source
from dsabench.errors import DataError
from dsabench.spec.data_settings import DataSpec

FORMAT = 1
"""Part of every digest; raise it when reading, splitting or storing changes what a run is trained on."""

_BY_SIZE = ("held out by size", 1)
"""Part of the digest of a corpus that is split by size, because its documents alone do not tell the split."""

_SPLIT_STREAM = 2**64 - 1
"""Philox key beside split_seed; training batches use (seed, step), and no step is that large."""


@dataclass(frozen=True)
class Split:
    """A corpus and its documents for training and validation, by their place in the source."""

    source: Source
    scan: Scan
    train: NDArray[np.int64]
    """Training documents in drawn order: what max_tokens takes first."""
    val: NDArray[np.int64]
    """Held-out documents in drawn order."""
    corpus_digest: str
    notes: tuple[str, ...]

    @property
    def amounts(self) -> Amounts:
        """Documents and bytes of both sides."""
        train, val = (self.scan.bytes_N[side] for side in (self.train, self.val))
        return Amounts(len(train), int(train.sum()), len(val), int(val.sum()))

    def digests(self, documents: NDArray[np.int64]) -> bytes:
        """Content digests of some documents, in their order."""
        return self.scan.digest_N[documents].tobytes()

    def name(self, document: int) -> str:
        """`file`, or `file:record` where a file holds several; `:piece` behind it where a document was cut."""
        numbers = (int(self.scan.record_N[document]), int(self.scan.piece_N[document]))
        return ":".join([self.source.labels[int(self.scan.file_N[document])], *(str(n) for n in numbers if n)])

    def documents(self, wanted: NDArray[np.int64]) -> Iterator[tuple[int, Document]]:
        """(place in the source, document) of the wanted ones, in the source's order."""
        chosen = np.zeros(len(self.scan.bytes_N), bool)
        chosen[wanted] = True
        for place, (_, document) in enumerate(self.source.documents()):
            if place >= len(chosen):
                break
            if chosen[place]:
                yield place, document


@dataclass(frozen=True)
class _Drawn:
    """The documents that are used, in drawn order: the first n_val are held out."""

    source: Source
    scan: Scan
    order: NDArray[np.int64]
    n_val: int
    notes: tuple[str, ...]

    @property
    def ends(self) -> NDArray[np.int64]:
        """Bytes of the first 1, 2, ... documents."""
        return np.cumsum(self.scan.bytes_N[self.order])

    @property
    def amounts(self) -> Amounts:
        held_out = int(self.ends[self.n_val - 1]) if self.n_val else 0
        return Amounts(len(self.order) - self.n_val, int(self.ends[-1]) - held_out, self.n_val, held_out)


def draw(data: DataSpec, tell: Callable[[str], None]) -> Split:
    """Read the source and split it into training and validation documents, the same for every training seed.

    Empty documents and exact duplicates are dropped, then max_documents are drawn, then val_share of these are held
    out: at least one, and not all. With split = overlapping no document is held out, because windows are (stream.py).
    A corpus of a single document is first cut into contiguous pieces. Where the documents' sizes differ so much that
    the held-out share of the text is far from val_share, it is reached by size (held_out_share.py). Raises DataError.
    """
    source = open_source(data, tell)
    scan = read(source, tell)
    kept, notes = _distinct(scan, np.arange(len(scan.bytes_N)))
    if not len(kept):
        raise DataError(f"{source.title}: no text: {len(scan.bytes_N)} documents, all of them empty")
    if len(kept) == 1 and data.split == "documents":
        source, scan, kept, notes = _cut_lone(source, scan, kept, notes, tell)
    order = _shuffled(kept, data.split_seed)
    if data.max_documents is not None and len(order) > data.max_documents:
        order = order[: data.max_documents]
        notes += (f"{len(order)} of {len(kept)} documents drawn (data.max_documents)",)
    drawn = _Drawn(source, scan, order, min(max(1, round(data.val_share * len(order))), len(order) - 1), notes)
    version: tuple[str | int, ...] = ()
    if data.split == "overlapping":  # windows are held out, whose number depends on their length: see stream.py
        drawn = _Drawn(source, scan, order, 0, notes)
    elif far(drawn.amounts, data.val_share):
        drawn, version = _by_size(drawn, data, tell), _BY_SIZE
    order, n_val = drawn.order, drawn.n_val
    corpus = digest("corpus", FORMAT, drawn.scan.digest_N[np.sort(order)].tobytes(), *version)
    notes = (*drawn.source.notes, *drawn.notes)
    return Split(drawn.source, drawn.scan, order[n_val:], order[:n_val], corpus, notes)


def _cut_lone(
    source: Source, scan: Scan, kept: NDArray[np.int64], notes: tuple[str, ...], tell: Callable[[str], None]
) -> tuple[Source, Scan, NDArray[np.int64], tuple[str, ...]]:
    size = int(scan.bytes_N[kept].sum())
    source, scan, kept, more = _cut(source, scan, kept, kept, np.array([LONE_PIECES]), tell)
    if len(kept) < 2:
        raise DataError(
            f"{source.title}: one document of {size:,} bytes is too small to hold some of it out; "
            "give at least 2 different documents or a longer text"
        )
    cut = (
        f"the one document ({size:,} bytes) was cut into {int(scan.piece_N.max())} contiguous pieces at line ends, so "
        "that whole pieces can be held out; held-out text adjoins training text"
    )
    return source, scan, kept, (*notes, cut, *more)


def _by_size(drawn: _Drawn, data: DataSpec, tell: Callable[[str], None]) -> _Drawn:
    """Documents held out in drawn order until their bytes are nearest to val_share, where need be after cutting those
    that are too large for that. Raises DataError with the sizes when that is of no help either."""
    share, before, notes = data.val_share, drawn.amounts, drawn.notes
    source, scan, order = drawn.source, drawn.scan, drawn.order
    n_val = nearest(drawn.ends, share)
    if not fits(drawn.ends, n_val, share):
        used = np.sort(order)
        large = too_large(scan.bytes_N[used], share)
        if large.any() and not scan.piece_N.any():
            told = _told(Split(source, scan, used[large], used[:0], "", ()), before.n_bytes)
            n_pieces = pieces(scan.bytes_N[used], share)[large]
            source, scan, used, more = _cut(source, scan, used, used[large], n_pieces, tell)
            order = _shuffled(used, data.split_seed)
            notes += (
                f"{told} cut into {np.count_nonzero(scan.piece_N)} contiguous pieces at line ends, so that about "
                f"data.val_share = {share:g} of the text can be held out; held-out text adjoins training text",
                *more,
            )
        drawn = _Drawn(source, scan, order, 1, notes)
        n_val = nearest(drawn.ends, share)
    told = f"held out by size, because the documents' sizes differ: by their number it would have been {before}"
    drawn = _Drawn(source, scan, order, n_val, (*notes, told))
    if not fits(drawn.ends, n_val, share) and far(drawn.amounts, share):
        raise DataError(
            f"{source.title}: data.val_share = {share:g} of the text cannot be held out: {before}; "
            "give documents of more even sizes, or a longer text"
        )
    return drawn


def _told(large: Split, n_bytes: int) -> str:
    """Which documents are too large, of a text of so many bytes."""
    name, count, size = large.name(int(large.train[0])), len(large.train), large.amounts.train_bytes
    sizes = f"({size:,} bytes, {100 * size / n_bytes:.3g} % of the text)"
    return f"{name} {sizes} was" if count == 1 else f"{count} large documents {sizes}, {name} the first, were"


def _cut(
    source: Source,
    scan: Scan,
    used: NDArray[np.int64],
    large: NDArray[np.int64],
    n_pieces: NDArray[np.int64],
    tell: Callable[[str], None],
) -> tuple[Source, Scan, NDArray[np.int64], tuple[str, ...]]:
    """Cut the documents `large` into n_pieces each. Returns source and scan with these in their place, what is used now
    of the documents `used`, in the source's order, and notes."""
    places = zip(scan.file_N[large].tolist(), scan.record_N[large].tolist(), strict=True)
    source = source.cut_up(dict(zip(places, n_pieces.tolist(), strict=True)))
    scan = read(source, tell)
    # Only the pieces of a document agree with what stands before them in file and record.
    new_N = np.append(True, (np.diff(scan.file_N) != 0) | (np.diff(scan.record_N) != 0))
    was_used = np.isin(np.cumsum(new_N) - 1, used)
    kept, notes = _distinct(scan, np.flatnonzero(was_used))
    return source, scan, kept, notes


def _distinct(scan: Scan, among: NDArray[np.int64]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Those of these documents that are not empty, the first of equal ones; with notes of the others."""
    filled = among[scan.bytes_N[among] > 0]
    _, first = np.unique(scan.digest_N[filled], return_index=True)
    notes = []
    if empty := len(among) - len(filled):
        notes.append(f"{empty} empty document{'s' * (empty > 1)} skipped")
    if copies := len(filled) - len(first):
        notes.append(f"{copies} exact duplicate{'s' * (copies > 1)} of other documents skipped")
    return filled[np.sort(first)], tuple(notes)


def _shuffled(places: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    # Sorting by raw Philox output: unlike Generator.permutation, that stream is promised never to change.
    keys = np.random.Philox(key=np.array([seed, _SPLIT_STREAM], np.uint64)).random_raw(len(places))
    return places[np.argsort(keys, kind="stable")]
