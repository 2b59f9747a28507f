"""The sources of text by name, and a corpus as each of them gives it: files in a fixed order and how to read them.

A source is one file of this folder with the function `find(data, rest, tell) -> Source`, and a line in SOURCES.
"""

from __future__ import annotations

import dataclasses
import glob
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dsabench.data.sources import readers
from dsabench.data.sources.documents import Document, Part
from dsabench.errors import DataError
from dsabench.spec.data_settings import DataSpec
from dsabench.spec.messages import nearest


class Kind(NamedTuple):
    """A source that data.source can name."""

    module: str
    """Its file in this folder. The function `find` there gets the spec, what follows the name, and a function to tell
    the user of slow work."""

    form: str
    """How it is written, for error messages."""


SOURCES = {
    "sotu": Kind("sotu", "sotu"),
    "stdlib": Kind("stdlib", "stdlib"),
    "packages": Kind("packages", "packages"),
    "path:": Kind("path", f"path:FILE_FOLDER_OR_GLOB ({' '.join(readers.SUFFIXES)})"),
    "hf:": Kind("hub", "hf:NAME[,CONFIG][:SPLIT]"),
}
"""What data.source is, or begins with up to a colon."""

*_FIRST, _LAST = (kind.form for kind in SOURCES.values())
ACCEPTED = f"{', '.join(_FIRST)} or {_LAST}"
"""What data.source may be, for error messages."""


@dataclass(frozen=True)
class Source:
    """The files of a corpus, in order; every reading gives the same documents in the same order."""

    title: str
    """What to call it in messages."""

    files: tuple[Path, ...]

    labels: tuple[str, ...]
    """What to call each file in the names of documents."""

    read: Callable[[Path], Iterator[Document]]

    key: tuple[str | int, ...]
    """What besides the files' contents decides the documents."""

    notes: tuple[str, ...] = ()

    cuts: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """(index of the file, record) of each document that is read as several, and into how many pieces it is cut."""

    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the distributions that the files belong to, for the run's record."""

    def documents(self) -> Iterator[tuple[int, Document]]:
        """(index of the file, document), lazily. Raises DataError for a file that cannot be read."""
        for index, path in enumerate(self.files):
            try:
                for document in self.read(path):
                    if pieces := self.cuts.get((index, document.record)):
                        again = partial(self._again, path, document.record)
                        for piece in readers.cut(again, document.record, pieces):
                            yield index, piece
                    else:
                        yield index, document
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error

    def cut_up(self, cuts: Mapping[tuple[int, int], int]) -> Source:
        """The same, but documents are read as their pieces: how many of each (index of the file, record)."""
        numbers = (number for place in sorted(cuts) for number in (*place, cuts[place]))
        return dataclasses.replace(self, cuts=cuts, key=(*self.key, "cut", readers.PIECE_CHARS, *numbers))

    def _again(self, path: Path, record: int) -> Iterator[Part]:
        for document in self.read(path):
            if document.record == record:
                yield from document.parts
                return


def open_source(data: DataSpec, tell: Callable[[str], None]) -> Source:
    """Find the files of data.source. Raises DataError when there are none or the source is not a known one."""
    word, colon, rest = data.source.partition(":")
    if kind := SOURCES.get(word + colon):
        source: Source = importlib.import_module(f"dsabench.data.sources.{kind.module}").find(data, rest, tell)
        return source
    message = f"data.source = {data.source!r} is not a known source; accepted: {ACCEPTED}"
    names = {name.removesuffix(":"): name for name in SOURCES}
    if Path(data.source).exists() or matches(data.source):
        message += f"; did you mean 'path:{data.source}'?"
    elif near := nearest(word, names):
        message += f"; did you mean '{names[near]}{rest if names[near].endswith(':') else ''}'?"
    raise DataError(message)


def matches(pattern: str) -> list[Path]:
    """The files and folders that a glob matches, in order; a plain path matches itself."""
    # Path.glob takes no absolute pattern.
    return [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207
