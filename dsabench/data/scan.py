"""The scan of a source: where each document stands, its size and its digest, from one reading.

Legend: N documents of the source in its order, empty ones and duplicates included.
"""

from __future__ import annotations

import hashlib
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsabench.data.cache import cache_folder, digest, replace_file
from dsabench.data.checked_file import DAMAGED, UnusableError
from dsabench.data.sources.documents import Part
from dsabench.data.sources.source import Source
from dsabench.errors import DataError

FORMAT = 2
"""Part of the names of stored scans; raise it when reading changes, or what is stored of it."""

DIGEST_BYTES = 16

_SETTLED_NS = 2 * 10**9
"""A file changed less than this ago may change again within one tick of its clock: its digests are not kept."""


class DocumentDigest:
    """BLAKE2b of a document's content, however it is cut into parts, and its size."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self.n_bytes = 0
        self.blank = True

    def add(self, part: Part) -> int:
        """Count a part in; gives its size in bytes (UTF-8, or two a token id; four of a large vocabulary)."""
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
    piece_N: NDArray[np.int32]
    """Which piece of a record that was cut; 0 for one that was not."""
    bytes_N: NDArray[np.int64]
    """Size; 0 for a document without anything but white space."""
    digest_N: NDArray[np.void]
    """16 bytes each."""


def read(source: Source, tell: Callable[[str], None]) -> Scan:
    """Digests of all documents of a source; from the cache when no file's size and times changed. Raises DataError."""
    now = time.time_ns()
    stats = [_stat(path) for path in source.files]
    files = [[str(path.absolute()), *stat] for path, stat in zip(source.files, stats, strict=True)]
    path = cache_folder("scans") / f"{digest('scan', FORMAT, list(source.key), files)[:32]}.npz"
    try:
        scan = _load(path)
    except UnusableError as error:
        megabytes = sum(size for size, *_ in stats) / 1e6
        anew = f" anew: their digests in the cache are {error.why}" if error.why else ""
        tell(f"reading {len(stats):,} file{'s' * (len(stats) != 1)} ({megabytes:,.1f} MB){anew}")
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
    file, record, piece, n_bytes, digests = array("i"), array("q"), array("i"), array("q"), bytearray()
    for index, document in source.documents():
        content = DocumentDigest()
        for part in document.parts:
            content.add(part)
        file.append(index)
        record.append(document.record)
        piece.append(document.piece)
        n_bytes.append(0 if content.blank else content.n_bytes)
        digests += content.digest()
    return Scan(
        np.array(file, np.int32),
        np.array(record, np.int64),
        np.array(piece, np.int32),
        np.array(n_bytes, np.int64),
        _void(np.array(digests)),
    )


def _void(digests: NDArray[np.uint8]) -> NDArray[np.void]:
    return np.frombuffer(digests.tobytes(), np.dtype((np.void, DIGEST_BYTES)))


def _save(path: Path, scan: Scan) -> None:
    with path.open("wb") as file:
        np.savez(
            file,
            file_N=scan.file_N,
            record_N=scan.record_N,
            piece_N=scan.piece_N,
            bytes_N=scan.bytes_N,
            digest_N=np.frombuffer(scan.digest_N.tobytes(), np.uint8),
        )


def _load(path: Path) -> Scan:
    """A stored scan. Raises UnusableError.

    A .npz is a zip archive, which has a CRC-32 of each array: reading it notices every flipped bit, and any other
    damage but for one case in 2^32.
    """
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            file_N, record_N, piece_N, bytes_N = (arrays[f"{name}_N"] for name in ("file", "record", "piece", "bytes"))
            return Scan(file_N, record_N, piece_N, bytes_N, _void(arrays["digest_N"]))
    except FileNotFoundError:
        raise UnusableError from None
    except Exception:  # whatever a damaged file may lead to: it is read anew
        raise UnusableError(DAMAGED) from None
