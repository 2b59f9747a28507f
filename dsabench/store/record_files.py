"""The reading of the store's JSON files, with checks: what may be read at all, and whether it is what was sealed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from dsabench._version import __version__
from dsabench.errors import StoreError
from dsabench.store.files import explain
from dsabench.store.records import SCHEMA_VERSION, DamagedError, Record, RunRecord
from dsabench.store.seals import record_digest, seal_is_missing

MAX_DEPTH = 100
"""The deepest nesting of mappings and lists in a record."""


def read_document(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, of a schema that this dsabench knows.

    Raises:
        FileNotFoundError: there is no such file.
        StoreError: it cannot be read, is no JSON object, or a newer dsabench wrote it.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise StoreError(f"{path}: not a file; a JSON file is expected")
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise explain(path, error) from error
    except StoreError:  # a ValueError too
        raise
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: damaged, not JSON ({error})") from error
    if isinstance(document, dict) and _is_deep(document):
        raise StoreError(f"{path}: damaged, nested more than {MAX_DEPTH} deep")
    found: Any = document.get("schema_version") if isinstance(document, dict) else None
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise StoreError(f"{path}: damaged, not a JSON object with a schema_version of 1 or more")
    if found > SCHEMA_VERSION:
        raise StoreError(
            f"{path}: schema_version {found} was written by a newer dsabench; "
            f"this one ({__version__}) reads up to {SCHEMA_VERSION}. Upgrade dsabench, or use another store"
        )
    return dict(document)


def _is_deep(document: Any) -> bool:
    """Whether it is nested more than MAX_DEPTH deep: walking through it or writing it could exhaust the stack."""
    level = [document]
    for _ in range(MAX_DEPTH):
        inner = (value for one in level for value in (one.values() if isinstance(one, dict) else one))
        level = [value for value in inner if isinstance(value, dict | list)]
        if not level:
            return False
    return True


R = TypeVar("R", bound=Record)


def read_record(path: Path, kind: type[R]) -> R:
    """The record of class `kind` in `path`, compared with its seal; one of an earlier version has none.

    Raises:
        DamagedError: it is not what was sealed.
        FileNotFoundError, StoreError: as `read_document`, and for a field that does not fit.
    """
    document = read_document(path)
    try:
        record = kind.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise StoreError(f"{path}: damaged, {field}: {first['msg']}") from error
    check_seal(path, document, record if isinstance(record, RunRecord) else None)
    return record


def check_seal(path: Path, document: Mapping[str, Any], record: RunRecord | None = None) -> None:
    """Raise DamagedError, with `record`, when the JSON document of a record in `path` is not what was sealed."""
    if seal_is_missing(document):
        raise DamagedError(f"{path}: damaged, its seal is missing", record)
    seal = document.get("seal")
    told = seal.get("digest") if isinstance(seal, Mapping) else None
    if seal is not None and record_digest(document) != told:
        raise DamagedError(f"{path}: damaged, not what was written (its digest differs)", record)
