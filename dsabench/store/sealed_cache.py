"""The store's caches, written together with digests of themselves: a damaged one is made anew, never read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from dsabench.store.files import read_regular, write_atomic
from dsabench.store.seals import digest_of


def write_sealed(store: Path, seal: str, files: Mapping[str, bytes]) -> None:
    """Write files of the store, in order, and after them the file `seal` with their digests. Raises StoreError."""
    for name, content in files.items():
        write_atomic(store / name, content)
    digests = {name: digest_of(content) for name, content in files.items()}
    write_atomic(store / seal, json.dumps(digests).encode("ascii"))


def read_sealed(store: Path, seal: str, name: str) -> bytes:
    """The content of a file that `write_sealed` wrote.

    Raises:
        OSError: it or its seal cannot be read.
        ValueError: it is not what was written, or a kill kept its seal from being.
    """
    content = read_regular(store / name)
    try:
        digests = json.loads(read_regular(store / seal))
    except RecursionError:
        digests = None
    if not isinstance(digests, dict) or digests.get(name) != digest_of(content):
        raise ValueError(f"{store / name} is not what was written")
    return content
