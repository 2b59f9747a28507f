"""Prepared data: token ids on disk, by document, with their bytes and unigram losses; or a task's settings.

Legend: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

import numpy as np
from numpy.typing import NDArray

from dsabench.data.batch import Baseline, Batch
from dsabench.data.checked_tokens import CheckedTokens
from dsabench.data.stream import Overlapping
from dsabench.data.tokenizer import Tokenizer
from dsabench.spec.task_settings import TaskSettings


class Names(Sequence[str]):
    """Names of documents, made when asked for: a corpus may have millions."""

    def __init__(self, places: NDArray[np.int64], name: Callable[[int], str]) -> None:
        self._places, self._name = places, name

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._name(int(place)) for place in self._places[index]]
        return self._name(int(self._places[index]))


@dataclass(frozen=True, eq=False)
class TokenSplit:
    """The documents of one side of the split, in the source's order."""

    tokens: NDArray[np.uint16] | NDArray[np.uint32] | CheckedTokens
    """Memory-mapped ids of all documents, each followed by one end-of-document id (a document that data.max_tokens
    cut short has none). Those of a large corpus are compared with their digests as they are used."""

    offsets: NDArray[np.int64]
    """Where each document starts, and the end: document i is tokens[offsets[i]:offsets[i + 1]]."""

    names: Sequence[str]
    """`file`, or `file:record` (line, row or piece, from 1) where a file holds several documents."""

    def as_stream(self) -> TokenSplit:
        """The same tokens as a single document, so that windows may cross from one document into the next."""
        name = f"{len(self.names):,} documents as one stream, training and validation windows alike"
        return replace(self, offsets=np.array([0, len(self.tokens)], np.int64), names=[name])


@dataclass(frozen=True, eq=False)
class TokenData:
    """A tokenized corpus, split into training and validation documents; independent of window length and seed."""

    train: TokenSplit
    val: TokenSplit

    vocab_size: int
    """Ids that the model must embed: one more than the largest."""

    end_of_document: int

    token_bytes_V: NDArray[np.int64]
    """UTF-8 bytes of text that each id stands for; the end of a document stands for none."""

    unigram_nats_V: NDArray[np.float64]
    """-ln p of each id, p from the training tokens' counts plus one each: the baseline without any context."""

    fingerprint: dict[str, str]
    """Content digests of `corpus` and `tokenizer`: part of a run's identity."""

    tokenizer: Tokenizer

    notes: list[str]
    """What was done to the text that its user should know, a line each."""

    packed: bool = False
    """True with packing = documents: windows hold several documents."""

    overlapping: Overlapping | None = None
    """With split = overlapping: the draw of windows for training and validation. `train` and `val` are then the same
    stream, as a single document."""

    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the distributions that the text is of, where the source is such (`packages`)."""

    def baseline(self, batch: Batch) -> Baseline:
        """Unigram loss of the windows' scored targets, and the bytes that they stand for."""
        targets = batch.scored_targets
        loss, n_bytes = self.unigram_nats_V[targets].mean(), self.token_bytes_V[targets].mean()
        return Baseline(float(loss), None, float(n_bytes))

    def encode(self, text: str) -> NDArray[np.uint32]:
        """Ids of a text, without an end of document."""
        return self.tokenizer.encode([text])[0]

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Text of ids; the end of a document reads <|endoftext|>, bytes that make no character U+FFFD."""
        return self.tokenizer.decode([int(token) for token in ids])


@dataclass(frozen=True, eq=False)
class TaskData:
    """A task, whose windows are made when they are asked for."""

    settings: TaskSettings

    fingerprint: dict[str, str]
    """Digests of `corpus` (task and settings) and `tokenizer` (its ids): part of a run's identity."""

    notes: list[str] = field(default_factory=list)

    versions: Mapping[str, str] = field(default_factory=dict)
    """None: a task is of no distribution."""

    @property
    def vocab_size(self) -> int:
        """Ids that the model must embed."""
        return self.settings.vocab_size
