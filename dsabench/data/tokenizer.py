"""Text to token ids and back: `bpe` trained here, `bytes`, or any tokenizer.json.

Text that spells an end-of-document token is text: only the end of a document becomes that id.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dsabench.data.cache import digest
from dsabench.data.sources.documents import Ids
from dsabench.data.sources.folder import kind_of_file
from dsabench.data.token_bytes import token_bytes
from dsabench.errors import DataError
from dsabench.spec.data_settings import BYTES_VOCABULARY, DataSpec
from dsabench.user_folders import expanded

END_OF_DOCUMENT = "<|endoftext|>"

KNOWN_ENDS = (
    END_OF_DOCUMENT,
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)
"""Tokens that end a document in known tokenizers; of a tokenizer.json, the first of these that it has."""

BPE_FORMAT = 1
"""Part of a trained tokenizer's digest; raise it when training changes."""

MIN_FREQUENCY = 2
"""Pairs of tokens that occur less often than this are not merged."""


_CHANCE = ("dropout", "alpha", "nbest_size")
"""Settings of models of the library by which a text gets other tokens each time."""


class Tokenizer(Protocol):
    """What the rest of `data` needs of a tokenizer."""

    vocab_size: int
    """One more than the largest id it makes, the end of a document included."""

    end_of_document: int

    token_bytes_V: NDArray[np.int64]
    """UTF-8 bytes of the text that each id stands for; 0 for the end of a document."""

    separator: int
    """The id that ends documents in files of ids that the tokenizer made."""

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """The ids of each text, none of which is the end of a document. Raises DataError when it cannot."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text; the end of a document reads <|endoftext|>, bytes that are no character U+FFFD."""


class Bytes:
    """The UTF-8 bytes of the text are the ids; 256 ends a document."""

    vocab_size = BYTES_VOCABULARY
    end_of_document = separator = 256

    def __init__(self) -> None:
        self.token_bytes_V = np.append(np.ones(256, np.int64), 0)

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """One id a byte."""
        return [np.frombuffer(text.encode(), np.uint8).astype(np.uint32) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Inverse of encode."""
        return _decode_around_ends(ids, self.end_of_document, lambda run: bytes(run).decode(errors="replace"))


class Subwords:
    """A tokenizer of the `tokenizers` library, without truncation, padding, special tokens and chance.

    token_bytes_V is exact for byte-level tokenizers, such as `bpe`. For others it is the length of the token's own
    string, in which U+2581 is a space, <0xNN> one byte and a leading ## nothing. Text that a normalizer or the unknown
    token loses is not counted; `prepare` notes by how much the sum differs from the text.
    """

    def __init__(self, tokenizer: Any) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        chance = [name for name in _CHANCE if getattr(tokenizer.model, name, None)]
        for name in chance:
            setattr(tokenizer.model, name, None)
        vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        known = next((token for token in KNOWN_ENDS if token in vocabulary), None)
        size = max(vocabulary.values(), default=-1) + 1
        reached = known is not None and _text_makes(tokenizer, known, vocabulary[known])
        own = known is None or reached
        self._tokenizer = tokenizer
        self.separator = size if known is None else vocabulary[known]
        """The id that ends documents in files of ids that this tokenizer made."""
        self.end_of_document = size if own else self.separator
        self.vocab_size = size + own
        self.token_bytes_V = token_bytes(tokenizer, vocabulary, self.vocab_size)
        self.token_bytes_V[self.end_of_document] = 0
        self.changes = {
            name: f"model.{name} is switched off: a text must always give the same tokens" for name in chance
        }
        """What differs from what the file says, by a name that is part of the identity, because it changes ids."""
        if reached:
            told = f"documents end with an id of their own, {size}: text can become the token {known!r}"
            self.changes["own end"] = told

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Ids of each text; texts are encoded in parallel, special tokens in them as ordinary text.

        Raises DataError when the library cannot encode one of them, or makes the end of a document of it.
        """
        try:
            encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except BaseException as error:  # the library raises plain Exception, and a panic of its own is not even that
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                raise DataError(f"the tokenizer cannot encode it: {str(error).splitlines()[0]}") from None
            raise
        ids = [np.array(one.ids, np.uint32) for one in encoded]
        if any((one == self.end_of_document).any() for one in ids):
            raise DataError(
                f"the tokenizer makes of it the id {self.end_of_document}, which ends a document "
                f"({self._tokenizer.id_to_token(self.end_of_document)!r}); use another tokenizer (bpe, bytes), or take "
                "that out of the text"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Inverse of encode for byte-level tokenizers; what the file's decoder says for others."""
        return _decode_around_ends(
            ids, self.end_of_document, lambda run: str(self._tokenizer.decode(run, skip_special_tokens=False))
        )

    def content(self) -> bytes:
        """The tokenizer.json."""
        return str(self._tokenizer.to_str()).encode()

    def save(self, path: Path) -> None:
        """Write the tokenizer.json."""
        path.write_bytes(self.content())


def train_bpe(texts: Iterable[str], vocab_size: int) -> Subwords:
    """Byte-level BPE of `vocab_size` ids (fewer when the text yields no more merges); id 0 ends a document.

    All 256 bytes are in the vocabulary, so every text can be encoded and decoded again. Deterministic.
    """
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models, pre_tokenizers, trainers

    model = Model(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_FREQUENCY,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(iter(texts), trainer)
    return Subwords(model)


def load_file(path: Path) -> Subwords:
    """A tokenizer.json. Raises DataError when it is missing or not one."""
    return from_content(path, _content(path))


@functools.lru_cache(maxsize=2)
def from_content(path: Path, content: bytes) -> Subwords:
    """The tokenizer of a tokenizer.json that was read. Raises DataError when it is none."""
    from tokenizers import Tokenizer as Model

    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a readable tokenizer.json: {error}") from None
    try:
        return Subwords(Model.from_str(text))
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"{path}: not a tokenizer.json of the tokenizers library: {error}") from None


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: not a readable tokenizer.json: {error.strerror or error}") from None


def tokenizer_file(data: DataSpec) -> Path:
    """The file that data.tokenizer names when it is not `bpe` or `bytes`. Raises DataError when there is none."""
    path = expanded(data.tokenizer, DataError)
    if path.is_file():
        return path
    if kind := kind_of_file(path):
        raise DataError(f"data.tokenizer = {data.tokenizer!r}: {kind}; accepted: a regular file")
    inside = path / "tokenizer.json"
    hint = f"; did you mean {str(inside)!r}?" if inside.is_file() else ""
    raise DataError(
        f"data.tokenizer = {data.tokenizer!r}: no such file; "
        f"accepted: bpe, bytes, or the path of a tokenizer.json{hint}"
    )


def tokenizer_digest(data: DataSpec, training_digests: bytes) -> str:
    """Digest of what the tokenizer was made from: for `bpe` training documents and vocabulary size, else its file and
    what is made different from it. Raises DataError for a file that is none."""
    if data.tokenizer == "bpe":
        return digest("bpe", BPE_FORMAT, data.vocab_size, MIN_FREQUENCY, training_digests)
    if data.tokenizer == "bytes":
        return digest("bytes")
    path = tokenizer_file(data)
    content = _content(path)
    return digest("file", content, *from_content(path, content).changes)


def own_ids(data: DataSpec, files: Sequence[Path]) -> Ids:
    """The meaning of the ids in .bin files, by data.tokenizer. Raises DataError for `bpe`, which is trained on text."""
    if data.tokenizer == "bpe":
        binary = next(path for path in files if path.suffix.lower() == ".bin")
        raise DataError(
            f"{binary} holds token ids, so data.tokenizer must name the tokenizer.json that made them (or 'bytes'), "
            "not 'bpe', which is trained on text"
        )
    tokenizer = Bytes() if data.tokenizer == "bytes" else load_file(tokenizer_file(data))
    # An end of our own is no id that the file may hold.
    appended = tokenizer.separator != tokenizer.end_of_document
    return Ids(tokenizer.vocab_size - appended, tokenizer.separator)


def _decode_around_ends(ids: Sequence[int], end: int, decode: Callable[[list[int]], str]) -> str:
    # The library's decoders know nothing of an appended end, and would map a special token's string through bytes.
    runs: list[list[int]] = [[]]
    for token in map(int, ids):
        if token == end:
            runs.append([])
        else:
            runs[-1].append(token)
    return END_OF_DOCUMENT.join(decode(run) for run in runs)


def _text_makes(tokenizer: Any, token: str, number: int) -> bool:
    """Whether text that spells a token becomes it: it is no special token, the model makes it of its letters, or takes
    it for what it does not know. Tried, because that depends on normalizer, pre-tokenizer and model together."""
    if getattr(tokenizer.model, "unk_token", None) == token:
        return True
    spelled = (token, f" {token}", f"{token} ", f"a{token}a", f" {token} {token}", f"\n{token}\n", token.upper())
    unknown = "\ue000"  # in no vocabulary: what a model without bytes makes of it is its unknown token
    for text in (*spelled, unknown):
        try:
            if number in tokenizer.encode(text, add_special_tokens=False).ids:
                return True
        except Exception:  # no unknown token: text with this in it is refused anyway
            continue
    return False


def _before_fork() -> None:
    global _set_for_fork
    if _PARALLELISM not in os.environ:
        os.environ[_PARALLELISM], _set_for_fork = "false", True


def _after_fork_in_parent() -> None:
    global _set_for_fork
    if _set_for_fork:
        _set_for_fork = False
        os.environ.pop(_PARALLELISM, None)


_PARALLELISM = "TOKENIZERS_PARALLELISM"
_set_for_fork = False
if sys.platform != "win32":
    # The library's threads do not survive a fork: a forked child must encode serially, and older versions (0.20 does,
    # 0.23 does not) warn on stderr of each fork unless the variable says so. The parent keeps its threads.
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)
