"""The split of a corpus into training and held-out documents, after one pass over it.

Legend: N documents of the source in its order, empty ones and duplicates included.
"""

from __future__ import annotations

import hashlib
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsabench.data.cache import cache_folder, digest, replace_file
from dsabench.data.sources.readers import Document, Part
from dsabench.data.sources.source import Source, open_source
from dsabench.errors import DataError
from dsabench.spec.data_settings import DataSpec

FORMAT = 1
"""Part of every digest; raise it when reading, splitting or storing changes what a run is trained on."""

DIGEST_BYTES = 16

_SETTLED_NS = 2 * 10**9
"""A file changed less than this ago may change again within one tick of its clock: its digests are not kept."""

_SPLIT_STREAM = 2**64 - 1
"""Philox key beside split_seed; training batches use (seed, step), and no step is that large."""


class DocumentDigest:
    """BLAKE2b of a document's content, however it is cut into parts, and its size."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self.n_bytes = 0
        self.blank = True

    def add(self, part: Part) -> int:
        """Count a part in; gives its size in bytes (UTF-8, or two a token id)."""
        if isinstance(part, str):
            data = part.encode()
            self.blank = self.blank and part.isspace()
        else:
            data = part.tobytes()
            if not self.n_bytes:
                self._hash.update(b"\xff")  # no text has this byte: ids are never taken for text
            self.blank = False
        self._hash.update(data)
        self.n_bytes += len(data)
        return len(data)

    def digest(self) -> bytes:
        """The 16 bytes."""
        return self._hash.digest()


@dataclass(frozen=True)
class Scan:
    """Where each document of a source stands, its size and its digest, from one reading."""

    file_N: NDArray[np.int32]
    record_N: NDArray[np.int64]
    bytes_N: NDArray[np.int64]
    """Size; 0 for a document without anything but white space."""
    digest_N: NDArray[np.void]
    """16 bytes each."""


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

    def digests(self, documents: NDArray[np.int64]) -> bytes:
        """Content digests of some documents, in their order."""
        return self.scan.digest_N[documents].tobytes()

    def name(self, document: int) -> str:
        """`file`, or `file:record` where a file holds several."""
        label = self.source.labels[int(self.scan.file_N[document])]
        record = int(self.scan.record_N[document])
        return f"{label}:{record}" if record else label

    def documents(self, wanted: NDArray[np.int64]) -> Iterator[tuple[int, Document]]:
        """(place in the source, document) of the wanted ones, in the source's order."""
        chosen = np.zeros(len(self.scan.bytes_N), bool)
        chosen[wanted] = True
        for place, (_, document) in enumerate(self.source.documents()):
            if place >= len(chosen):
                break
            if chosen[place]:
                yield place, document


def draw(data: DataSpec, tell: Callable[[str], None]) -> Split:
    """Read the source and split it into training and validation documents, the same for every training seed.

    Empty documents and exact duplicates are dropped, then max_documents are drawn, then val_share of these are held
    out: at least one, and not all. With split = overlapping no document is held out, because windows are (stream.py).
    A corpus of a single document is first cut into contiguous pieces. Raises DataError.
    """
    source = open_source(data, tell)
    scan = read(source, tell)
    kept, notes = _distinct(scan)
    if len(kept) == 1 and data.split == "documents":
        whole, size = int(kept[0]), int(scan.bytes_N[kept[0]])
        source = source.cut_up(int(scan.file_N[whole]), int(scan.record_N[whole]))
        scan = read(source, tell)
        kept, more = _distinct(scan)
        notes += (
            f"the one document ({size:,} bytes) was cut into {len(scan.bytes_N)} contiguous pieces at line ends, so "
            "that whole pieces can be held out; held-out text adjoins training text",
            *more,
        )
        if len(kept) < 2:
            raise DataError(
                f"{source.title}: one document of {size:,} bytes is too small to hold some of it out; "
                "give at least 2 different documents or a longer text"
            )
    if not len(kept):
        raise DataError(f"{source.title}: no text: {len(scan.bytes_N)} documents, all of them empty")
    order = _shuffled(kept, data.split_seed)
    if data.max_documents is not None and len(order) > data.max_documents:
        order = order[: data.max_documents]
        notes += (f"{len(order)} of {len(kept)} documents drawn (data.max_documents)",)
    n_val = min(max(1, round(data.val_share * len(order))), len(order) - 1)
    if data.split == "overlapping":  # windows are held out, whose number depends on their length: see stream.py
        n_val = 0
    corpus = digest("corpus", FORMAT, scan.digest_N[np.sort(order)].tobytes())
    return Split(source, scan, order[n_val:], order[:n_val], corpus, (*source.notes, *notes))


def _distinct(scan: Scan) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    filled = np.flatnonzero(scan.bytes_N)
    _, first = np.unique(scan.digest_N[filled], return_index=True)
    notes = []
    if empty := len(scan.bytes_N) - len(filled):
        notes.append(f"{empty} empty document{'s' * (empty > 1)} skipped")
    if copies := len(filled) - len(first):
        notes.append(f"{copies} exact duplicate{'s' * (copies > 1)} of other documents skipped")
    return filled[np.sort(first)], tuple(notes)


def _shuffled(places: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    # Sorting by raw Philox output: unlike Generator.permutation, that stream is promised never to change.
    keys = np.random.Philox(key=np.array([seed, _SPLIT_STREAM], np.uint64)).random_raw(len(places))
    return places[np.argsort(keys, kind="stable")]


def read(source: Source, tell: Callable[[str], None]) -> Scan:
    """Digests of all documents of a source; from the cache when no file's size and times changed. Raises DataError."""
    now = time.time_ns()
    stats = [_stat(path) for path in source.files]
    files = [[str(path.absolute()), *stat] for path, stat in zip(source.files, stats, strict=True)]
    path = cache_folder("scans") / f"{digest('scan', FORMAT, list(source.key), files)[:32]}.npz"
    scan = _load(path)
    if scan is None:
        megabytes = sum(size for size, *_ in stats) / 1e6
        tell(f"reading {len(stats):,} file{'s' * (len(stats) != 1)} ({megabytes:,.1f} MB)")
        scan = _read(source)
        if all(max(times) < now - _SETTLED_NS for _, *times in stats):
            replace_file(path, lambda temporary: _save(temporary, scan))
    return scan


def _stat(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(source: Source) -> Scan:
    file, record, n_bytes, digests = array("i"), array("q"), array("q"), bytearray()
    for index, document in source.documents():
        content = DocumentDigest()
        for part in document.parts:
            content.add(part)
        file.append(index)
        record.append(document.record)
        n_bytes.append(0 if content.blank else content.n_bytes)
        digests += content.digest()
    return Scan(
        np.array(file, np.int32), np.array(record, np.int64), np.array(n_bytes, np.int64), _void(np.array(digests))
    )


def _void(digests: NDArray[np.uint8]) -> NDArray[np.void]:
    return np.frombuffer(digests.tobytes(), np.dtype((np.void, DIGEST_BYTES)))


def _save(path: Path, scan: Scan) -> None:
    with path.open("wb") as file:
        np.savez(
            file,
            file_N=scan.file_N,
            record_N=scan.record_N,
            bytes_N=scan.bytes_N,
            digest_N=np.frombuffer(scan.digest_N.tobytes(), np.uint8),
        )


def _load(path: Path) -> Scan | None:
    try:
        with path.open("rb") as file, np.load(file) as arrays:  # checks each array's CRC
            return Scan(arrays["file_N"], arrays["record_N"], arrays["bytes_N"], _void(arrays["digest_N"]))
    except Exception:  # missing, or damaged in any way: it is read anew
        return None
