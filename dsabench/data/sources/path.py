"""`path:X`: a file, a folder with all folders below it, or a glob, of .txt, .md, .jsonl, .parquet and .bin files."""

from __future__ import annotations

import collections
import glob
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dsabench.data.sources.readers import SUFFIXES, read
from dsabench.data.sources.source import ACCEPTED, Source, matches
from dsabench.data.tokenizer import own_ids
from dsabench.errors import DataError
from dsabench.spec.data_settings import DataSpec
from dsabench.user_folders import expanded


def find(data: DataSpec, rest: str, tell: Callable[[str], None]) -> Source:
    """The files that `rest` names, in order of their paths, and notes of what was left out.

    Raises DataError when there is none that can be read.
    """
    named = expanded(rest, DataError)
    title = f"data.source = {data.source!r}"
    notes: list[str] = []
    if not rest:
        raise DataError(f"{title} names no file; accepted: {ACCEPTED}")
    if named.is_file():
        if named.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{title}: cannot read files that end in {named.suffix or 'nothing'!r}; accepted: {' '.join(SUFFIXES)}"
            )
        root, found = named.parent, [named]
    elif named.is_dir():
        root, found = named, _walk(named, notes)
    else:
        root = Path()
        found = [path for path in matches(str(named)) if path.is_file()]
        if not found:
            what = "no file matches" if glob.has_magic(rest) else "no such file or folder"
            raise DataError(f"{title}: {what} (current folder: {Path.cwd()})")
    files = sorted((path for path in found if path.suffix.lower() in SUFFIXES), key=lambda path: path.as_posix())
    others = collections.Counter(path.suffix.lower() or "no suffix" for path in found if path not in set(files))
    if not files:
        there = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items())) or "no file at all"
        raise DataError(f"{title}: nothing to read there ({there}); accepted: {' '.join(SUFFIXES)}")
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        notes.append(f"{sum(others.values())} files of other kinds ignored ({kinds})")
    kinds_read = collections.Counter(path.suffix.lower() for path in files)
    if len(kinds_read) > 1:
        notes.append(
            "read " + ", ".join(f"{count} {suffix}" for suffix, count in sorted(kinds_read.items())) + " files"
        )
    ids = own_ids(data, files) if ".bin" in kinds_read else None
    labels = tuple(path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path) for path in files)
    key = ("path", data.text_column, *((ids.vocab_size, ids.end_of_document) if ids else ()))
    return Source(title, tuple(files), labels, partial(read, column=data.text_column, ids=ids), key, tuple(notes))


def _walk(root: Path, notes: list[str]) -> list[Path]:
    found, skipped = [], []
    for folder, folders, names in os.walk(root):
        away = [name for name in folders if name.startswith(".") or (Path(folder) / name).is_symlink()]
        skipped += [(Path(folder) / name).relative_to(root).as_posix() for name in away]
        folders[:] = [name for name in folders if name not in away]
        found += [Path(folder) / name for name in names]
    if skipped:
        more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        notes.append(f"hidden and linked folders not read: {', '.join(sorted(skipped)[:5])}{more}")
    return found
