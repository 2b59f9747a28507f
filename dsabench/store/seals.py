"""Seals: digests by which a reader sees that what is stored is what was written.

A record (run.json, a sweep's file) holds the digest of itself. The record of a run that has ended holds those of its
other files too: metrics.jsonl and the files of its checkpoint. A checkpoint folder has a `seal.json`, because a run
that is killed has no last record: digests of its files, and of metrics.jsonl as it was when the checkpoint was made.

A seal shows accidents and edits: flipped bits, lost blocks, a digit changed by hand. It is no signature: whoever wants
to deceive can make a new one. Versions before 0.3 wrote none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dsabench.errors import StoreError
from dsabench.store.files import explain, read_regular, write_atomic

CHECKPOINT_SEAL = "seal.json"
"""Name of a checkpoint folder's own seal."""

_BYTES = 16
"""Of a digest (BLAKE2b): two different files have the same one with probability 2^-128."""

_SINCE = (0, 3)
"""The first version that sealed its records."""


FileName = Annotated[str, Field(pattern=r"^(checkpoint/)?[A-Za-z0-9_-][A-Za-z0-9._-]*$")]
"""A file of a run's folder or of its checkpoint: a seal may be somebody else's, and leads nowhere else."""


class FileSeal(BaseModel):
    """Size and digest of a file, or of the beginning of one that grows."""

    model_config = ConfigDict(frozen=True)

    size: int
    """Bytes."""

    digest: str
    """BLAKE2b of 16 bytes, in hex."""


class Seal(BaseModel):
    """The seal in a record."""

    model_config = ConfigDict(frozen=True)

    digest: str
    """Of the record in canonical form (`record_digest`)."""

    files: dict[FileName, FileSeal] | None = None
    """Files of a run that has ended, by their paths in its folder; None while it has not, and of a sweep."""


class CheckpointSeal(BaseModel):
    """The seal of a checkpoint folder."""

    model_config = ConfigDict(frozen=True)

    digest: str
    """Of this document (`record_digest`)."""

    files: dict[FileName, FileSeal]
    """The other files of the folder, by name."""

    metrics: FileSeal
    """The run's metrics.jsonl when the checkpoint was made: the records up to its step."""


def record_digest(document: Mapping[str, Any]) -> str:
    """The digest of a JSON document without its own: BLAKE2b of its canonical form.

    Canonical: keys sorted, no spaces, ASCII, numbers as Python writes them; so layout and file system do not count, and
    every value does. Left out is `digest`, of the document or of its `seal`.
    """
    bare = {key: value for key, value in document.items() if key != "digest"}
    if isinstance(seal := bare.get("seal"), Mapping):
        bare["seal"] = {key: value for key, value in seal.items() if key != "digest"}
    return digest_of(json.dumps(bare, sort_keys=True, separators=(",", ":")).encode("ascii"))


def digest_of(data: bytes) -> str:
    """BLAKE2b of 16 bytes, in hex."""
    return hashlib.blake2b(data, digest_size=_BYTES).hexdigest()


def file_seal(path: Path, size: int | None = None) -> FileSeal:
    """The seal of a file, or of its first `size` bytes. Raises OSError."""
    whole = hashlib.blake2b(digest_size=_BYTES)
    left = os.stat(path).st_size if size is None else size  # noqa: PTH116 (one name for tests to break)
    n = left
    buffer = memoryview(bytearray(min(2**20, max(1, left))))
    with path.open("rb", buffering=0) as file:
        while left > 0 and (got := file.readinto(buffer[: min(left, len(buffer))])):
            whole.update(buffer[:got])
            left -= got
    return FileSeal(size=n - left, digest=whole.hexdigest())


class Growing:
    """The seal of a file that only grows, of what was written to it: a byte that goes bad on the disk later is told."""

    def __init__(self, path: Path) -> None:
        """Begins with what `path` holds; nothing, where it is not there. Raises OSError."""
        self._digest = hashlib.blake2b(digest_size=_BYTES)
        self.size = 0
        if path.exists():
            self.add(read_regular(path))

    def add(self, data: bytes) -> None:
        """Take in what was appended."""
        self._digest.update(data)
        self.size += len(data)

    def seal(self) -> FileSeal:
        """The seal of all so far."""
        return FileSeal(size=self.size, digest=self._digest.hexdigest())


def seal_is_missing(document: Mapping[str, Any]) -> bool:
    """Whether a record has no seal although its version wrote one. That of a run names its version, that of a sweep the
    one of its environment."""
    environment = document.get("environment")
    version = document.get("version", environment.get("dsabench") if isinstance(environment, Mapping) else None)
    if document.get("seal") is not None or not isinstance(version, str):
        return False
    numbers = version.split(".")[:2]
    return all(part.isdecimal() for part in numbers) and tuple(map(int, numbers)) >= _SINCE


def differing(folder: Path, files: Mapping[str, FileSeal]) -> list[str]:
    """What is wrong with the files of `folder`, one phrase each; none that is as it was sealed."""
    found = []
    for name, told in files.items():
        path = folder / name
        try:
            is_file, size = path.is_file(), path.stat().st_size
            if not is_file:
                found.append(f"{name} is no file")
            elif size != told.size:
                found.append(f"{name} has {size:,} bytes, {told.size:,} were written")
            elif file_seal(path) != told:
                found.append(f"{name} is not what was written (its digest differs)")
        except FileNotFoundError:
            found.append(f"{name} is missing")
        except OSError as error:
            found.append(f"{name} cannot be read: {error.strerror or error}")
    return found


def seal_checkpoint(folder: Path, past: FileSeal) -> None:
    """Write the seal of a checkpoint folder whose files are all there, and of the metrics before it, atomically.

    Raises OSError.
    """
    files = {path.name: file_seal(path).model_dump() for path in sorted(folder.iterdir())}
    document = {"files": files, "metrics": past.model_dump()}
    text = json.dumps({"digest": record_digest(document), **document}, indent=1)
    write_atomic(folder / CHECKPOINT_SEAL, (text + "\n").encode("ascii"))


def checkpoint_seal(folder: Path) -> CheckpointSeal | None:
    """The seal of a checkpoint folder; None where an earlier version wrote none.

    Raises:
        StoreError: it is damaged or cannot be read.
    """
    path = folder / CHECKPOINT_SEAL
    try:
        document = json.loads(read_regular(path))
        seal = CheckpointSeal.model_validate(document)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise explain(path, error) from error
    except (ValueError, RecursionError, ValidationError) as error:
        raise StoreError(f"{path}: damaged, no seal of a checkpoint") from error
    if record_digest(document) != seal.digest:
        raise StoreError(f"{path}: damaged, not what was written (its digest differs)")
    return seal


def past_problem(folder: Path, metrics: Path) -> str | None:
    """What is wrong with the metrics up to the checkpoint in `folder`; None: nothing, or it has no seal that is whole.

    Raises OSError.
    """
    try:
        seal = checkpoint_seal(folder)
    except StoreError:
        return None
    if seal is None or not seal.metrics.size:
        return None
    there = file_seal(metrics, seal.metrics.size) if metrics.exists() else None
    return None if there == seal.metrics else f"{metrics.name} is not what was written before its checkpoint"


def is_sealed(folder: Path) -> bool:
    """Whether a checkpoint folder has a seal of its own."""
    return (folder / CHECKPOINT_SEAL).exists()


def checkpoint_problems(folder: Path, sealed: Mapping[str, FileSeal] | None = None) -> list[str]:
    """What is wrong with the checkpoint in `folder`, one phrase each. Reads every byte of it.

    sealed: files by `checkpoint/NAME`, as the record of a run that has ended knows them. Without that and without a
    seal of its own (of an earlier version) nothing can be told, and nothing is.
    """
    if sealed:
        return differing(folder.parent, sealed)
    try:
        seal = checkpoint_seal(folder)
    except StoreError as error:
        return [str(error)]
    if seal is None:
        return []
    return [f"{folder.name}/{phrase}" for phrase in differing(folder, seal.files)]
