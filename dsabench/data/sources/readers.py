"""Files to documents, one reader a suffix, in bounded memory whatever the file's size.

A document is read in parts of at most PART_CHARS characters. Where the parts are cut depends on the text alone, not on
the kind of file it came from, so that the same text always gives the same tokens.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from dsabench.data.sources.documents import PART_CHARS, Document, Ids, Part
from dsabench.data.sources.token_file import read_bin
from dsabench.errors import DataError

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet", ".bin")
"""Files that `read` reads, in whatever case the suffix is written."""

LONE_PIECES = 20
"""A document that is all of a corpus, or most of it, is cut into this many, so that some of it can be held out."""

PIECE_CHARS = 2**24
"""Largest such piece, which bounds the memory that cutting needs."""

_BLOCK = 2**18


def read(path: Path, column: str, ids: Ids | None) -> Iterator[Document]:
    """The documents of a file, by its suffix. `ids` are those of .bin files, and needed for them alone."""
    match path.suffix.lower():
        case ".jsonl":
            return read_jsonl(path, column)
        case ".parquet":
            return read_parquet(path, column)
        case ".bin":
            assert ids is not None
            return read_bin(path, ids)
        case _:
            return read_text(path)


def text_parts(blocks: Iterable[str]) -> Iterator[str]:
    """The same text in parts of at most PART_CHARS characters, cut after the last line end that fits, if any."""
    pending = ""
    for block in blocks:
        pending += block
        while len(pending) > PART_CHARS:
            cut = pending.rfind("\n", 0, PART_CHARS) + 1 or PART_CHARS
            yield pending[:cut]
            pending = pending[cut:]
    if pending:
        yield pending


def read_text(path: Path) -> Iterator[Document]:
    """A .txt, .md or .py file: one document, UTF-8. DataError with the byte offset of what is not text."""
    yield Document(0, text_parts(_utf8_blocks(path)))


def whole_text(path: Path) -> str:
    """The text of a file as training reads it: without a byte order mark, with its line ends. Raises DataError."""
    return "".join(_utf8_blocks(path))


def _utf8_blocks(path: Path) -> Iterator[str]:
    try:
        yield from _decoded(path)
    except OSError as error:  # here, because parts are read when nobody else knows the file any more
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _decoded(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        offset = 0
        while True:
            block = file.read(_BLOCK)
            held = len(decoder.getstate()[0])  # bytes of a character that the last block broke off
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                at = offset - held + error.start
                raise DataError(
                    f"{path}: not UTF-8 text: byte 0x{error.object[error.start]:02x} at offset {at}; "
                    "a text file must be UTF-8"
                ) from None
            if "\0" in text:
                at = offset - held + len(text[: text.index("\0")].encode())
                raise DataError(f"{path}: a binary file: byte 0x00 at offset {at}; a text file must be UTF-8")
            if offset == 0:
                text = text.removeprefix("\ufeff")  # a byte order mark is not text
            offset += len(block)
            yield text
            if not block:
                return


def read_jsonl(path: Path, column: str) -> Iterator[Document]:
    """A .jsonl file: one JSON object a line, whose field `column` is the text; null is an empty document."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.isspace():
                yield Document(number, _json_parts(line, f"{path}:{number}", column))


def _json_parts(line: bytes, where: str, column: str) -> Iterator[str]:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8: byte 0x{line[error.start]:02x} at byte {error.start} of the line"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON: {error}; .jsonl holds one JSON object a line") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: a JSON {type(record).__name__}, where an object with the field {column!r} is needed")
    if column not in record:
        raise DataError(
            f"{where}: no field {column!r} (data.text_column); the record has {_listed(record) or 'no fields'}"
        )
    text = record[column]
    if text is None:
        return
    if not isinstance(text, str):
        raise DataError(f"{where}: field {column!r} is {type(text).__name__}, not a string")
    bad = next((character for character in text if "\ud800" <= character <= "\udfff"), None)
    if bad is not None:
        raise DataError(f"{where}: field {column!r} holds half a surrogate pair (\\u{ord(bad):04x}), which is not text")
    yield from text_parts([text])


def read_parquet(path: Path, column: str) -> Iterator[Document]:
    """A .parquet file: one document a row of the column `column`, read in batches; null is an empty document.

    Text of any kind (string, large_string, string_view, dictionaries of them), and bytes that are UTF-8.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if (same := schema.names.count(column)) != 1:
                there = f"{same} columns {column!r}" if same else f"no column {column!r}"
                raise DataError(f"{path}: {there} (data.text_column); the file has {_listed(schema.names) or 'none'}")
            kind = schema.field(column).type
            if not _holds_text(kind):
                raise DataError(f"{path}: column {column!r} is {kind}, not a string column")
            for batch in file.iter_batches(batch_size=256, columns=[column]):
                values = batch.column(column)
                for value in values.storage if isinstance(values, pa.ExtensionArray) else values:
                    row += 1
                    yield Document(row, text_parts(filter(None, [_parquet_text(value.as_py())])))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{row}: column {column!r} is not UTF-8: byte 0x{error.object[error.start]:02x} at byte "
            f"{error.start} of the value"
        ) from None
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a readable parquet file: {str(error).splitlines()[0]}") from None


def _holds_text(kind: Any) -> bool:
    import pyarrow.types as t

    while hasattr(kind, "storage_type") or t.is_dictionary(kind):
        kind = kind.value_type if t.is_dictionary(kind) else kind.storage_type
    text = t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind)
    return bool(text or t.is_binary(kind) or t.is_large_binary(kind) or t.is_binary_view(kind) or t.is_null(kind))


def _parquet_text(value: str | bytes | None) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def cut(document: Callable[[], Iterable[Part]], record: int = 0, pieces: int = LONE_PIECES) -> Iterator[Document]:
    """One document as contiguous ones of about equal size, cut at line ends (else at spaces, else anywhere).

    As many as `pieces`, or more of PIECE_CHARS each from a document that is larger than that. `document` gives its
    parts afresh at each call: it is read twice, once for its size.
    """
    total = sum(map(len, document()))
    pieces = max(pieces, -(-total // PIECE_CHARS))
    ends = iter([total * number // pieces for number in range(1, pieces)])
    done, piece, held, end = 0, 1, list[Part](), next((end for end in ends if end), total)
    for part in document():
        while end < total and end <= done + len(part):
            at = _cut_at(part, end - done, total // pieces)
            yield Document(record, _joined([*held, part[:at]]), piece)
            part, done, piece, held = part[at:], done + at, piece + 1, []
            end = next((later for later in ends if later > done), total)  # a long line may reach past several ends
        if len(part):
            held, done = [*held, part], done + len(part)
    if held:
        yield Document(record, _joined(held), piece)


def _cut_at(part: Part, target: int, reach: int) -> int:
    """Where to cut: after the first line end at `target` (1 or more) or up to `reach` behind it, else after the first
    such space, else at target."""
    if isinstance(part, str):
        for separator in ("\n", " "):
            found = part.find(separator, target - 1, target - 1 + reach)
            if found >= 0:
                return found + 1
    return target


def _joined(parts: list[Part]) -> Iterable[Part]:
    texts = [part for part in parts if isinstance(part, str)]
    return text_parts(texts) if texts else parts


def _listed(names: Iterable[Any]) -> str:
    listed = [repr(name) for name in names]
    return ", ".join(listed[:20]) + (f" and {len(listed) - 20} more" if len(listed) > 20 else "")
