"""The tokens of a split corpus in the cache: opened, or made where they are missing, damaged or from an older version.

Tokens that are found damaged in the middle of a run, at the first use of a block, are encoded anew at once under the
entry's lock, and the run goes on with them when they are the same as before: the CRCs of all blocks tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsabench.data import token_folder
from dsabench.data.cache import cache_folder, digest, locked
from dsabench.data.checked_file import DAMAGED, UnusableError
from dsabench.data.checked_tokens import CheckedTokens
from dsabench.data.encode import encode
from dsabench.data.split import FORMAT, Split
from dsabench.data.tokenizer import Tokenizer
from dsabench.errors import DataError
from dsabench.spec.data_settings import DataSpec

Counted = Callable[[str, float], None]
"""Told a slow part that is under way, and the share of it that is done: 1 at its end."""

_ENCODING = "encoding"


def uncounted(part: str, share: float) -> None:
    """Counts nothing."""


class _CountedTokenizer:
    """A tokenizer that tells how much of so many bytes it has encoded."""

    def __init__(self, tokenizer: Tokenizer, total: int, counted: Counted) -> None:
        self.tokenizer, self.total, self.counted, self.done = tokenizer, total, counted, 0
        self.vocab_size, self.separator = tokenizer.vocab_size, tokenizer.separator
        self.end_of_document = tokenizer.end_of_document
        self.token_bytes_V, self.decode = tokenizer.token_bytes_V, tokenizer.decode

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        encoded = self.tokenizer.encode(texts)
        self.done += sum(map(len, texts))
        self.counted(_ENCODING, min(0.99, self.done / max(1, self.total)))
        return encoded


def encoded_train_tokens(data: DataSpec, split: Split, recipe: str) -> int | None:
    """Training tokens of the cache entry, if there is one; `recipe` as in StoredTokens. Encodes nothing."""
    key = _key(data, split, recipe, np.sort(split.train), np.sort(split.val))
    return token_folder.train_tokens(_path(key), key)


def _key(data: DataSpec, split: Split, recipe: str, train: NDArray[np.int64], val: NDArray[np.int64]) -> str:
    """All that decides the tokens: which documents (`train`, `val`: sorted), in which order, and how."""
    drawn = split.digests(split.train) if data.max_tokens is not None else b""
    return digest("tokens", FORMAT, recipe, data.max_tokens, split.digests(train), split.digests(val), drawn)


def _path(key: str) -> Path:
    return cache_folder("tokens") / key[:32]


@dataclass(frozen=True, eq=False)
class StoredTokens:
    """The cache entry of a corpus, a split and a tokenizer."""

    data: DataSpec
    split: Split
    tokenizer: Tokenizer
    recipe: str
    """Digest of what the tokenizer was made from."""
    made_by: str
    """Digest of the tokenizer itself where it was trained here, so that no other one's tokens are taken for its own."""
    tell: Callable[[str], None]

    @cached_property
    def _sides(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return np.sort(self.split.train), np.sort(self.split.val)

    @cached_property
    def _key(self) -> str:
        return _key(self.data, self.split, self.recipe, *self._sides)

    @cached_property
    def _path(self) -> Path:
        return _path(self._key)

    def entry(self, counted: Counted) -> token_folder.Entry:
        """The tokens, made if need be. Raises DataError."""
        try:
            return self._load()
        except UnusableError:
            with locked(self._path, self.tell):
                try:
                    return self._load()
                except UnusableError as error:
                    return self._made(error.why, counted)

    def _load(self) -> token_folder.Entry:
        return token_folder.load(self._path, self._key, self.made_by, *self._sides, self._mended)

    def _made(self, why: str, counted: Counted) -> token_folder.Entry:
        amounts = self.split.amounts
        size, documents = amounts.train_bytes + amounts.val_bytes, sum(map(len, self._sides))
        anew = f" anew: the tokens in the cache are {why}" if why else ""
        self.tell(f"encoding {documents:,} documents ({size / 1e6:,.1f} MB){anew}")
        tokenizer = _CountedTokenizer(self.tokenizer, size, counted)
        encode(self._path, self._key, self.data, self.split, tokenizer, self.made_by)
        counted(_ENCODING, 1.0)
        try:
            return self._load()
        except UnusableError as error:
            raise DataError(
                f"{self._path}: the tokens were written and are {error.why or 'gone'} at once: disk or memory of this "
                "machine fails, or somebody clears the cache; name another folder in DSABENCH_CACHE"
            ) from None

    def _mended(self, side: str) -> CheckedTokens:
        """The tokens of a side, after a block of it was found damaged. Raises DataError."""
        try:
            with locked(self._path, self.tell):
                entry = self._sound() or self._made(DAMAGED, uncounted)
        except DataError as error:
            raise DataError(
                f"{self._path}: the tokens in the cache are damaged, and cannot be encoded anew now: {error}; with the "
                "text in place the same command goes on"
            ) from None
        tokens: Any = entry.tokens[side]
        assert isinstance(tokens, CheckedTokens), "the same files are as large as before"
        return tokens

    def _sound(self) -> token_folder.Entry | None:
        """The entry as another process has mended it, if one has."""
        try:
            entry = self._load()
        except UnusableError:
            return None
        return entry if entry.is_whole() else None
