"""`path:X`: a file, a folder with all folders below it, or a glob, of .txt, .md, .jsonl, .parquet and .bin files."""

from __future__ import annotations

import collections
import glob
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from dsabench.data.sources.folder import Found, kind_of_file
from dsabench.data.sources.readers import SUFFIXES, read
from dsabench.data.sources.source import ACCEPTED, Source, matches
from dsabench.data.sources.token_file import index_of, layout
from dsabench.data.tokenizer import own_ids
from dsabench.errors import DataError
from dsabench.spec.data_settings import DataSpec
from dsabench.user_folders import expanded

_ABOUT = {
    *("readme", "license", "licence", "copying", "copyright", "notice", "authors", "contributors", "contributing"),
    *("changelog", "changes", "history", "news", "citation", "security", "install", "todo", "code_of_conduct"),
}
"""Names, without suffix and in lower case, of files that are about others: perhaps not meant to be data."""


def find(data: DataSpec, rest: str, tell: Callable[[str], None]) -> Source:
    """The files that `rest` names, in order of their paths, and notes of what was left out.

    A folder that a glob matches is read as it is when it is named itself, so that `dir` and `dir/*` are one corpus.
    Raises DataError when there is none that can be read.
    """
    title = f"data.source = {data.source!r}"
    if not rest:
        raise DataError(f"{title} names no file; accepted: {ACCEPTED}")
    named = expanded(rest, DataError)
    found = Found()
    if named.is_file():
        if named.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{title}: cannot read files that end in {named.suffix or 'nothing'!r}; accepted: {' '.join(SUFFIXES)}"
            )
        root = named.parent
        found.add(named)
    elif named.is_dir():
        root = named
        found.walk(named)
    else:
        if kind := kind_of_file(named):
            raise DataError(f"{title}: {kind}; accepted: a regular file, a folder or a glob")
        root = _before_the_wildcard(named)
        matched = matches(str(named))
        if not matched:
            what = "no file matches" if glob.has_magic(rest) else "no such file or folder"
            raise DataError(f"{title}: {what} (current folder: {Path.cwd()})")
        for path in matched:
            found.add(path)
    files = sorted((path for path in found.files if path.suffix.lower() in SUFFIXES), key=lambda path: path.as_posix())
    others = collections.Counter(path.suffix.lower() or "no suffix" for path in found.files.keys() - set(files))
    if not files:
        there = [*(f"{count} {suffix}" for suffix, count in sorted(others.items())), *found.notes(root)]
        raise DataError(
            f"{title}: nothing to read there ({', '.join(there) or 'no file at all'}); accepted: {' '.join(SUFFIXES)}"
        )
    bins = [path for path in files if path.suffix.lower() == ".bin"]
    ids = own_ids(data, files) if bins else None
    labels = tuple(path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path) for path in files)
    key: tuple[str | int, ...] = ("path", data.text_column, *((ids.vocab_size, ids.end_of_document) if ids else ()))
    notes = [*found.notes(root), *_notes(files, labels, others)]
    if ids:
        widths = collections.Counter(layout(path, ids).name for path in bins)
        notes.append(
            f".bin files read as {', '.join(f'{name} ids ({count})' for name, count in sorted(widths.items()))}"
        )
        key += tuple(path.stat().st_mtime_ns for path in map(index_of, bins) if path)
    return Source(title, tuple(files), labels, partial(read, column=data.text_column, ids=ids), key, tuple(notes))


def _before_the_wildcard(pattern: Path) -> Path:
    """The folder that all files of a glob are below."""
    plain = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        plain.append(part)
    return Path(*plain)


def _notes(files: Sequence[Path], labels: Sequence[str], others: collections.Counter[str]) -> list[str]:
    notes = []
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        notes.append(f"{sum(others.values())} files of other kinds ignored ({kinds})")
    kinds_read = collections.Counter(path.suffix.lower() for path in files)
    if len(kinds_read) > 1:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(kinds_read.items()))
        notes.append(f"read {kinds} files")
    about = [label for path, label in zip(files, labels, strict=True) if path.stem.lower() in _ABOUT]
    if about and len(about) < len(files):
        more = f" and {len(about) - 5} more" if len(about) > 5 else ""
        notes.append(
            f"read as data, as the other files are: {', '.join(about[:5])}{more}; "
            "name the files that you mean (path:GLOB) to leave such files out"
        )
    return notes
