"""Files of the cache whose content is compared with a digest that stands beside them.

NAME            the content, as any older dsabench reads it
NAME.blake2b    32 hex digits: BLAKE2b, of 16 bytes, of the content of NAME

Every change of either file is noticed, but for one that leaves the digest the same (2^-128). Older versions neither
write nor read the second file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from dsabench.data.cache import replace_file

DIGEST_BYTES = 16


class UnusableError(Exception):
    """An entry of the cache that must be made anew, because it is missing (`why` is empty) or is `why`."""

    def __init__(self, why: str = "") -> None:
        super().__init__(why)
        self.why = why


DAMAGED = "damaged"
UNCHECKED = "from an older dsabench, without a digest"


def write(path: Path, write_content: Callable[[Path], None]) -> None:
    """Make `path` and its digest anew, the digest first: a process that is killed in between leaves what does not
    agree, and that is made anew. The caller holds the entry's lock."""

    def both(temporary: Path) -> None:
        write_content(temporary)
        seal(path, of_file(temporary))

    replace_file(path, both)


def seal(path: Path, digest: str) -> None:
    """Write the digest of `path`."""
    replace_file(_beside(path), lambda temporary: _write_digest(temporary, digest))


def _write_digest(path: Path, digest: str) -> None:
    path.write_bytes(digest.encode())


def content(path: Path) -> bytes:
    """The content of a file that agrees with its digest. Raises UnusableError."""
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        raise UnusableError from None
    except OSError:
        raise UnusableError(DAMAGED) from None
    if kept_digest(path) != of_bytes(found).encode():
        raise UnusableError(DAMAGED)
    return found


def check(path: Path) -> None:
    """Read a file that may be large, and compare it with its digest. Raises UnusableError, OSError."""
    if kept_digest(path) != of_file(path).encode():
        raise UnusableError(DAMAGED)


def kept_digest(path: Path) -> bytes:
    """The digest that stands beside `path`. Raises UnusableError where there is none."""
    try:
        return _beside(path).read_bytes()
    except FileNotFoundError:
        raise UnusableError(UNCHECKED) from None
    except OSError:
        raise UnusableError(DAMAGED) from None


def of_bytes(data: bytes) -> str:
    """The digest of some bytes, in hex."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


def of_file(path: Path) -> str:
    """The digest of a file's content, in hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).hexdigest()


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.blake2b")
