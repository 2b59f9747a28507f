"""Files of token ids: .bin without a header (nanoGPT), with llm.c's header, or with Megatron's .idx beside it.

The width of an id is taken from header or index. Without one it is tried on the file's first ids: the widest of 2, 4
and 8 bytes whose numbers are all ids of the tokenizer. Wide ids that are read as narrow ones pass for ids, with id 0 at
every second place; narrow ids that are read as wide ones are beyond every vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsabench.data.sources.documents import PART_CHARS, Document, Ids
from dsabench.errors import DataError

_TRIED = 2**16
"""Ids that the width is tried on."""

_LLM_C = {20240520: "<u2", 20240801: "<u4"}
"""First number of the header of llm.c (256 little-endian int32: this, version 1, number of ids), and the ids' type."""

_LLM_C_HEADER = 1024

_MEGATRON = b"MMIDIDX\x00\x00"
_MEGATRON_TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}

_OTHERS = {
    b"\x93NUMPY": "a NumPy array with a header (write it with ndarray.tofile)",
    b"PK\x03\x04": "a zip archive (.npz, .pt)",
    b"\x1f\x8b": "compressed by gzip",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"PAR1": "a parquet file",
    b"ARROW1": "an Arrow file",
    b"\x89HDF": "an HDF5 file",
}
"""Beginnings of files that are something else."""


@dataclass(frozen=True)
class Layout:
    """Where the ids of a file are, and how they are written."""

    dtype: str
    offset: int = 0
    ends: NDArray[np.int64] | None = None
    """Where documents end, in ids, as far as an index tells."""

    @property
    def name(self) -> str:
        """`uint16`, and so on."""
        return np.dtype(self.dtype).name


def index_of(path: Path) -> Path | None:
    """Megatron's index beside a .bin file, if there is one."""
    index = path.with_suffix(".idx")
    if not index.is_file():
        return None
    with index.open("rb") as file:
        return index if file.read(len(_MEGATRON)) == _MEGATRON else None


def layout(path: Path, ids: Ids) -> Layout:
    """How the ids of a file are written. Raises DataError when they cannot be ids of the tokenizer."""
    try:
        return _layout(path, ids)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _layout(path: Path, ids: Ids) -> Layout:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            raise DataError(f"{path}: {what}; a .bin file holds token ids alone, uint16 or uint32, little-endian")
    if index := index_of(path):
        return _megatron(path, index, size)
    numbers = np.frombuffer(head[:12], "<u4") if len(head) >= 12 else np.zeros(3, np.uint32)
    if (first := int(numbers[0])) in _LLM_C and numbers[1] == 1:
        found = Layout(_LLM_C[first], _LLM_C_HEADER)
        if size != _LLM_C_HEADER + int(numbers[2]) * np.dtype(found.dtype).itemsize:
            raise DataError(
                f"{path}: its header (llm.c's, {first}) tells of {int(numbers[2]):,} {found.name} ids, which would be "
                f"{_LLM_C_HEADER + int(numbers[2]) * np.dtype(found.dtype).itemsize:,} bytes, and it has {size:,}"
            )
        return found
    return Layout(_tried(path, size, ids))


def _tried(path: Path, size: int, ids: Ids) -> str:
    for dtype in ("<u8", "<u4"):
        width = np.dtype(dtype).itemsize
        if size and size % width == 0 and int(np.fromfile(path, dtype, _TRIED).max()) < ids.vocab_size:
            return dtype
    if size % 2:
        raise DataError(f"{path}: {size} bytes; a .bin file holds two bytes an id (uint16) or four, so an even number")
    if ids.vocab_size > 2**16:
        raise DataError(
            f"{path}: not uint32 ids of the tokenizer of data.tokenizer, which has ids 0 to {ids.vocab_size - 1}, and "
            "uint16 cannot hold these; write them as uint32, little-endian"
        )
    return "<u2"


def _megatron(path: Path, index: Path, size: int) -> Layout:
    try:
        with index.open("rb") as file:
            file.seek(len(_MEGATRON) + 8)  # magic and version
            code = int(np.fromfile(file, "<u1", 1)[0])
            n_sequences, n_documents = np.fromfile(file, "<u8", 2).tolist()
            sizes = np.fromfile(file, "<i4", n_sequences)
            file.seek(8 * n_sequences, 1)
            firsts = np.fromfile(file, "<i8", n_documents)
        if len(sizes) < n_sequences or len(firsts) < n_documents or n_documents < 1 or firsts[-1] != n_sequences:
            raise ValueError("it is cut off")
        dtype = _MEGATRON_TYPES[code]
        ends = np.append(0, np.cumsum(sizes, dtype=np.int64))[firsts[1:]]
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise DataError(f"{index}: not a readable index of {path.name} ({type(error).__name__}: {error})") from None
    if int(sizes.sum(dtype=np.int64)) * np.dtype(dtype).itemsize != size:
        raise DataError(
            f"{path}: {index.name} tells of {int(sizes.sum(dtype=np.int64)):,} {np.dtype(dtype).name} ids, "
            f"and the file has {size:,} bytes"
        )
    return Layout(dtype, 0, ends)


def read_bin(path: Path, ids: Ids) -> Iterator[Document]:
    """A .bin file of token ids. Documents are what lies between end-of-document ids, wherever these stand, and between
    the ends that an index tells; a file without any is one document."""
    how = layout(path, ids)
    dtype = np.dtype(how.dtype)
    n = (path.stat().st_size - how.offset) // dtype.itemsize
    if not n:
        return
    tokens = np.memmap(path, dtype=dtype, mode="r", offset=how.offset, shape=(n,))
    start = number = 0
    for first in range(0, n, PART_CHARS):
        block = tokens[first : first + PART_CHARS]
        _check(block, first, path, how, ids)
        marks = first + np.flatnonzero(block == ids.end_of_document)
        for end, skip in _stops(marks, how.ends, first, first + len(block)):
            if end > start or skip:
                number += 1
                yield Document(number, _slices(tokens, start, end, ids))
            start = end + skip
    if start < n:
        yield Document(number + 1, _slices(tokens, start, n, ids))


def _stops(
    marks: NDArray[np.int64], ends: NDArray[np.int64] | None, first: int, last: int
) -> Iterator[tuple[int, int]]:
    """(where a document ends, ids that belong to none there) within a block, in order."""
    if ends is None:
        yield from ((int(mark), 1) for mark in marks)
        return
    here = ends[(ends > first) & (ends <= last)]
    yield from sorted([*((int(mark), 1) for mark in marks), *((int(end), 0) for end in here)])


def _check(block: NDArray[Any], first: int, path: Path, how: Layout, ids: Ids) -> None:
    wrong = (block < 0) | (block >= ids.vocab_size)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise DataError(
            f"{path}: read as {how.name}, little-endian, token {first + at} is {int(block[at])}, but the tokenizer of "
            f"data.tokenizer has ids 0 to {ids.vocab_size - 1}; name the tokenizer that made the file (and a file of "
            "uint16 or uint32 ids, without a header or with llm.c's)"
        )


def _slices(tokens: NDArray[Any], start: int, end: int, ids: Ids) -> Iterator[NDArray[np.unsignedinteger]]:
    # The same ids are the same content, however wide they were written.
    dtype = np.dtype("<u2" if ids.vocab_size <= 2**16 else "<u4")
    for first in range(start, end, PART_CHARS):
        yield tokens[first : min(end, first + PART_CHARS)].astype(dtype)
