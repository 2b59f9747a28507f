"""Encoding a split corpus into the token files of a cache entry, in bounded memory."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dsabench.data import token_folder
from dsabench.data.cache import new_folder, writing
from dsabench.data.scan import DocumentDigest
from dsabench.data.sources.documents import Part
from dsabench.data.split import Split
from dsabench.data.tokenizer import Tokenizer
from dsabench.errors import DataError
from dsabench.spec.data_settings import DataSpec

BATCH_CHARS = 2**21
"""Characters encoded at once; the tokenizer library needs some 100 bytes a token meanwhile."""

_FIRST_BYTES_PER_TOKEN = 6
"""Bytes of text that are encoded at first for each of max_tokens; doubled for as long as that is too little."""


def encode(path: Path, key: str, data: DataSpec, split: Split, tokenizer: Tokenizer, made_by: str) -> None:
    """Make the cache entry `path`. The caller holds its lock. `made_by`: digest of the tokenizer. Raises DataError."""
    with new_folder(path) as folder, writing(path):
        dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
        train, val = np.sort(split.train), np.sort(split.val)
        val_writer = _Writer(folder / "val.bin", split, tokenizer, dtype)
        val_offsets = val_writer.write(val)
        train_writer = _Writer(folder / "train.bin", split, tokenizer, dtype)
        notes: list[str] = []
        if data.max_tokens is None:
            kept, train_offsets = np.arange(len(train)), train_writer.write(train)
        else:
            documents, train_offsets, cut = _limited(train_writer, split, data.max_tokens)
            kept = np.searchsorted(train, documents)
            if cut is not None:
                training = "training " if len(val) else ""  # of an overlapping split, all tokens are both
                notes.append(
                    f"{data.max_tokens:,} {training}tokens from {len(kept):,} of {len(train):,} {training}documents "
                    f"(data.max_tokens); {cut:,} tokens of the last one drawn were cut off"
                )
        counts_V = _counts(folder / "train.bin", dtype, tokenizer.vocab_size)
        notes += _unequal_bytes(val_writer, train_writer, data.tokenizer)
        offsets = {"train": train_offsets, "val": val_offsets}
        token_folder.finish(folder, key, made_by, dtype, offsets, kept, counts_V, notes)


def _limited(writer: _Writer, split: Split, max_tokens: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int | None]:
    """Write the first documents drawn that together hold max_tokens, the last of them cut.

    Returns their places, their offsets, and how many tokens were cut off: None when all documents together hold no
    more than max_tokens. The choice depends on the draw and the tokens alone; how much text is tried first only saves
    time.
    """
    ends = np.cumsum(split.scan.bytes_N[split.train])
    budget = _FIRST_BYTES_PER_TOKEN * max_tokens
    while True:
        drawn = split.train[: int(np.searchsorted(ends, budget)) + 1]
        places = np.sort(drawn)
        offsets = writer.write(places)
        if offsets[-1] >= max_tokens or len(drawn) == len(split.train):
            break
        budget *= 2
    if offsets[-1] <= max_tokens:
        return places, offsets, None
    sizes = np.diff(offsets)
    in_drawn_order = np.cumsum(sizes[np.searchsorted(places, drawn)])
    n_kept = int(np.searchsorted(in_drawn_order, max_tokens)) + 1
    cut = int(in_drawn_order[n_kept - 1]) - max_tokens
    sizes[np.searchsorted(places, drawn[n_kept - 1])] -= cut
    kept = np.searchsorted(places, np.sort(drawn[:n_kept]))
    return places[kept], writer.keep(offsets[kept], sizes[kept]), cut


class _Writer:
    """Encodes documents into one token file."""

    def __init__(self, path: Path, split: Split, tokenizer: Tokenizer, dtype: np.dtype[Any]) -> None:
        self.path, self.split, self.tokenizer, self.dtype = path, split, tokenizer, dtype
        self.text_bytes = self.token_bytes = self.missed_bytes = 0

    def write(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Encode these documents, sorted by place, in place of what the file held. Returns their offsets."""
        self.text_bytes = self.token_bytes = self.missed_bytes = 0
        sizes = array("q")
        with self.path.open("wb") as file:
            batch: list[tuple[int, Part | None]] = []  # (document, part); None: the document ends here
            chars, size = 0, 0
            for place, document in self.split.documents(places):
                content = DocumentDigest()
                for part in document.parts:
                    n_bytes = content.add(part)
                    self.text_bytes += n_bytes if isinstance(part, str) else 0
                    batch.append((place, part))
                    chars += len(part)
                    if chars >= BATCH_CHARS:
                        size = self._flush(batch, file, sizes, size)
                        batch, chars = [], 0
                if content.digest() != self.split.scan.digest_N[place].tobytes():
                    raise DataError(f"{self.split.name(place)} changed while it was read; run the command again")
                batch.append((place, None))
            self._flush(batch, file, sizes, size)
        if len(sizes) != len(places):
            raise DataError(
                f"{self.split.source.title}: documents vanished while they were read; run the command again"
            )
        return np.concatenate([[0], np.cumsum(np.array(sizes, np.int64))])

    def _flush(self, batch: list[tuple[int, Part | None]], file: BinaryIO, sizes: array[int], size: int) -> int:
        """Encode and write a batch. `size`: tokens of its first document that are written already. Returns the number
        of tokens written of its last document, which goes on."""
        encoded = iter(self._encoded([(place, part) for place, part in batch if isinstance(part, str)]))
        for _, part in batch:
            if part is None:
                file.write(np.array([self.tokenizer.end_of_document], self.dtype).tobytes())
                sizes.append(size + 1)
                size = 0
                continue
            if isinstance(part, str):
                ids: NDArray[Any] = next(encoded)
                n_bytes = int(self.tokenizer.token_bytes_V[ids].sum())
                self.token_bytes += n_bytes
                self.missed_bytes += abs(n_bytes - len(part.encode()))
            else:
                ids = part
            file.write(ids.astype(self.dtype).tobytes())
            size += len(ids)
        return size

    def _encoded(self, texts: list[tuple[int, str]]) -> list[NDArray[np.uint32]]:
        try:
            return self.tokenizer.encode([text for _, text in texts])
        except DataError:
            for place, text in texts:
                try:
                    self.tokenizer.encode([text])
                except DataError as error:
                    raise DataError(f"{self.split.source.title}: {self.split.name(place)}: {error}") from None
            raise

    def keep(self, starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Reduce the file to these runs of tokens. Returns their offsets."""
        whole = self.path.with_suffix(".whole")
        self.path.replace(whole)
        tokens = np.memmap(whole, dtype=self.dtype, mode="r")
        with self.path.open("wb") as file:
            for start, size in zip(starts, sizes, strict=True):
                file.write(tokens[start : start + size].tobytes())
        del tokens
        whole.unlink()
        return np.concatenate([[0], np.cumsum(sizes)])


def _counts(path: Path, dtype: np.dtype[Any], vocab_size: int) -> NDArray[np.int64]:
    tokens = np.memmap(path, dtype=dtype, mode="r")
    counts_V = np.zeros(vocab_size, np.int64)
    for first in range(0, len(tokens), BATCH_CHARS):
        counts_V += np.bincount(tokens[first : first + BATCH_CHARS], minlength=vocab_size)
    return counts_V


def _unequal_bytes(val: _Writer, train: _Writer, tokenizer: str) -> list[str]:
    text, tokens = val.text_bytes + train.text_bytes, val.token_bytes + train.token_bytes
    missed = val.missed_bytes + train.missed_bytes
    if not missed:
        return []
    return [
        f"the tokenizer {tokenizer} does not keep every byte: its tokens stand for {tokens:,} bytes and the text has "
        f"{text:,}; bits per byte are off by up to {100 * missed / text:.2g} %"
    ]
