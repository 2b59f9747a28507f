"""The metrics file of a run that is being written, with the digest of what was written to it."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from dsabench.store.files import explain, explained, write_all, write_atomic
from dsabench.store.reader import parse_metrics
from dsabench.store.seals import FileSeal, Growing


class MetricsFile:
    """`metrics.jsonl` of one run, for its one writer. A byte that goes bad on the disk is not in its seal."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None
        self._so_far: Growing | None = None
        """The seal of what was written; None while nobody asked for it."""

    def append(self, line: bytes) -> None:
        """Append a line in one write; StoreError when it cannot be written, and the file then ends where it did."""
        with explained(self.path):
            if self._fd is None:
                self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            so_far = self._written()
            size = os.fstat(self._fd).st_size
            try:
                write_all(self._fd, line)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._fd, size)
                raise
            so_far.add(line)

    def rewind(self, step: int, past: int | None) -> None:
        """Drop what follows byte `past`, if that is known, the records after `step`, and a torn last line.

        Raises:
            StoreError: a line is damaged, or the file cannot be written.
        """
        self.close()
        self._so_far = None
        if past is not None:
            cut(self.path, past)
        records, whole = parse_metrics(self.path)
        kept = [record for record in records if record["step"] <= step]
        if len(kept) < len(records):
            write_atomic(self.path, "".join(json.dumps(record) + "\n" for record in kept).encode("ascii"))
        else:
            cut(self.path, whole)

    def seal(self) -> FileSeal:
        """The seal of what was written. Raises OSError."""
        return self._written().seal()

    def sealed_end(self) -> FileSeal | None:
        """`seal` at the run's end, without half a line that a full disk left; None where nothing was recorded.

        Raises OSError, StoreError.
        """
        if not self.path.exists():
            return None
        seal = self.seal()
        cut(self.path, seal.size)
        return seal

    def sync(self) -> None:
        """Make it durable. Raises StoreError."""
        if self._fd is not None:
            with explained(self.path):
                os.fsync(self._fd)

    def close(self) -> None:
        """Close it; the next line opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _written(self) -> Growing:
        if self._so_far is None:
            self._so_far = Growing(self.path)
        return self._so_far


def cut(path: Path, end: int) -> None:
    """Cut off what follows, such as a line that a kill left unfinished: the next record would be appended to it.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        if path.stat().st_size > end:
            with path.open("r+b") as file:
                file.truncate(end)
                os.fsync(file.fileno())
    except FileNotFoundError:
        return
    except OSError as error:
        raise explain(path, error) from error
