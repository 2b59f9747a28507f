"""The preparation of data, from a DataSpec to tokens on disk: read, split, tokenize, encode once, map into memory.

Documents are read in parts, about twice, and tokens are written as they come: memory does not grow with the corpus,
but for about 100 bytes a document.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dsabench.data import tasks
from dsabench.data.held_out_share import Amounts
from dsabench.data.split import Split, draw
from dsabench.data.stored_tokenizer import recipe_of, tokenizer_of
from dsabench.data.stored_tokens import Counted, StoredTokens, encoded_train_tokens, uncounted
from dsabench.data.stream import OVERLAP_NOTE, Overlapping
from dsabench.data.tokens import Names, TaskData, TokenData, TokenSplit
from dsabench.spec.data_settings import DataSpec

ROUGH_BYTES = 4
"""Bytes a token, before a text is encoded. A `bpe` of 8192 ids has 4.8 of speeches and 3.4 of Python code."""


def _silent(message: str) -> None:
    pass


@dataclass(frozen=True)
class Survey:
    """What is known of the data of a run before any of it is tokenized."""

    fingerprint: dict[str, str]
    """Content digests for a run's identity: `corpus`, the documents used (after max_documents) or the task, and
    `tokenizer`. Names and folders do not count."""

    amounts: Amounts | None
    """Documents and bytes to train on and held out; None for a task."""

    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the distributions that the text is of, where the source is such (`packages`)."""

    train_tokens: int | None = None
    """Tokens to train on; None for a task."""

    is_rough: bool = False
    """Whether train_tokens is an estimate, because the text was not encoded yet."""


def survey(data: DataSpec) -> Survey:
    """Read the corpus (once: digests are cached by path, size and times), split it, tokenize nothing. Raises
    DataError."""
    if data.task:
        return Survey(tasks.fingerprint(data.task), None)
    split = draw(data, _silent)
    known = encoded_train_tokens(data, split, recipe_of(data, split))
    tokens = _rough_tokens(data, split) if known is None else known
    return Survey(_fingerprint(data, split), split.amounts, split.source.versions, tokens, known is None)


def _rough_tokens(data: DataSpec, split: Split) -> int:
    tokens = split.amounts.train_bytes // (1 if data.tokenizer == "bytes" else ROUGH_BYTES)
    return tokens if data.max_tokens is None else min(tokens, data.max_tokens)


def fingerprint(data: DataSpec) -> dict[str, str]:
    """Survey.fingerprint of `data`. Raises DataError."""
    return survey(data).fingerprint


def prepare(
    data: DataSpec, *, progress: Callable[[str], None] | None = None, counted: Counted = uncounted
) -> TokenData | TaskData:
    """The corpus of `data`, split and tokenized; from the cache when it was prepared before. Of a task its settings.

    `progress` is given a line at the start of each slow part, and `counted` how much of it is done; a cached corpus
    gives none. What is damaged in the cache is made anew, and the line says so; tokens that are found damaged later, at
    the first use of a block (checked_tokens.py), too. Raises DataError, then also where they are used.
    """
    if data.task is not None:
        return TaskData(data.task, tasks.fingerprint(data.task))
    return prepare_text(data, progress=progress, counted=counted)


def prepare_text(
    data: DataSpec, *, progress: Callable[[str], None] | None = None, counted: Counted = uncounted
) -> TokenData:
    """`prepare` of a text."""
    tell = progress or _silent
    split = draw(data, tell)
    tokenizer, made_by, notes = tokenizer_of(data, split, tell, counted)
    entry = StoredTokens(data, split, tokenizer, recipe_of(data, split), made_by, tell).entry(counted)
    names = {name: Names(documents, split.name) for name, documents in entry.documents.items()}
    train, val = (TokenSplit(entry.tokens[side], entry.offsets[side], names[side]) for side in ("train", "val"))
    notes = [_token_amounts(train, val, data), *split.notes, *notes, *entry.notes]
    overlapping = None
    if data.split == "overlapping":
        overlapping = Overlapping(data.val_share, data.split_seed)
        train = val = train.as_stream()
        notes = [OVERLAP_NOTE, *notes]
    return TokenData(
        train=train,
        val=val,
        vocab_size=tokenizer.vocab_size,
        end_of_document=tokenizer.end_of_document,
        token_bytes_V=tokenizer.token_bytes_V,
        unigram_nats_V=_unigram_nats(entry.counts_V),
        fingerprint=_fingerprint(data, split),
        tokenizer=tokenizer,
        notes=notes,
        packed=data.packing == "documents",
        versions=split.source.versions,
        overlapping=overlapping,
    )


def _token_amounts(train: TokenSplit, val: TokenSplit, data: DataSpec) -> str:
    """Tokens on both sides, for the record and the user."""
    n_train, n_val, documents = len(train.tokens), len(val.tokens), len(train.names)
    told = f"text: {n_train:,} tokens in {documents:,} document{'s' * (documents != 1)}"
    if data.split == "overlapping":
        return f"{told}, windows of it held out"
    return f"{told} to train on, {n_val:,} in {len(val.names):,} held out ({100 * n_val / (n_train + n_val):.3g} %)"


def _fingerprint(data: DataSpec, split: Split) -> dict[str, str]:
    return {
        "corpus": split.corpus_digest,
        "tokenizer": recipe_of(data, split),
    }


def _unigram_nats(counts_V: NDArray[np.int64]) -> NDArray[np.float64]:
    """-ln((c + 1) / (n + V)): no id is impossible, and the probabilities sum to one."""
    nats_V: NDArray[np.float64] = np.log(counts_V.sum() + len(counts_V)) - np.log(counts_V + 1.0)
    return nats_V
