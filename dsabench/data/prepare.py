"""The preparation of data, from a DataSpec to tokens on disk: read, split, tokenize, encode once, map into memory.

Documents are read in parts, about twice, and tokens are written as they come: memory does not grow with the corpus,
but for about 100 bytes a document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsabench.data import tasks, token_folder
from dsabench.data.cache import cache_folder, digest, locked, replace_file
from dsabench.data.encode import encode
from dsabench.data.held_out_share import Amounts
from dsabench.data.split import FORMAT, Split, draw
from dsabench.data.stream import OVERLAP_NOTE, Overlapping
from dsabench.data.tokenizer import Bytes, Subwords, Tokenizer, load_file, tokenizer_digest, tokenizer_file, train_bpe
from dsabench.data.tokens import Names, TaskData, TokenData, TokenSplit
from dsabench.errors import DataError
from dsabench.spec.data_settings import DataSpec

BPE_BYTES = 2**28
"""Text that a tokenizer is trained on; of a larger corpus, training documents drawn until it is reached."""

ROUGH_BYTES = 4
"""Bytes a token, before a text is encoded. A `bpe` of 8192 ids has 4.8 of speeches and 3.4 of Python code."""

_TRAINING, _ENCODING = "training the tokenizer", "encoding"

Counted = Callable[[str, float], None]
"""Told a slow part that is under way, and the share of it that is done: 1 at its end."""


def _silent(message: str) -> None:
    pass


def _uncounted(part: str, share: float) -> None:
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
    known = token_folder.load(*_place(data, split))
    tokens = _rough_tokens(data, split) if known is None else len(known.tokens["train"])
    return Survey(_fingerprint(data, split), split.amounts, split.source.versions, tokens, known is None)


def _rough_tokens(data: DataSpec, split: Split) -> int:
    tokens = split.amounts.train_bytes // (1 if data.tokenizer == "bytes" else ROUGH_BYTES)
    return tokens if data.max_tokens is None else min(tokens, data.max_tokens)


def fingerprint(data: DataSpec) -> dict[str, str]:
    """Survey.fingerprint of `data`. Raises DataError."""
    return survey(data).fingerprint


def prepare(
    data: DataSpec, *, progress: Callable[[str], None] | None = None, counted: Counted = _uncounted
) -> TokenData | TaskData:
    """The corpus of `data`, split and tokenized; from the cache when it was prepared before. Of a task its settings.

    `progress` is given a line at the start of each slow part, and `counted` how much of it is done; a cached corpus
    gives none. Raises DataError.
    """
    if data.task is not None:
        return TaskData(data.task, tasks.fingerprint(data.task))
    return prepare_text(data, progress=progress, counted=counted)


def prepare_text(
    data: DataSpec, *, progress: Callable[[str], None] | None = None, counted: Counted = _uncounted
) -> TokenData:
    """`prepare` of a text."""
    tell = progress or _silent
    split = draw(data, tell)
    tokenizer, notes = _tokenizer(data, split, tell, counted)
    entry = _entry(data, split, tokenizer, tell, counted)
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


def tokenizer_by_digest(data: DataSpec, wanted: str) -> Tokenizer:
    """The tokenizer of `data` that has the digest `wanted`, without its corpus wherever that is not needed.

    `bytes` needs nothing, a tokenizer.json only its file, and `bpe` is in the cache or trained on the corpus again.
    Raises DataError naming the file that is missing or has changed.
    """
    if data.tokenizer == "bytes":
        return Bytes()
    if data.tokenizer != "bpe":
        path = tokenizer_file(data)
        if tokenizer_digest(data, b"") != wanted:
            raise DataError(f"{path} is no longer the tokenizer that the run was trained with")
        return load_file(path)
    path = cache_folder("tokenizers") / f"{wanted[:32]}.json"
    trained = _trained(path)
    if trained is not None:
        return trained
    try:
        split = draw(data, _silent)
    except DataError as error:
        raise DataError(
            f"the tokenizer of the run is not in the cache ({path}), and what it was trained on cannot be read: {error}"
        ) from None
    if tokenizer_digest(data, split.digests(_bpe_documents(split))) != wanted:
        raise DataError(
            f"the tokenizer of the run is not in the cache ({path}), and {data.source} has changed since: "
            "what would be trained on it now is another tokenizer"
        )
    return _tokenizer(data, split, _silent)[0]


def _fingerprint(data: DataSpec, split: Split) -> dict[str, str]:
    return {
        "corpus": split.corpus_digest,
        "tokenizer": tokenizer_digest(data, split.digests(_bpe_documents(split))),
    }


def _bpe_documents(split: Split) -> NDArray[np.int64]:
    """Training documents that a `bpe` tokenizer sees, in the source's order."""
    before = np.cumsum(split.scan.bytes_N[split.train]) - split.scan.bytes_N[split.train]
    return np.sort(split.train[before < BPE_BYTES])


def _tokenizer(
    data: DataSpec, split: Split, tell: Callable[[str], None], counted: Counted = _uncounted
) -> tuple[Tokenizer, list[str]]:
    if data.tokenizer == "bytes":
        return Bytes(), []
    if data.tokenizer != "bpe":
        own = load_file(tokenizer_file(data))
        return own, [f"tokenizer {data.tokenizer}: {change}" for change in own.changes.values()]
    documents = _bpe_documents(split)
    notes = []
    if len(documents) < len(split.train):
        notes.append(f"the tokenizer was trained on {len(documents):,} of {len(split.train):,} training documents")
    path = cache_folder("tokenizers") / f"{tokenizer_digest(data, split.digests(documents))[:32]}.json"
    trained = _trained(path)
    if trained is None:
        with locked(path, tell):
            trained = _trained(path)
            if trained is None:
                tell(f"training the tokenizer (bpe, {data.vocab_size:,} ids) on {len(documents):,} documents")
                trained = train_bpe(_texts(split, documents, counted), data.vocab_size)
                counted(_TRAINING, 1.0)
                replace_file(path, trained.save)
    if trained.vocab_size < data.vocab_size:
        notes.append(
            f"the tokenizer has {trained.vocab_size:,} ids, not {data.vocab_size:,}: the text gives no more merges"
        )
    return trained, notes


def _trained(path: Path) -> Subwords | None:
    if not path.exists():
        return None
    try:
        return load_file(path)
    except DataError:  # damaged: trained anew
        return None


def _texts(split: Split, documents: NDArray[np.int64], counted: Counted) -> Iterator[str]:
    done, total = 0, int(split.scan.bytes_N[documents].sum())
    for _, document in split.documents(documents):
        for part in document.parts:
            assert isinstance(part, str), "own_ids() refuses token ids with a bpe tokenizer"
            done += len(part)
            yield part
        counted(_TRAINING, min(0.99, done / max(1, total)))  # merging what was read comes after it


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


def _entry(
    data: DataSpec, split: Split, tokenizer: Tokenizer, tell: Callable[[str], None], counted: Counted
) -> token_folder.Entry:
    """The stored tokens, made if need be."""
    path, key, train, val = _place(data, split)
    entry = token_folder.load(path, key, train, val)
    if entry is None:
        with locked(path, tell):
            entry = token_folder.load(path, key, train, val)
            if entry is None:
                size = int(split.scan.bytes_N[train].sum() + split.scan.bytes_N[val].sum())
                tell(f"encoding {len(train) + len(val):,} documents ({size / 1e6:,.1f} MB)")
                encode(path, key, data, split, _CountedTokenizer(tokenizer, size, counted))
                counted(_ENCODING, 1.0)
                entry = token_folder.load(path, key, train, val)
                assert entry is not None, "what was just written can be read"
    return entry


def _place(data: DataSpec, split: Split) -> tuple[Path, str, NDArray[np.int64], NDArray[np.int64]]:
    """Folder and key of the stored tokens, named by all that decides them: which documents, in which order, and how;
    and the documents of both sides, sorted by their places."""
    train, val = np.sort(split.train), np.sort(split.val)
    drawn = split.digests(split.train) if data.max_tokens is not None else b""
    key = digest(
        "tokens",
        FORMAT,
        tokenizer_digest(data, split.digests(_bpe_documents(split))),
        data.max_tokens,
        split.digests(train),
        split.digests(val),
        drawn,
    )
    return cache_folder("tokens") / key[:32], key, train, val


def _unigram_nats(counts_V: NDArray[np.int64]) -> NDArray[np.float64]:
    """-ln((c + 1) / (n + V)): no id is impossible, and the probabilities sum to one."""
    nats_V: NDArray[np.float64] = np.log(counts_V.sum() + len(counts_V)) - np.log(counts_V + 1.0)
    return nats_V
