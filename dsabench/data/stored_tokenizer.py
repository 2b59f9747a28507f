"""The tokenizer of a corpus. `bpe` comes from the cache, or is trained where it is missing there, damaged or from an
older version."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsabench.data import checked_file
from dsabench.data.cache import cache_folder, locked
from dsabench.data.checked_file import DAMAGED, UNCHECKED, UnusableError
from dsabench.data.split import Split, draw
from dsabench.data.stored_tokens import Counted, uncounted
from dsabench.data.tokenizer import (
    Bytes,
    Subwords,
    Tokenizer,
    from_content,
    load_file,
    tokenizer_digest,
    tokenizer_file,
    train_bpe,
)
from dsabench.errors import DataError
from dsabench.spec.data_settings import DataSpec

BPE_BYTES = 2**28
"""Text that a tokenizer is trained on; of a larger corpus, training documents drawn until it is reached."""

_TRAINING = "training the tokenizer"


def recipe_of(data: DataSpec, split: Split) -> str:
    """Digest of what the tokenizer of a corpus is made from: part of a run's identity."""
    return tokenizer_digest(data, split.digests(_bpe_documents(split)))


def tokenizer_of(
    data: DataSpec, split: Split, tell: Callable[[str], None], counted: Counted
) -> tuple[Tokenizer, str, list[str]]:
    """The tokenizer, made if need be; the digest of one that was trained here, else ""; and notes. Raises DataError."""
    if data.tokenizer == "bytes":
        return Bytes(), "", []
    if data.tokenizer != "bpe":
        own = load_file(tokenizer_file(data))
        return own, "", [f"tokenizer {data.tokenizer}: {change}" for change in own.changes.values()]
    documents = _bpe_documents(split)
    notes = []
    if len(documents) < len(split.train):
        notes.append(f"the tokenizer was trained on {len(documents):,} of {len(split.train):,} training documents")
    path = _path(recipe_of(data, split))
    try:
        trained = _cached(path)
    except UnusableError:
        with locked(path, tell):
            try:
                trained = _cached(path)
            except UnusableError as error:
                anew = f" anew: the one in the cache is {error.why}" if error.why else ""
                tell(f"{_TRAINING} (bpe, {data.vocab_size:,} ids) on {len(documents):,} documents{anew}")
                made = train_bpe(_texts(split, documents, counted), data.vocab_size)
                counted(_TRAINING, 1.0)
                checked_file.write(path, made.save)
                trained = made, checked_file.of_bytes(made.content())
    tokenizer, made_by = trained
    if tokenizer.vocab_size < data.vocab_size:
        notes.append(
            f"the tokenizer has {tokenizer.vocab_size:,} ids, not {data.vocab_size:,}: the text gives no more merges"
        )
    return tokenizer, made_by, notes


def tokenizer_by_digest(data: DataSpec, wanted: str, tell: Callable[[str], None] = lambda message: None) -> Tokenizer:
    """The tokenizer of `data` that has the digest `wanted`, without its corpus wherever that is not needed.

    `bytes` needs nothing, a tokenizer.json only its file, and `bpe` is in the cache or trained on the corpus again.
    One that an older version left in the cache, without a digest, is taken as it is where the corpus cannot be read,
    and `tell` is told. Raises DataError naming the file that is missing, damaged or has changed.
    """
    if data.tokenizer == "bytes":
        return Bytes()
    if data.tokenizer != "bpe":
        path = tokenizer_file(data)
        if tokenizer_digest(data, b"") != wanted:
            raise DataError(f"{path} is no longer the tokenizer that the run was trained with")
        return load_file(path)
    path = _path(wanted)
    try:
        return _cached(path)[0]
    except UnusableError as error:
        why = error.why
    missing = f"the tokenizer of the run is {f'{why} in' if why else 'not in'} the cache ({path})"
    try:
        split = draw(data, lambda message: None)
        changed = recipe_of(data, split) != wanted
    except DataError as error:
        if why == UNCHECKED and (old := _unchecked(path)) is not None:
            tell(f"{missing}; it is taken as it is, because the text that it was trained on cannot be read: {error}")
            return old
        raise DataError(f"{missing}, and what it was trained on cannot be read: {error}") from None
    if changed:
        raise DataError(
            f"{missing}, and {data.source} has changed since: what would be trained on it now is another tokenizer"
        )
    return tokenizer_of(data, split, tell, uncounted)[0]


def _path(recipe: str) -> Path:
    return cache_folder("tokenizers") / f"{recipe[:32]}.json"


def _cached(path: Path) -> tuple[Subwords, str]:
    """The tokenizer of a file and the file's digest. Raises UnusableError."""
    content = checked_file.content(path)
    try:
        return from_content(path, content), checked_file.of_bytes(content)
    except DataError:  # another version of the library wrote it
        raise UnusableError(DAMAGED) from None


def _unchecked(path: Path) -> Subwords | None:
    try:
        return load_file(path)
    except DataError:
        return None


def _bpe_documents(split: Split) -> NDArray[np.int64]:
    """Training documents that a `bpe` tokenizer sees, in the source's order."""
    before = np.cumsum(split.scan.bytes_N[split.train]) - split.scan.bytes_N[split.train]
    return np.sort(split.train[before < BPE_BYTES])


def _texts(split: Split, documents: NDArray[np.int64], counted: Counted) -> Iterator[str]:
    done, total = 0, int(split.scan.bytes_N[documents].sum())
    for _, document in split.documents(documents):
        for part in document.parts:
            assert isinstance(part, str), "own_ids() refuses token ids with a bpe tokenizer"
            done += len(part)
            yield part
        counted(_TRAINING, min(0.99, done / max(1, total)))  # merging what was read comes after it
