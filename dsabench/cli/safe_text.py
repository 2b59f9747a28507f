"""Text from files, made safe to print."""

from __future__ import annotations

import codecs
import json
import sys

from dsabench.plain import escaped, visible

ESCAPES = "dsabench.escapes"
"""The error handler that writes what an encoding cannot hold as JSON does (`\\u00fc`), so that JSON stays JSON."""


def _escapes(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(json.dumps(c)[1:-1] for c in error.object[error.start : error.end]), error.end


codecs.register_error(ESCAPES, _escapes)


def printable(text: object) -> str:
    """`text` on one line, with all that could command a terminal, or that stdout cannot encode, spelt out (`\\x1b`)."""
    return _as_stdout_has_it(escaped(str(text)))


def readable(text: str) -> str:
    """`printable`, but with spaces of every script left as they are."""
    return _as_stdout_has_it(visible(text))


def spelt_out(text: str) -> str:
    """`printable`, with the ends of lines kept."""
    return text if text.isascii() and text.isprintable() else "\n".join(map(printable, text.split("\n")))


def first_line(text: object, most: int | None = None) -> str:
    """The first line that is not empty, made printable, and cut to `most` characters with dots at its end."""
    line = printable(next((line.strip() for line in str(text).splitlines() if line.strip()), ""))
    return line if most is None or len(line) <= most else f"{line[: most - 4].rstrip()} ..."


def _as_stdout_has_it(text: str) -> str:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text if text.isascii() else text.encode(encoding, ESCAPES).decode(encoding)
