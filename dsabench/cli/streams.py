"""The standard streams and arguments of a command, whatever their encoding; streams closed, full or left by a reader.

stdout  What the encoding cannot hold is escaped as in JSON, so that JSON stays JSON. Full: one message, exit code
        2. Left by its reader: nothing is said, exit code 141, as SIGPIPE would have it. Closed: a note, and the
        work is done all the same.
stderr  What cannot be written is lost: progress and logs must not end the work.
stdin   Closed: empty.

An argument whose bytes are no text of the locale (Python has surrogates for them) is a file name like any other; where
text is needed, it is one message, exit code 2.
"""

from __future__ import annotations

import functools
import io
import os
import re
import sys
from collections.abc import Callable
from typing import TextIO

from dsabench.cli.safe_text import ESCAPES, printable
from dsabench.errors import DsabenchError

READER_GONE = 141
"""Exit code: 128 and the number of SIGPIPE."""


class OutputError(DsabenchError):
    """The result cannot be written to stdout."""


def guarded(command: Callable[[], None]) -> Callable[[], None]:
    """`command` with standard streams that cannot end it by a traceback."""

    @functools.wraps(command)
    def run() -> None:
        closed = _open_closed()
        sys.stdout = _guard(sys.stdout, sys.__stdout__, _Results)
        sys.stderr = _guard(sys.stderr, sys.__stderr__, _Remarks)
        if closed:
            print("note: stdout is closed; results are not shown", file=sys.stderr)
        try:
            command()
        except UnicodeEncodeError as error:
            if not (word := _argument_of(error)):
                raise
            print(f"error: {word}: no text in this locale ({sys.getfilesystemencoding()})", file=sys.stderr)
            sys.exit(2)
        except SystemExit as ending:
            ending.code = ending.code or _flushed()
            raise
        if code := _flushed():
            sys.exit(code)

    return run


class _Guard(io.TextIOWrapper):
    """A stream whose failures are told apart from those of files."""

    def __init__(self, stream: io.TextIOWrapper, errors: str) -> None:
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors=errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._failed(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())  # what is buffered still has nowhere else to go
        os.close(null)


class _Results(_Guard):
    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(stream, ESCAPES)

        self.failure: OSError | None = None
        """Kept, for libraries try what a stream can do, and pass over its exceptions."""

    def _failed(self, error: OSError) -> None:
        super()._failed(error)
        self.failure = error
        self.check()

    def check(self) -> None:
        """Raise what a failed write means, if there was one."""
        error = self.failure
        if isinstance(error, BrokenPipeError):
            raise SystemExit(READER_GONE)
        if error is not None:
            raise OutputError(f"stdout cannot be written: {error.strerror}")


class _Remarks(_Guard):
    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(stream, "backslashreplace")


def _guard(stream: TextIO, original: TextIO | None, kind: type[_Results] | type[_Remarks]) -> TextIO:
    """The process's own stream guarded; one that took its place (of a test, of a notebook) only escapes."""
    if stream is original and isinstance(stream, io.TextIOWrapper):
        return kind(stream)
    if isinstance(stream, io.TextIOWrapper) and not isinstance(stream, _Guard):
        stream.reconfigure(errors=ESCAPES if kind is _Results else "backslashreplace")
    return stream


def _open_closed() -> bool:
    """Open the null device where a standard stream is closed, lest a file of ours gets its number; whether stdout was.

    Python has None in the place of such a stream.
    """
    closed = [stream is None for stream in (sys.stdin, sys.stdout, sys.stderr)]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if closed[number]:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
    return closed[1]


def _argument_of(error: UnicodeEncodeError) -> str:
    """The argument of the command whose surrogates an encoder refused, made printable; empty if it was none."""
    refused = error.object[error.start : error.end]
    words = [word for word in sys.argv[1:] if refused in word]
    return printable(words[0]) if words and re.search("[\ud800-\udfff]", refused) else ""


def _flushed() -> int:
    """Flush stdout; the exit code if that fails, or a write before it."""
    try:
        sys.stdout.flush()
        if isinstance(sys.stdout, _Results):
            sys.stdout.check()
    except OutputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SystemExit:
        return READER_GONE
    return 0
